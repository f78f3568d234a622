"""Settings: dataclasses whose types say more than Python's: in which range a number is, that a text names a file.

@dataclass(frozen=True)
class SomeConfig(Settings):
    out: FilePath = ""
    rows: PositiveInt = 16
    dropout: Annotated[float, Range(0, 1, without_most=True)] = 0.0
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache
from os.path import expanduser
from typing import Annotated, Any, get_args, get_type_hints

from instructgpt.errors import UserError


@dataclass(frozen=True)
class Range:
    """An interval of numbers; NaN is in none."""

    least: float
    most: float = math.inf
    without_least: bool = False
    without_most: bool = False

    def __contains__(self, value: float) -> bool:
        above = self.least < value if self.without_least else self.least <= value
        return above and (value < self.most if self.without_most else value <= self.most)

    def __str__(self) -> str:
        below = "below" if self.without_most else "at most"
        lower = f"{'above' if self.without_least else 'at least'} {self.least:g}"
        return lower if self.most == math.inf else f"{lower} and {below} {self.most:g}"


PositiveInt = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, without_least=True, without_most=True)]
NonNegative = Annotated[float, Range(0, without_most=True)]
Share = Annotated[float, Range(0, 1)]
ShareBelow1 = Annotated[float, Range(0, 1, without_most=True)]


FilePath = Annotated[str, "path"]
"""A text that names a file or a directory, or is a word that stands for one, as `world` does.

A leading `~` is the home folder, as in a shell, which does not expand it in `--out=~/runs`.
"""


def _at_home(path: str) -> str:
    """The path with its `~` expanded; of two files side by side, `en.gz+fr.gz`, each."""
    return "+".join(map(expanduser, path.split("+")))


@lru_cache
def _paths(settings: type) -> tuple[str, ...]:
    hints: dict[str, Any] = get_type_hints(settings, include_extras=True)
    return tuple(one.name for one in fields(settings) if _is_path(hints[one.name]))


def _is_path(kind: Any) -> bool:
    """Whether a field's type is `FilePath`, with whatever else is said of it, or has it inside."""
    return "path" in getattr(kind, "__metadata__", ()) or any(map(_is_path, get_args(kind)))


@lru_cache
def _ranges(settings: type) -> dict[str, Range]:
    found: dict[str, Range] = {}
    hints: dict[str, Any] = get_type_hints(settings, include_extras=True)
    for one in fields(settings):
        for note in getattr(hints[one.name], "__metadata__", ()):
            if isinstance(note, Range):
                found[one.name] = note
    return found


class Settings:
    """Base of dataclasses of settings. Raises UserError for a number that is not in its type's range; finds homes."""

    def __post_init__(self) -> None:
        for name in _paths(type(self)):
            value = getattr(self, name)
            found = _at_home(value) if isinstance(value, str) else tuple(map(_at_home, value))
            object.__setattr__(self, name, found)  # the dataclass is frozen
        for name, allowed in _ranges(type(self)).items():
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise UserError(f"{name} is {value}; it must be {allowed}")
