"""Settings: dataclasses whose numbers are checked against the ranges that their types name.

@dataclass(frozen=True)
class SomeConfig(Settings):
    rows: PositiveInt = 16
    dropout: Annotated[float, Range(0, 1, without_most=True)] = 0.0
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Annotated, Any, get_type_hints

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
    """Base of dataclasses of settings. Raises UserError for a number that is not in its type's range."""

    def __post_init__(self) -> None:
        for name, allowed in _ranges(type(self)).items():
            value = getattr(self, name)
            if value not in allowed:
                raise UserError(f"{name} is {value}; it must be {allowed}")
