"""The answers that a question lets one choose from: they belong to it, and answers may be given by their labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from instructgpt.data.account import Unusable
from instructgpt.data.fields import Fields, is_filled, text
from instructgpt.data.names import CHOICE_FIELDS, LETTERED_FIELDS
from instructgpt.data.turns import from_json

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_FIRST_LETTER = tuple(pattern.format("A") for pattern in LETTERED_FIELDS)


class Choice(NamedTuple):
    label: str
    """A letter, or what the data call it."""
    text: str


def choices(fields: Fields) -> list[Choice]:
    """The choices of a record; [] if it has none. None of its fields is taken. Raises Unusable for what is no text."""
    for name in fields.present(CHOICE_FIELDS):
        value = from_json(fields.peek(name))
        if isinstance(value, dict) and value:
            inner = Fields(value)
            texts, labels = inner.peek("text"), inner.peek("label")
            if isinstance(texts, list) and isinstance(labels, list) and len(texts) == len(labels):
                return [Choice(text(label, name), text(one, name)) for label, one in zip(labels, texts)]
            return [Choice(label, text(one, name)) for label, one in value.items() if is_filled(one)]
        if isinstance(value, list) and value:
            return [_choice(item, number, name) for number, item in enumerate(value)]
    if not fields.present(_FIRST_LETTER):
        return []
    found = [(letter, name) for letter in _LETTERS[:10] if (name := _letter_field(fields, letter)) is not None]
    if [letter for letter, _ in found[:2]] != ["A", "B"]:
        return []
    return [Choice(letter, text(fields.peek(name), name)) for letter, name in found]


def choice_lines(fields: Fields, said: Sequence[str]) -> list[str]:
    """The choices as one text, each on a line behind its label; [] if there are none, or if `said` has them already."""
    if not (found := choices(fields)):
        return []
    for name in (*CHOICE_FIELDS, *(_letter_field(fields, letter) or "" for letter, _ in found)):
        fields.take(name)
    whole = "\n".join(said)
    if all(re.search(rf"{re.escape(label)}\W{{0,3}}\s*{re.escape(one)}", whole) for label, one in found):
        return []
    return ["\n".join(f"{label}. {one}" for label, one in found)]


def label_of(answer: Any, fields: Fields) -> str | None:
    """The label of the choice at this place, counted from 0, where that is what an answer gives; else None."""
    if isinstance(answer, bool) or not isinstance(answer, int):
        return None
    if not 0 <= answer < len(found := choices(fields)):
        return None
    said = str(answer)
    return None if any(said in choice for choice in found) else found[answer].label


def _choice(item: Any, number: int, name: str) -> Choice:
    letter = _LETTERS[number % len(_LETTERS)]
    if not isinstance(item, dict):
        return Choice(letter, text(item, name))
    inner = Fields(item)
    label, said = inner.first(("label", "key", "id")), inner.first(("text", "content", "value"))
    if said is None:
        raise Unusable(f"an object where text should be, in {name!r}")
    return Choice(text(inner.peek(label), name) if label else letter, text(inner.peek(said), name))


def _letter_field(fields: Fields, letter: str) -> str | None:
    name = fields.first([pattern.format(letter) for pattern in LETTERED_FIELDS])
    return name if name and is_filled(fields.peek(name)) else None
