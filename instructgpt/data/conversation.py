"""From a record to turns: what the readers of instructions and of preferences share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from instructgpt.data.account import Account
from instructgpt.data.files import Unreadable, read_records
from instructgpt.errors import UserError
from instructgpt.text.chat import Message

T = TypeVar("T")

ANSWER_FIELDS = ("output", "response", "completion", "answer", "target")
PROMPT_FIELDS = ("instruction", "prompt", "question", "query")

_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant"),
    "system": "system",
}
_TOOL_ROLES = frozenset(("function_call", "function", "observation", "tool"))
# What people write into an input that should be empty; compared without case and the marks around it.
_PSEUDO_EMPTY = frozenset(("n/a", "none", "noinput", "no input", "ninput", "not applicable", "不适用", "没有", "无"))
_MARKS = " \t\r\n<>[]().`'\""
_TURN = re.compile(r"\n\n(Human|Assistant):")
_SPEAKER_INSIDE = re.compile(r"\b(?:Human|Assistant):")
# A file whose first so many records are of no use is not the format at all: do not read 10 GB to say so.
_PATIENCE = 1000


class Unusable(Exception):
    """A record, or part of one, that cannot be used. `reason` is counted; `detail` is told when it ends in an error."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def convert_files(
    paths: Iterable[str | Path],
    columns: Sequence[str] | None,
    encoding: str,
    account: Account,
    strict: bool,
    convert: Callable[[dict[str, Any]], Iterable[T | Unusable]],
) -> Iterator[T]:
    """What `convert` makes of each record of the files, in order, with every record accounted for.

    Raises UserError with FILE:LINE where a file has nothing usable, and, if `strict`, at the first unusable record.
    """
    seen_before: set[int] = set()
    for path in paths:
        seen, usable, first = 0, 0, None
        for line, record in read_records(path, columns, encoding):
            account.read += 1
            seen += 1
            for result in _results(record, convert):
                if isinstance(result, Unusable):
                    complaint = f"{result.reason}{result.detail and f'; {result.detail}'}"
                    if strict:
                        raise UserError(complaint, path, line)
                    first = first or (complaint, line)
                    account.drop(result.reason, path, line)
                    continue
                usable += 1
                account.kept += 1
                key = hash(repr(result))
                if key in seen_before:
                    account.note("exact duplicate, kept")
                seen_before.add(key)
                yield result
            if not usable and seen == _PATIENCE:
                break
        if not usable:
            complaint, line = first or ("holds nothing", 1)
            raise UserError(f"{complaint}; none of the first {seen:,} record(s) is usable", path, line)


def _results(record: Any, convert: Callable[[dict[str, Any]], Iterable[T | Unusable]]) -> list[T | Unusable]:
    try:
        if isinstance(record, Unreadable):
            raise Unusable(record.reason)
        if not isinstance(record, dict):
            raise Unusable(f"{kind_of(record)} where a record should be")
        return list(convert(record))
    except Unusable as unusable:
        return [unusable]


def attempt(make: Callable[..., T], *arguments: Any) -> T | Unusable:
    """What `make` returns, or the Unusable that it raises: one bad half does not spoil the other."""
    try:
        return make(*arguments)
    except Unusable as unusable:
        return unusable


def kind_of(value: Any) -> str:
    """A JSON value's kind, as one would say it."""
    if value is None:
        return "null"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return kinds.get(type(value), type(value).__name__)


def text_of(record: dict[str, Any], field: str) -> str:
    """The text in a field. Raises Unusable when the field is missing or holds something else."""
    if field not in record:
        raise Unusable(f"no field {field!r}", f"it has {_names(record)}")
    value = record[field]
    if not isinstance(value, str):
        raise Unusable(f"{kind_of(value)} where text should be, in {field!r}")
    return value


def optional_text(record: dict[str, Any], field: str) -> str:
    """The text in a field; "" when there is no such field, or null in it."""
    return "" if record.get(field) is None else text_of(record, field)


def first_field(record: dict[str, Any], fields: Iterable[str]) -> str | None:
    """The first of the fields that the record has."""
    return next((field for field in fields if field in record), None)


def unknown_format(record: dict[str, Any], known: str) -> Unusable:
    return Unusable("none of the known formats", f"it has {_names(record)}; known are {known}")


def _names(record: dict[str, Any]) -> str:
    names = ", ".join(str(name)[:40] for name in list(record)[:10])
    return f"the fields {names}" if names else "no fields"


# ---- prompts


def alpaca_prompt(record: dict[str, Any], account: Account, prefix: str = "") -> str:
    """Instruction and input, an empty line between them; an input such as "n/a" is none."""
    field = first_field(record, [prefix + name for name in PROMPT_FIELDS])
    if field is None:
        raise Unusable("no prompt", f"it has {_names(record)}, none of {', '.join(PROMPT_FIELDS)}")
    instruction = text_of(record, field)
    given = optional_text(record, f"{prefix}input")
    if given.strip(_MARKS).casefold() in _PSEUDO_EMPTY:
        account.note("an input that says there is none, taken as empty")
        given = ""
    if not instruction.strip():
        instruction, given = given, ""
    if not instruction.strip():
        raise Unusable("empty prompt")
    return f"{instruction}\n\n{given}" if given.strip() else instruction


def prompt_turns(record: dict[str, Any], account: Account) -> list[Message]:
    """All turns of a record but the answer, which stands in a field of its own. The last one is the user's."""
    field = first_field(record, ("messages", "conversations"))
    if field is None and isinstance(record.get("prompt"), list):
        field = "prompt"
    turns = _alpaca_turns(record, account) if field is None else turns_of(record[field], account)
    if not turns or turns[-1]["role"] != "user":
        raise Unusable("a prompt that does not end with the user's turn")
    return turns


def _alpaca_turns(record: dict[str, Any], account: Account) -> list[Message]:
    turns = [_turn("system", text)] if (text := optional_text(record, "system")).strip() else []
    history = record.get("history") or []  # earlier turns: [[question, answer], …]
    if not isinstance(history, list):
        raise Unusable(f"{kind_of(history)} where a list of earlier turns should be, in 'history'")
    for pair in history:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise Unusable("an earlier turn in 'history' that is no pair of texts")
        turns += [_turn("user", pair[0]), _turn("assistant", pair[1])]
    return joined([*turns, _turn("user", alpaca_prompt(record, account))], account)


def turns_of(messages: Any, account: Account) -> list[Message]:
    """Chat (`role`, `content`) or ShareGPT (`from`, `value`) messages as turns that alternate, system first.

    Turns of one role in a row are joined. Raises Unusable for tool calls, unknown roles, content that is not text,
    empty turns, a system turn that is not first, and a first turn of the assistant.
    """
    if not isinstance(messages, list):
        raise Unusable(f"{kind_of(messages)} where a list of messages should be")
    return joined([_message(message) for message in messages], account)


def joined(turns: Iterable[Message], account: Account) -> list[Message]:
    """Turns checked and made to alternate; see `turns_of`."""
    result: list[Message] = []
    has_joined = False
    for turn in turns:
        role, content = turn["role"], turn["content"]
        if not content.strip():
            if role == "system":
                continue
            raise Unusable("empty answer" if role == "assistant" else "empty prompt")
        if result and result[-1]["role"] == role:
            result[-1] = _turn(role, f"{result[-1]['content']}\n\n{content}")
            has_joined = True
        elif role == "system" and result:
            raise Unusable("a system turn that is not first")
        elif role == "assistant" and (not result or result[-1]["role"] == "system"):
            raise Unusable("begins with the assistant")
        else:
            result.append(turn)
    if has_joined:
        account.note("turns of one role in a row, joined")
    return result


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _message(message: Any) -> Message:
    if not isinstance(message, dict):
        raise Unusable(f"{kind_of(message)} where a message should be")
    role = message.get("role", message.get("from"))
    if (isinstance(role, str) and role in _TOOL_ROLES) or message.get("tool_calls") or message.get("function_call"):
        raise Unusable("tool calls")
    if not isinstance(role, str) or role not in _ROLES:
        raise Unusable("unknown role of a message", f"{str(role)[:40]!r}; known are {', '.join(_ROLES)}")
    return _turn(_ROLES[role], message_text(message))


def message_text(message: dict[str, Any]) -> str:
    """A message's content: text, or a list of parts that are all text."""
    field = first_field(message, ("content", "value", "text"))
    if field is None:
        raise Unusable("a message without content")
    content = message[field]
    if not isinstance(content, list):
        return text_of(message, field)
    return "".join([_part_text(part) for part in content])


def _part_text(part: Any) -> str:
    if isinstance(part, dict) and part.get("type", "text") == "text":
        part = part.get("text", part.get("value"))
    if not isinstance(part, str):
        raise Unusable("content that is not text")
    return part


def reply_text(record: dict[str, Any], field: str) -> str:
    """An answer in a field: text, a message, or the last message of a conversation. Raises Unusable if it is blank."""
    value = record[field]
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1]
    text = message_text(value) if isinstance(value, dict) else text_of(record, field)
    if not text.strip():
        raise Unusable("empty answer")
    return text


def is_transcript(value: Any) -> bool:
    """Whether this is a conversation as HH-RLHF writes it: `\\n\\nHuman: … \\n\\nAssistant: …`."""
    return isinstance(value, str) and _TURN.match(value) is not None


def transcript_turns(transcript: str, account: Account) -> list[Message]:
    """The turns of an HH-RLHF transcript (Bai et al. 2022).

    Raises Unusable where a speaker's label stands inside a turn: who says what is then a guess.
    """
    _, *parts = _TURN.split(transcript)
    turns = [
        _turn("user" if speaker == "Human" else "assistant", text.strip())
        for speaker, text in zip(parts[::2], parts[1::2])
    ]
    if any(_SPEAKER_INSIDE.search(turn["content"]) for turn in turns):
        raise Unusable("'Human:' or 'Assistant:' inside a turn")
    return joined(turns, account)
