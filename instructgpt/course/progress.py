"""What a student has done so far: a small file, which two checks at once, a kill and the student's code leave whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from instructgpt.errors import UserError
from instructgpt.strict_json import write_json

PROGRESS = "progress.json"
FIELDS = {"tries": int, "solved": bool, "hints": int, "seen": bool}
"""What is known of an exercise: how often it was checked, whether it was right, hints given, whether ours was shown."""

Progress = dict[str, dict[str, Any]]


def read(folder: Path) -> Progress:
    """By exercise: what `FIELDS` says, and what other versions have noted. UserError for what is no such record."""
    path = folder / PROGRESS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise _broken(path, str(error)) from None
    if not isinstance(found, dict) or not all(isinstance(entry, dict) for entry in found.values()):
        raise _broken(path, "it should have an object for each exercise")
    for name, entry in found.items():
        for field, kind in FIELDS.items():
            if type(value := entry.get(field, kind())) is not kind or value < 0:
                raise _broken(path, f"{field} of {name} is {value!r}, and should be {kind.__name__}")
    return found


def _broken(path: Path, why: str) -> UserError:
    return UserError(f"is no record of progress, or one of a newer version: {why}; move it away to begin anew", path)


def note(folder: Path, name: str, before: Mapping[str, dict[str, Any]] | None = None, **news: Any) -> None:
    """Writes what is new of an exercise into the record. `tries` counts one more.

    before: the record as it was before a student's code ran, which may have spoilt it.
    """
    with _alone(folder):
        try:
            progress = {**(before or {}), **read(folder)}
        except UserError:
            if before is None:
                raise
            progress = dict(before)
        entry = progress.get(name, {})
        if "tries" in news:
            news["tries"] += entry.get("tries", 0)
        progress[name] = entry | news
        write_json(folder / PROGRESS, progress)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Inside, no other process is inside for the same folder, where the system has such locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot be written to: {error.strerror}", folder) from None
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)
