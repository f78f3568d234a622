"""What was read from files, what of it was kept, and why the rest was not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any


class Unusable(Exception):
    """A record, or part of one, that cannot be used. `reason` is counted; `detail` is told when it ends in an error."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


class OtherFormat(Unusable):
    """A record that has none of the fields that its reader knows."""


def kind_of(value: Any) -> str:
    """A JSON value's kind, as one would say it."""
    if value is None:
        return "null"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return kinds.get(type(value), type(value).__name__)


def names_of(record: Collection[Any]) -> str:
    """A record's fields, to be told; those that hold null are absent, and said to be null."""
    names = ", ".join(str(name)[:40] + (" (null)" if name not in record else "") for name in list(record)[:10])
    return f"the fields {names}" if names else "no fields"


_NAMES = 30  # of fields not used, in a report


class Account:
    """Counts while files are read; `report` says them.

    read: records; kept: conversations or pairs made of them (a bilingual record makes two);
    dropped: what could not be used, by reason; notes: what is odd or was changed, by kind;
    not_used: fields that were filled in so many of the records kept, and took no part in what was made of them.
    """

    def __init__(self, name: str = "", seen: set[int] | None = None):
        """seen: what was kept of files read before, so that duplicates across files are found; it is added to."""
        self.name = name
        self.seen = seen if seen is not None else set[int]()
        self.read = 0
        self.kept = 0
        self.dropped: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.not_used: Counter[str] = Counter()
        self._first: dict[str, str] = {}  # reason -> FILE:LINE of the first that was dropped for it

    def drop(self, reason: str, where: str | Path, line: int) -> None:
        """One conversation or pair that was in a record and could not be used."""
        self.dropped[reason] += 1
        self._first.setdefault(reason, f"{where}:{line}")

    def note(self, kind: str) -> None:
        """Something odd, or changed on reading, in a record kept or not."""
        self.notes[kind] += 1

    def add(self, other: Account) -> None:
        """Add another account's counts to this one's."""
        self.read += other.read
        self.kept += other.kept
        self.dropped += other.dropped
        self.notes += other.notes
        self.not_used += other.not_used
        self._first = {**other._first, **self._first}

    def report(self) -> str:
        """One paragraph: totals, a line for each reason and each note, the fields not used; the most frequent first."""
        name = f"{self.name}: " if self.name else ""
        lines = [f"{name}{self.read:,} records read, {self.kept:,} kept, {self.dropped.total():,} dropped"]
        lines += [f"  dropped {n:,}: {reason} (first at {self._first[reason]})" for reason, n in _ranked(self.dropped)]
        lines += [f"  noted {n:,}: {kind}" for kind, n in _ranked(self.notes)]
        if self.not_used:
            names = [f"{name} ({n:,})" for name, n in _ranked(self.not_used)]
            more = [f"{len(names) - _NAMES} others"] if len(names) > _NAMES else []
            lines.append(f"  not used: {', '.join(names[:_NAMES] + more)}")
        return "\n".join(lines)


def _ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    """By count, then by name, so that the report does not depend on the order of the files."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
