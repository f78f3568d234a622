"""The one place where JSON is written: what lands in a file is JSON everywhere.

Python's own writer puts out NaN, Infinity and lone surrogates, which no other reader takes.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from instructgpt.atomic import write_text

_SURROGATE = re.compile("[\ud800-\udfff]")


def to_json(value: Any, indent: int | None = None) -> str:
    """`value` as JSON text: a number that is not finite is null, half a character its escape; all else as it is.

    Raises TypeError for what JSON has no form for.
    """
    text = json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def write_json(path: str | Path, value: Any) -> None:
    """Writes a JSON file, indented for people, atomically."""
    write_text(Path(path), to_json(value, indent=2) + "\n")


def write_json_lines(path: str | Path, values: Any) -> None:
    """Writes a file with a JSON value a line, atomically."""
    write_text(Path(path), "".join(to_json(value) + "\n" for value in values))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None  # NumPy's float64 is a float, and prints otherwise
    if isinstance(value, dict):
        # A key is always a text; one that is no finite number would be written as NaN.
        return {str(k) if isinstance(k, float) else k: _finite(item) for k, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
