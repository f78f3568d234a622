"""The chat in the terminal: reads messages, keeps the history, drops what no longer fits, streams the answers."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

from instructgpt.errors import UserError, suggestion
from instructgpt.text.chat import Message, as_typed

Reply = Callable[[list[Message]], Iterator[str]]
"""Streams the answer to a conversation that ends with the user's turn; UserError, at once, if it is too long."""

HELP = """\
/system TEXT  set the system message (without TEXT: remove it)
/reset        forget the conversation, keep the system message
/quit         leave (Ctrl-D does too)
/help         this list
A line that ends in \\ goes on in the next one; so does all between \""" and \""".
Ctrl-C stops an answer."""
_COMMANDS = ("/system", "/reset", "/quit", "/help")
_COMMAND = re.compile(r"(/[a-z]+)(?:\s+(.*))?", re.DOTALL)
_QUOTES = '"""'


def read_message(read_line: Callable[[str], str]) -> str:
    """One message, of one line or several. `read_line` gets the prompt to show and raises EOFError at the end.

    White space around a message is dropped; between quotes only empty lines are.
    """
    line = read_line("> ")
    quoted = line.lstrip().startswith(_QUOTES)
    lines = []
    try:
        if quoted:
            line = line.lstrip().removeprefix(_QUOTES)
            while _QUOTES not in line:
                lines.append(line)
                line = read_line("… ")
            line = line[: line.index(_QUOTES)]
        else:
            while line.rstrip().endswith("\\"):
                lines.append(line.rstrip()[:-1])
                line = read_line("… ")
    except EOFError:  # what was typed until then is the message; the next read ends the chat
        line = ""
    text = "\n".join([*lines, line])
    return text.strip("\r\n") if quoted else as_typed(text)


class Chat:
    """A conversation with a model.

    `fits` says of messages whether they leave the model room to answer; the oldest turns are dropped until they do.
    """

    def __init__(
        self, reply: Reply, fits: Callable[[list[Message]], bool], write: Callable[[str], object], system: str = ""
    ):
        self._reply, self._fits, self._write = reply, fits, write
        self.system = system
        self.turns: list[Message] = []

    def run(self, read_line: Callable[[str], str]) -> None:
        """Reads and answers until /quit or the end of the input."""
        while True:
            try:
                message = read_message(read_line)
            except EOFError:
                return
            except KeyboardInterrupt:  # at the prompt it clears the line
                self._write("\n(/quit leaves)\n")
                continue
            if not message.strip():
                continue
            command = _COMMAND.fullmatch(message.strip())
            if command is None:
                self.answer(message)
            elif command[1] == "/quit":
                return
            else:
                self._write(self.obey(command[1], (command[2] or "").strip()) + "\n")

    def obey(self, command: str, text: str) -> str:
        """Carries out a command; returns what to tell the user."""
        if command == "/help":
            return HELP
        if command == "/reset":
            self.turns.clear()
            return "(the conversation is forgotten)"
        if command == "/system":
            self.system = text
            return f"(the system message is now: {text})" if text else "(there is no system message now)"
        return f"(there is no command {command}{suggestion(command, _COMMANDS)}; /help lists them)"

    def answer(self, text: str) -> None:
        """Adds the user's turn and streams the model's; Ctrl-C keeps what came until then.

        A message that cannot be answered, since it alone is too long, is refused; the conversation stays as it was.
        """
        head: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        turns: list[Message] = [*self.turns, {"role": "user", "content": text}]
        dropped = 0
        while len(turns) > 1 and not self._fits(head + turns):
            del turns[:2]  # a question with its answer
            dropped += 1
        try:
            answer = self._reply(head + turns)
        except UserError as error:
            self._write(f"error: {error}\n")
            return
        if dropped:
            self._write(f"(the context is full: the oldest {dropped} of the turns are forgotten)\n")
        pieces: list[str] = []
        try:
            for piece in answer:
                pieces.append(piece)
                self._write(piece)
        except KeyboardInterrupt:
            self._write(" (stopped)")
        self._write("\n")
        self.turns = [*turns, {"role": "assistant", "content": "".join(pieces)}]


def terminal_reader() -> Callable[[str], str]:
    """Reads lines from standard input; with line editing and a prompt where somebody types."""
    if not sys.stdin.isatty():

        def read_line(prompt: str) -> str:
            line = sys.stdin.readline()
            if not line:
                raise EOFError
            return line.rstrip("\n")

        return read_line
    with suppress(ImportError):  # not there on every system
        import readline  # noqa: F401  (gives input() its line editing)
    return input
