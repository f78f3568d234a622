"""Files are written beside their place and renamed into it, so that a kill at any moment leaves a whole file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from instructgpt.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is flushed to disk and takes `path`'s place in one step.

    On failure the temporary file is removed and the old file stays as it was. A full disk is a `UserError`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        kept = "; the file that was there is kept" if path.exists() else ""
        raise UserError(f"cannot be written: {error.strerror or error}{kept}", path) from error
    finally:
        with suppress(OSError):  # the folder itself may be what could not be written to
            temporary.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """UserError unless a file can be written there, to be asked before hours of work; what is there stays as it is."""
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror or error}", path) from error


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
