from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.errors import UserError
from instructgpt.terminal import Chat, read_message, terminal_reader
from instructgpt.text.chat import Message, validate_messages


def lines_of(*lines: str):
    """A reader of these lines, and then the end of the input."""
    left = list(lines)

    def read_line(prompt: str) -> str:
        if not left:
            raise EOFError
        return left.pop(0)

    return read_line


class Fake:
    """A model that answers `1`, `2`, …, in two pieces, and remembers what it was given."""

    def __init__(self, room: int = 1000):
        self.seen: list[list[Message]] = []
        self.room = room
        self.written: list[str] = []

    def reply(self, messages: list[Message]) -> Iterator[str]:
        validate_messages(messages)
        self.seen.append(list(messages))
        yield "answer "
        yield str(len(self.seen))

    def fits(self, messages: list[Message]) -> bool:
        return sum(len(message["content"]) for message in messages) <= self.room

    def chat(self, *lines: str, system: str = "") -> Chat:
        chat = Chat(self.reply, self.fits, self.written.append, system)
        chat.run(lines_of(*lines))
        return chat

    @property
    def output(self) -> str:
        return "".join(self.written)


def contents(messages: list[Message]) -> list[str]:
    return [message["content"] for message in messages]


def test_the_history_is_kept():
    fake = Fake()
    fake.chat("one", "", "  ", "two")
    assert [contents(m) for m in fake.seen] == [["one"], ["one", "answer 1", "two"]]
    assert [m["role"] for m in fake.seen[1]] == ["user", "assistant", "user"]
    assert fake.output == "answer 1\nanswer 2\n"


def test_reset_forgets_the_turns_but_not_the_system_message():
    fake = Fake()
    fake.chat("one", "/reset", "two", system="be brief")
    assert contents(fake.seen[1]) == ["be brief", "two"]


def test_system_sets_and_removes_the_system_message():
    fake = Fake()
    fake.chat("/system speak French", "one", "/system", "two")
    assert fake.seen[0][0] == {"role": "system", "content": "speak French"}
    assert contents(fake.seen[1]) == ["one", "answer 1", "two"]


def test_quit_ends_the_chat():
    fake = Fake()
    fake.chat("/quit", "one")
    assert fake.seen == []


def test_help_lists_the_commands_and_a_misspelt_one_is_not_sent():
    fake = Fake()
    fake.chat("/help", "/rest")
    assert all(command in fake.output for command in ("/system", "/reset", "/quit"))
    assert "did you mean '/reset'?" in fake.output
    assert fake.seen == []


def test_a_path_is_a_message_and_no_command():
    fake = Fake()
    fake.chat("/etc/hosts is what?", "/2")
    assert contents(fake.seen[1]) == ["/etc/hosts is what?", "answer 1", "/2"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["one"], "one"),
        (["one\\", "two\\", "three"], "one\ntwo\nthree"),
        (['"""', "one", "", "two\\", '"""', "next"], "one\n\ntwo\\"),
        (['"""one"""'], "one"),
        (['  """one', 'two"""'], "one\ntwo"),
        (["one\\"], "one"),
        (['"""one', "two"], "one\ntwo"),
        (["one\r"], "one"),
        (["  one  two \t"], "one  two"),
        (["\u3000你好\u3000"], "你好"),
        (["one\\ \r", " two "], "one\n two"),
        (['"""', "  one ", "two", '"""'], "  one \ntwo"),
    ],
)
def test_messages_of_several_lines(lines: list[str], message: str):
    assert read_message(lines_of(*lines)) == message


def test_the_oldest_turns_are_dropped_when_the_context_is_full():
    fake = Fake(room=30)
    chat = fake.chat("first 78", "second 8", "third 78", system="s")
    assert contents(fake.seen[2]) == ["s", "second 8", "answer 2", "third 78"]
    assert "oldest 1 of the turns" in fake.output
    assert len(chat.turns) == 4


@given(st.lists(st.text("ab ", min_size=1, max_size=30).filter(str.strip), max_size=8), st.integers(10, 80))
def test_what_the_model_is_given_fits_and_ends_with_the_last_message(messages: list[str], room: int):
    fake = Fake(room)
    fake.chat(*messages, system="sys")
    assert len(fake.seen) == len(messages)
    for seen, message in zip(fake.seen, messages):
        assert (seen[0]["content"], seen[-1]["content"]) == ("sys", message.strip())
        assert fake.fits(seen) or len(seen) == 2


def test_ctrl_c_stops_the_answer_and_not_the_chat():
    fake = Fake()

    def interrupted(messages: list[Message]) -> Iterator[str]:
        yield from fake.reply(messages)
        if len(fake.seen) == 1:
            raise KeyboardInterrupt

    chat = Chat(interrupted, fake.fits, fake.written.append)
    chat.run(lines_of("one", "two"))
    assert contents(fake.seen[1]) == ["one", "answer 1", "two"]
    assert "(stopped)" in fake.output


def test_ctrl_c_at_the_prompt_clears_the_line():
    fake = Fake()
    rest = lines_of("one")
    interrupts = [True]

    def read_line(prompt: str) -> str:
        if interrupts:
            interrupts.pop()
            raise KeyboardInterrupt
        return rest(prompt)

    Chat(fake.reply, fake.fits, fake.written.append).run(read_line)
    assert contents(fake.seen[0]) == ["one"]


@pytest.mark.parametrize("before", [[], ["one"], ["one", "two"]])
def test_a_message_that_alone_is_too_long_is_refused_and_only_it(before: list[str]):
    fake = Fake(room=60)

    def refuses(messages: list[Message]) -> Iterator[str]:
        if len(messages[-1]["content"]) > 60:
            raise UserError("the prompt has 900 tokens, the context 128")
        return fake.reply(messages)

    chat = Chat(refuses, fake.fits, fake.written.append, "be brief")
    chat.run(lines_of(*before, "long " * 20, "short"))
    answered = [text for i, message in enumerate(before) for text in (message, f"answer {i + 1}")]
    assert contents(fake.seen[-1]) == ["be brief", *answered, "short"]
    assert len(chat.turns) == len(answered) + 2
    assert "error: the prompt has 900 tokens" in fake.output
    assert "forgotten" not in fake.output


def test_piped_input_is_read_line_by_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo"))
    read_line = terminal_reader()
    assert [read_line("> ") for _ in range(3)] == ["one", "", "two"]
    with pytest.raises(EOFError):
        read_line("> ")
    assert capsys.readouterr().out == ""
