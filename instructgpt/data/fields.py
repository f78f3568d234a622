"""A record as its readers see it: names without case, null as absent, and a memory of what was taken out of it.

What is filled and was never taken is told in the account as not used. So a field that somebody put something into is
either part of what is trained on, or said not to be; no list of names says what may be passed over in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any


class Fields:
    """The fields of a record, or of an object in one.

    A name finds its field whatever its case, its spaces, hyphens and underscores: `system_prompt` finds `systemPrompt`
    and `System Prompt`. The very spelling comes first, then the others in the order of the alphabet, a filled one
    before an empty one. A field that holds null (or NaN, which tables have for it) is absent.
    """

    def __init__(self, record: Mapping[str, Any]):
        self.names = list(record)
        """As they are spelled, in order, those of absent fields too."""
        self._values = {name: value for name, value in record.items() if value is not None and value == value}
        self._spellings: dict[str, list[str]] = {}
        for name in sorted(self._values):
            self._spellings.setdefault(_folded(name), []).append(name)
        self._taken: set[str] = set()
        self._inner: list[tuple[str, Fields]] = []

    def __contains__(self, name: str) -> bool:
        return self._spelled(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def filled(self) -> list[str]:
        """The fields that hold something, in the record's order."""
        return [name for name, value in self._values.items() if is_filled(value)]

    def peek(self, name: str) -> Any:
        """The field's value, None if it is absent; it does not count as used."""
        spelled = self._spelled(name)
        return None if spelled is None else self._values[spelled]

    def take(self, name: str) -> Any:
        """The field's value, None if it is absent; from now on it counts as used."""
        spelled = self._spelled(name)
        if spelled is None:
            return None
        self._taken.add(spelled)
        return self._values[spelled]

    def first(self, names: Iterable[str]) -> str | None:
        """The first of these fields that is filled; if none is, the first that is there at all."""
        present = [name for name in names if name in self]
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
        if name in self._values and is_filled(self._values[name]):
            return name
        found = self._spellings.get(_folded(name), ())
        if name in found:
            found = [name, *found]
        return next((one for one in found if is_filled(self._values[one])), found[0] if found else None)


def is_filled(value: Any) -> bool:
    """Whether a value says anything: not null, no blank text, no empty list and no empty object."""
    if isinstance(value, str):
        return not value.isspace() and value != ""
    return value is not None and value != [] and value != {}


@lru_cache(4096)
def _folded(name: str) -> str:
    return name.casefold().translate(_IGNORED) or name


_IGNORED = str.maketrans("", "", " _-")
