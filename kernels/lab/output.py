"""What the lab's commands print and write."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def program() -> str:
    """The lab as it was called, to be copied: `.venv/bin/python -m kernels.lab`."""
    return f"{shlex.quote(sys.orig_argv[0])} -m kernels.lab"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their longest cell; those of numbers aligned to the right."""
    columns = list(zip(heads, *rows))
    widths = [max(map(len, column)) for column in columns]
    right = [any(cell[:1].isdigit() for cell in column[1:]) for column in columns]
    lines = [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in zip(row, widths, right)
        )
        for row in (heads, *rows)
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]])


def to_json(value: Any, indent: int | None = 2) -> str:
    """`value` as JSON that every reader takes: what is no finite number is null, what is no JSON value its text."""

    def finite(value: Any) -> Any:
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else None
        if isinstance(value, dict):
            return {str(key): finite(item) for key, item in value.items()}
        return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value

    return json.dumps(finite(value), indent=indent, allow_nan=False, default=str)


def write_json(path: Path, value: Any) -> None:
    """Writes beside `path` and renames, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(to_json(value) + "\n", encoding="utf-8")
    os.replace(temporary, path)
