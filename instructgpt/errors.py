"""The one exception that stands for a user's mistake."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """Something the user gave is wrong; told in one line, exit code 2, no traceback.

    `where` is a file, or a file and a line (1-based); the line then reads
    `error: FILE:LINE: what is wrong, what would be right`.
    """

    def __init__(self, message: str, where: str | Path | None = None, line: int | None = None):
        place = "" if where is None else f"{where}: " if line is None else f"{where}:{line}: "
        super().__init__(" ".join(f"{place}{message}".splitlines()))


def suggestion(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest known word, or the whole choice when none is near."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; choose one of: {', '.join(known)}"
