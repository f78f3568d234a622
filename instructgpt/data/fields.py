"""A record as its readers see it: names without case, null as absent, and a memory of what was taken out of it.

What is filled and was never taken is told in the account as not used. So a field that somebody put something into is
either part of what is trained on, or said not to be; no list of names says what may be passed over in silence.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from instructgpt.data.account import Unusable, kind_of


class Fields:
    """The fields of a record, or of an object in one.

    A name finds its field whatever its case, its spaces, hyphens and underscores: `system_prompt` finds `systemPrompt`
    and `System Prompt`. The very spelling comes first, then the others in the order of the alphabet, a filled one
    before an empty one. A field that holds null (or NaN, which tables have for it) is absent.
    """

    def __init__(self, record: Mapping[str, Any]):
        self.names = tuple(record)
        """As they are spelled, in order, those of absent fields too."""
        self.values = {name: value for name, value in record.items() if value is not None and value == value}
        """Those of the fields that are there, in order; what is read here does not count as used."""
        self._spellings = _spellings(self.names)
        self._taken: set[str] = set()
        self._inner: list[tuple[str, Fields]] = []
        self._pattern = "{}"

    def within(self, pattern: str) -> Fields:
        """The same record, where `instruction` finds `en_instruction` for the pattern `en_{}`; both remember as one."""
        view = copy.copy(self)
        view._pattern = pattern
        return view

    def __contains__(self, name: Any) -> bool:
        return self._spelled(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def filled(self) -> list[str]:
        """The fields that hold something, in the record's order."""
        return [name for name, value in self.values.items() if is_filled(value)]

    def peek(self, name: str) -> Any:
        """The field's value, None if it is absent; it does not count as used."""
        spelled = self._spelled(name)
        return None if spelled is None else self.values[spelled]

    def take(self, name: str) -> Any:
        """The field's value, None if it is absent; from now on it counts as used."""
        spelled = self._spelled(name)
        if spelled is None:
            return None
        self._taken.add(spelled)
        return self.values[spelled]

    def is_taken(self, name: str) -> bool:
        return self._spelled(name) in self._taken

    def is_same(self, name: str, other: str | None) -> bool:
        """Whether both names find one field."""
        found = self._spelled(name)
        return found is not None and other is not None and found == self._spelled(other)

    def present(self, names: Iterable[str]) -> list[str]:
        """Those of these fields that are there."""
        asked = tuple(names)
        return [name for name in _candidates(self.names, asked, self._pattern) if name in self]

    def first(self, names: Iterable[str]) -> str | None:
        """The first of these fields that is filled; if none is, the first that is there at all."""
        present = self.present(names)
        return next((name for name in present if is_filled(self.peek(name))), present[0] if present else None)

    def inner(self, name: str, value: Mapping[str, Any]) -> Fields:
        """An object in this field, which is taken; what is taken of the object is remembered as `name.field`."""
        self.take(name)
        inner = Fields(value)
        self._inner.append((self._spelled(name) or name, inner))
        return inner

    def unused(self) -> set[str]:
        """The fields that are filled and were not taken; those of inner objects with a dot, as in `messages.name`."""
        own = {name for name in self.filled() if name not in self._taken}
        return own.union(*({f"{name}.{field}" for field in inner.unused()} for name, inner in self._inner))

    def _spelled(self, name: str) -> str | None:
        if self._pattern != "{}":
            name = self._pattern.replace("{}", name)
        if is_filled(self.values.get(name)):
            return name
        found = [one for one in self._spellings.get(_folded(name), ()) if one in self.values]
        if name in found:
            found = [name, *found]
        return next((one for one in found if is_filled(self.values[one])), found[0] if found else None)


# The records of a file have few different sets of names: what is to be found out of names alone is so once for each.


@lru_cache(1024)
def _spellings(names: tuple[str, ...]) -> dict[str, list[str]]:
    """The names that are the same but for case and signs, in the order of the alphabet."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        found.setdefault(_folded(name), []).append(name)
    return found


@lru_cache(4096)
def _candidates(names: tuple[str, ...], asked: tuple[str, ...], pattern: str) -> tuple[str, ...]:
    """Those of the names asked for that a record of these names can have."""
    spellings = _spellings(names)
    return tuple(name for name in asked if _folded(pattern.replace("{}", name)) in spellings)


def is_filled(value: Any) -> bool:
    """Whether a value says anything: not null, no blank text, no empty list and no empty object."""
    if isinstance(value, str):
        return not value.isspace() and value != ""
    return value is not None and value != [] and value != {}


def text(value: Any, name: str) -> str:
    """A value as text; numbers and truth values are written out as in JSON. Raises Unusable for lists and objects."""
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if not isinstance(value, str):
        raise Unusable(f"{kind_of(value)} where text should be, in {name!r}")
    return value


def truth(value: Any) -> bool | None:
    """Yes or no, as people write it in data: true, 1, "yes", "good"; false, 0, "no", "bad". None if it is neither."""
    if isinstance(value, str):
        word = value.strip().casefold()
        try:
            value = float(word)
        except ValueError:
            return _WORDS.get(word)
    if isinstance(value, (bool, int, float)):
        return True if value == 1 else False if value in (0, -1) else None
    return None


_WORDS = {
    **dict.fromkeys(("true", "t", "yes", "y", "on", "good", "positive", "chosen", "accepted", "correct"), True),
    **dict.fromkeys(("desirable", "preferred", "right", "thumbs_up", "up", "👍"), True),
    **dict.fromkeys(("false", "f", "no", "n", "off", "bad", "negative", "rejected", "incorrect", "wrong"), False),
    **dict.fromkeys(("undesirable", "dispreferred", "thumbs_down", "down", "👎"), False),
}


@lru_cache(4096)
def _folded(name: str) -> str:
    return name.casefold().translate(_IGNORED) or name


_IGNORED = str.maketrans("", "", " _-")
