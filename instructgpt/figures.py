"""Figures as people read them: rounded, never in powers of ten, and in files that any reader of JSON takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instructgpt import strict_json

_DECIMALS = 6
"""A score, a loss or a time has no more digits that mean something; what is below is noise of the arithmetic."""
_SMALL = 1e-4
"""Below it a figure would be written in powers of ten; it is rounded to four decimals."""
_HUGE = 1e15


def tidy(value: Any) -> Any:
    """Figures, nested in lists and dictionaries as they may be, to six decimals: a BLEU of 3e-08 is 0.0. What is no
    number or infinite is None, for JSON knows neither."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        rounded = round(value, _DECIMALS)
        return (rounded if abs(rounded) >= _SMALL else round(value, 4)) + 0.0  # + 0.0: there is no -0.0
    if isinstance(value, Mapping):
        return {key: tidy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [tidy(item) for item in value]
    return value


def shown(value: float) -> str:
    """A figure for a table or a log, with at most four digits and four decimals."""
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= _HUGE:
        return f"{'-' if value < 0 else ''}over 10^{math.log10(_HUGE):.0f}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return str(float(f"{round(value, 4):.4g}") + 0.0)


def write_json(path: str | Path, values: Any) -> None:
    """Writes results as JSON, `tidy`. UserError when it cannot be written; what was there is kept then."""
    strict_json.write_json(path, tidy(values))
