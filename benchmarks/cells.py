"""What the documents' tables are made of: rows of texts, and how figures are written in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Found = dict[str, Any]
"""What a benchmark wrote."""
Rows = list[tuple[str, ...]]
"""The first is the header."""


def plus_minus(score: Found) -> str:
    low, high = score["interval"]
    return f"{score['score']:.3f} ±{(high - low) / 2:.3f}"


def within(interval: Sequence[float], form: str = ".3f") -> str:
    low, high = interval
    return f"{low:{form}} to {high:{form}}"


def short(value: float) -> str:
    """A time or a ratio with three digits that mean something."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"
