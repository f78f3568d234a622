"""What an answer is an answer to: the turns, and every field beside them that changes it.

A record with a passage, choices, earlier turns or a system message in fields of their own is asked with all of them.
Where a text stands twice, as where `prompt` repeats the first of the `messages`, it is asked once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from instructgpt.data.account import Account, Unusable, kind_of
from instructgpt.data.choices import choice_lines
from instructgpt.data.fields import Fields, is_filled, text
from instructgpt.data.names import (
    ANSWER_FIELDS,
    CHOSEN_FIELDS,
    HISTORY_FIELD,
    PASSAGE_FIELDS,
    PROMPT_FIELDS,
    REJECTED_FIELDS,
    SYSTEM_FIELDS,
    TURN_FIELDS,
    USER_FIELDS,
)
from instructgpt.data.turns import (
    field_turns,
    is_open_transcript,
    is_transcript,
    joined,
    looks_like_turns,
    parsed,
    turn,
)
from instructgpt.text.chat import Message

_ASKED = (*PROMPT_FIELDS, *USER_FIELDS)
_PROMPT_TURNS = ("prompt", "question", "input")  # which may be texts or turns
_ANSWERS = (*ANSWER_FIELDS, *CHOSEN_FIELDS, *REJECTED_FIELDS)
_TEXTS_OF = ("text", "texts", "content", "contexts", "sentences", "passage_text", "paragraph_text", "passage", "body")
# What people write into an input that should be empty; compared without case and the marks around it.
_PSEUDO_EMPTY = frozenset(("n/a", "none", "noinput", "no input", "ninput", "not applicable", "不适用", "没有", "无"))
_MARKS = " \t\r\n<>[]().`'\""
# In a text that holds prompt and answer, these are a sign of a template that somebody has filled in.
_TEMPLATE_SIGNS = re.compile(r"###|<\||\[INST\]|<s>|\b(?:Human|User|Assistant|Response|Answer|Question|Q|A) ?:")


_NO_CHANCE = 20  # characters of a text that stands in another by design, not by chance


def prompt_turns(fields: Fields, account: Account, answers: Sequence[str] = ()) -> list[Message]:
    """All turns before the answer, or with it where it stands among them; none but the system's if there is no prompt.

    answers: what stands in fields of its own; turns that end with the assistant are then what went before.
    """
    name = turn_field(fields)
    asked = _unique(text_in(fields, field) for field in fields.present(PROMPT_FIELDS) if _is_text(fields, field))
    passages = _passages(fields, name, [*asked, *answers], account)
    if name is not None:
        turns = field_turns(fields, name, account)
        turns = _beside(turns, fields, asked, passages, answers, account)
    elif question := _question(fields, asked, passages):
        turns = [*_history(fields, account), turn("user", question)]
    else:
        turns = _history(fields, account)
    return joined(_with_system(turns, fields), account)


def _with_system(turns: list[Message], fields: Fields) -> list[Message]:
    """The system's own fields go before a system turn."""
    own = [one["content"] for one in turns if one["role"] == "system"]
    said = [text_in(fields, name) for name in fields.present(SYSTEM_FIELDS) if is_filled(fields.peek(name))]
    both = _unique([*said, *own])
    return [turn("system", "\n\n".join(both)), *turns[len(own) :]] if both else turns


# ---- the turns


def turn_field(fields: Fields) -> str | None:
    """The field that holds turns, told by its name and by what is in it."""
    for name in fields.present(TURN_FIELDS):
        value = parsed(fields.peek(name))
        if is_filled(value) and (isinstance(value, (list, dict)) or is_transcript(value)):
            return name
    for name in fields.present(_PROMPT_TURNS):
        value = parsed(fields.peek(name))
        inner = Fields(value).peek("messages") if isinstance(value, dict) else value
        if looks_like_turns(inner) or is_open_transcript(value):
            return name
    if any(_is_text(fields, name) for name in fields.present(_ASKED)):
        return None
    if is_transcript(fields.peek("text")):
        return "text"
    others = [name for name in fields.filled() if looks_like_turns(fields.peek(name)) and not _is_answer(name)]
    if len(others) == 1:
        return others[0]
    # Something that is no list of messages, and nothing else to ask: what is wrong with it will be said.
    return fields.first(("messages", "conversations", "conversation"))


def _is_answer(name: str) -> bool:
    return bool(Fields({name: 0}).present(_ANSWERS))


def _history(fields: Fields, account: Account) -> list[Message]:
    """Earlier turns in a field of their own."""
    value = parsed(fields.peek(HISTORY_FIELD))
    if not is_filled(value) or isinstance(value, str):
        return []
    if not isinstance(value, list):
        raise Unusable(f"{kind_of(value)} where a list of earlier turns should be, in 'history'")
    return field_turns(fields, HISTORY_FIELD, account)


def _beside(
    turns: list[Message],
    fields: Fields,
    asked: list[str],
    passages: list[str],
    answers: Sequence[str],
    account: Account,
) -> list[Message]:
    """The turns with what other fields say besides."""
    said = [one["content"] for one in turns]
    asked, passages = (
        [one for one in texts if not repeats(said, one) and not _renders(one, said)] for texts in (asked, passages)
    )
    if asked and answers and turns[-1]["role"] == "assistant" and not repeats(said, answers[0]):
        return [*turns, turn("user", "\n\n".join([*asked, *passages, *choice_lines(fields, asked)]))]
    if asked:
        account.note("an instruction beside the turns, put before them as a system message")
        turns = [turn("system", "\n\n".join(asked)), *turns]
    turns = _appended(turns, passages, first=True)
    return _appended(turns, choice_lines(fields, said), first=False)


def _appended(turns: list[Message], texts: list[str], first: bool) -> list[Message]:
    """The turns with these texts at the end of the user's first, or last."""
    places = [i for i, one in enumerate(turns) if one["role"] == "user"]
    if not texts or not places:
        return turns
    place = places[0 if first else -1]
    grown = turn("user", "\n\n".join([turns[place]["content"], *texts]))
    return [*turns[:place], grown, *turns[place + 1 :]]


# ---- the text of a prompt


def _question(fields: Fields, asked: list[str], passages: list[str]) -> str:
    """Instruction, input, passages and choices, an empty line between them."""
    if not asked and not passages:
        alone = fields.first(USER_FIELDS)
        asked = [text_in(fields, alone)] if alone and _is_text(fields, alone) else []
    parts = [*asked, *passages]
    return "\n\n".join([*parts, *choice_lines(fields, parts)]) if parts else ""


def _passages(fields: Fields, turn_field: str | None, parts: Sequence[str], account: Account) -> list[str]:
    """The texts beside an instruction; an input such as "n/a" is none. `parts`: instruction and answers."""
    found: list[str] = []
    for name in fields.present(PASSAGE_FIELDS):
        if not is_filled(fields.peek(name)) or fields.is_same(name, turn_field):
            continue
        passage = passage_text(fields, name)
        if passage.strip(_MARKS).casefold() in _PSEUDO_EMPTY:
            account.note("an input that says there is none, taken as empty")
        elif name == "input" or not (_renders(passage, parts) or repeats([*parts, *found], passage)):
            found.append(passage)
    return found


def text_in(fields: Fields, name: str) -> str:
    """The text in a field, also as the one item of a list."""
    value = fields.take(name)
    return text(value[0] if isinstance(value, list) and len(value) == 1 else value, name)


def passage_text(fields: Fields, name: str) -> str:
    """A field's text, or the texts in it, an empty line between them."""
    texts = _texts(fields.take(name), name)
    return "\n\n".join(one for one in texts if one.strip())


def _texts(value: Any, name: str) -> list[str]:
    if isinstance(value, list):
        return [one for item in value for one in _texts(item, name)]
    if isinstance(value, dict):
        inner = Fields(value)
        within = inner.first(_TEXTS_OF)
        if within is None:
            raise Unusable(f"an object where text should be, in {name!r}")
        title = inner.peek("title")
        return [*([title] if isinstance(title, str) else []), *_texts(inner.peek(within), name)]
    return [] if value is None else [text(value, name)]


def _is_text(fields: Fields, name: str) -> bool:
    """Whether this is to be read as a text: it is no list of turns, and no transcript."""
    value = parsed(fields.peek(name))
    return is_filled(value) and not (isinstance(value, dict) or looks_like_turns(value) or is_open_transcript(value))


# ---- one text in another


def plain(words: str) -> str:
    """A text with each stretch of white space as one space, to be compared."""
    return " ".join(words.split())


def repeats(texts: Iterable[str], one: str) -> bool:
    """Whether one of the texts is this one, or has it in it where it is too long for that to be chance."""
    sought = plain(one)
    return any(sought == found or (len(sought) >= _NO_CHANCE and sought in found) for found in map(plain, texts))


def _renders(whole: str, parts: Sequence[str]) -> bool:
    """Whether a text is all these parts put into a template, as the `text` of Alpaca is."""
    if len(parts) < 2 or not _TEMPLATE_SIGNS.search(whole):
        return False
    found = plain(whole)
    return all(plain(part) in found for part in parts)


def _unique(texts: Iterable[str]) -> list[str]:
    """The texts that say something, but for those that another one of them repeats."""
    found: list[str] = []
    for one in texts:
        if one.strip() and not repeats(found, one):
            found = [*(other for other in found if not repeats([one], other)), one]
    return found
