"""From a record to turns: what the readers of instructions and of preferences share."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from instructgpt.data.account import Account, Unusable, kind_of, names_of
from instructgpt.data.data_file import DataFile
from instructgpt.data.fields import Fields
from instructgpt.data.files import read_records
from instructgpt.data.tables import Unreadable
from instructgpt.data.templates import Template, Templates
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


def convert_files(
    files: Iterable[DataFile | str | Path],
    account: Account,
    strict: bool,
    convert: Callable[[Fields, Templates], Iterable[T | Unusable]],
    unique: bool = False,
) -> Iterator[T]:
    """What `convert` makes of each record of the files, in order, with every record accounted for.

    unique: what is exactly equal to something before, by `account.seen`, is left out; else it is kept and noted.
    Raises UserError with FILE:LINE where a file has nothing usable, if `strict`, at the first unusable record, and for
    a template with a field that no record has.
    """
    for file in map(DataFile.of, files):
        path, names = file.path, set[str]()
        seen, usable, first = 0, 0, None
        for line, record in read_records(path, file.columns, file.encoding):
            account.read += 1
            seen += 1
            fields, results = _results(record, file.templates, convert)
            names.update(fields.names)
            if not all(isinstance(result, Unusable) for result in results):
                account.not_used.update(fields.unused())
            for result in results:
                if isinstance(result, Unusable):
                    complaint = f"{result.reason}{result.detail and f'; {result.detail}'}"
                    if strict:
                        raise UserError(complaint, path, line)
                    first = first or (complaint, line)
                    account.drop(result.reason, path, line)
                    continue
                usable += 1
                key = hash(repr(result))
                if key in account.seen and unique:
                    account.drop("exact duplicate", path, line)
                    continue
                if key in account.seen:
                    account.note("exact duplicate, kept")
                account.seen.add(key)
                account.kept += 1
                yield result
            if not usable and seen == _PATIENCE:
                break
        if not usable:
            complaint, line = first or ("holds nothing", 1)
            raise UserError(f"{complaint}; none of the first {seen:,} record(s) is usable", path, line)
        file.templates.require_known(names, path)


def _results(
    record: Any, templates: Templates, convert: Callable[[Fields, Templates], Iterable[T | Unusable]]
) -> tuple[Fields, list[T | Unusable]]:
    """A record's fields, and what `convert` makes of them."""
    fields = Fields(record if isinstance(record, dict) else {})
    try:
        if isinstance(record, Unreadable):
            raise Unusable(record.reason)
        if not isinstance(record, dict):
            raise Unusable(f"{kind_of(record)} where a record should be")
        return fields, list(convert(fields, templates))
    except Unusable as unusable:
        return fields, [unusable]


def attempt(make: Callable[..., T], *arguments: Any) -> T | Unusable:
    """What `make` returns, or the Unusable that it raises: one bad half does not spoil the other."""
    try:
        return make(*arguments)
    except Unusable as unusable:
        return unusable


def text_of(fields: Fields, name: str) -> str:
    """The text in a field. Raises Unusable when the field is missing or holds something else."""
    if name not in fields:
        kind = f"null where text should be, in {name!r}" if name in fields.names else f"no field {name!r}"
        raise Unusable(kind, f"it has {names_of(fields)}")
    return text(fields.take(name), name)


def text(value: Any, name: str) -> str:
    """A value as text; numbers and truth values are written out as in JSON. Raises Unusable for lists and objects."""
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if not isinstance(value, str):
        raise Unusable(f"{kind_of(value)} where text should be, in {name!r}")
    return value


def optional_text(fields: Fields, name: str) -> str:
    """The text in a field; "" when there is no such field, or null in it."""
    return text_of(fields, name) if name in fields else ""


def unknown_format(fields: Fields, known: str) -> Unusable:
    return Unusable("none of the known formats", f"it has {names_of(fields)}; known are {known}")


# ---- prompts


def alpaca_prompt(record: Fields, account: Account, prefix: str = "") -> str:
    """Instruction and input, an empty line between them; an input such as "n/a" is none."""
    field = record.first([prefix + name for name in PROMPT_FIELDS])
    if field is None:
        raise Unusable("no prompt", f"it has {names_of(record)}, none of {', '.join(PROMPT_FIELDS)}")
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


def prompt_turns(record: Fields, account: Account) -> list[Message]:
    """All turns of a record but the answer, which stands in a field of its own. The last one is the user's."""
    field = record.first(("messages", "conversations"))
    if field is None and isinstance(record.peek("prompt"), list):
        field = "prompt"
    turns = _alpaca_turns(record, account) if field is None else field_turns(record, field, account)
    if not turns or turns[-1]["role"] != "user":
        raise Unusable("a prompt that does not end with the user's turn")
    return turns


def _alpaca_turns(record: Fields, account: Account) -> list[Message]:
    system = optional_text(record, "system")
    turns = [_turn("system", system)] if system.strip() else []
    history = record.take("history") or []  # earlier turns: [[question, answer], …]
    if not isinstance(history, list):
        raise Unusable(f"{kind_of(history)} where a list of earlier turns should be, in 'history'")
    for pair in history:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise Unusable("an earlier turn in 'history' that is no pair of texts")
        turns += [_turn("user", pair[0]), _turn("assistant", pair[1])]
    return joined([*turns, _turn("user", alpaca_prompt(record, account))], account)


def templated_prompt(record: Fields, template: Template, account: Account) -> list[Message]:
    """The turns that --prompt makes of a record; a field that is a list of messages is taken as such."""
    only = template.only
    value = only.value(record) if only else None
    if only and isinstance(value, list) and any(isinstance(item, dict) for item in value):
        turns = field_turns(Fields({only.path: value}), only.path, account)
    else:
        turns = joined([_turn("user", template.fill(record))], account)
    if not turns or turns[-1]["role"] != "user":
        raise Unusable("a prompt that does not end with the user's turn")
    return turns


def templated_answer(record: Fields, template: Template) -> str:
    """The answer that a template makes of a record; of a message or a list of them, the last one's text."""
    only = template.only
    value = only.value(record) if only else None
    if only and (isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[-1], dict))):
        return reply_text(Fields({only.path: value}), only.path)
    if not (answer := template.fill(record)).strip():
        raise Unusable("empty answer")
    return answer


def with_system(turns: list[Message], record: Fields, templates: Templates) -> list[Message]:
    """The turns behind the system message that --system makes, if there is one: it takes the place of theirs."""
    system = templates.system.fill(record) if templates.system else ""
    if not system.strip():
        return turns
    return [_turn("system", system), *(turn for turn in turns if turn["role"] != "system")]


def field_turns(record: Fields, field: str, account: Account) -> list[Message]:
    """Chat (`role`, `content`) or ShareGPT (`from`, `value`) messages as turns that alternate, system first.

    Turns of one role in a row are joined. Raises Unusable for tool calls, unknown roles, content that is not text,
    empty turns, a system turn that is not first, and a first turn of the assistant.
    """
    messages = record.take(field)
    if not isinstance(messages, list):
        raise Unusable(f"{kind_of(messages)} where a list of messages should be")
    return joined([_message(record, field, message) for message in messages], account)


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


def _message(record: Fields, field: str, value: Any) -> Message:
    if not isinstance(value, dict):
        raise Unusable(f"{kind_of(value)} where a message should be")
    message = record.inner(field, value)
    name = message.first(("role", "from"))
    role = message.take(name) if name else None
    if (isinstance(role, str) and role in _TOOL_ROLES) or message.peek("tool_calls") or message.peek("function_call"):
        raise Unusable("tool calls")
    if not isinstance(role, str) or role not in _ROLES:
        raise Unusable("unknown role of a message", f"{str(role)[:40]!r}; known are {', '.join(_ROLES)}")
    return _turn(_ROLES[role], message_text(message))


def message_text(message: Fields) -> str:
    """A message's content: text, or a list of parts that are all text."""
    field = message.first(("content", "value", "text"))
    if field is None:
        raise Unusable("a message without content")
    content = message.take(field)
    if not isinstance(content, list):
        return text(content, field)
    return "".join([_part_text(part) for part in content])


def _part_text(part: Any) -> str:
    if isinstance(part, dict) and part.get("type", "text") == "text":
        part = part.get("text", part.get("value"))
    if not isinstance(part, str):
        raise Unusable("content that is not text")
    return part


def reply_text(record: Fields, field: str) -> str:
    """An answer in a field: text, a message, or the last message of a conversation. Raises Unusable if it is blank."""
    value = record.take(field)
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1]
    if isinstance(value, dict):
        message = record.inner(field, value)
        for name in ("role", "from"):
            message.take(name)
        answer = message_text(message)
    else:
        answer = text_of(record, field)
    if not answer.strip():
        raise Unusable("empty answer")
    return answer


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
