"""Memory that is not enough: the numbers that the allocators give, in one line."""

from __future__ import annotations

import os
import re
from pathlib import Path

from instructgpt.errors import UserError
from instructgpt.sizes import parse_size, size_text

_WORDS = re.compile(
    "out of memory|can't allocate memory|not enough memory|unable to allocate|cannot allocate memory|ALLOC_FAILED",
    re.IGNORECASE,
)
"""Of CUDA, its libraries and MPS; of PyTorch on a CPU (Linux, Windows); of numpy; of the system."""
_ASKED = re.compile(r"(?:tried|unable) to allocate ([0-9.]+) ?(\w+)", re.IGNORECASE)
_FREE = re.compile(r"of which ([0-9.]+) (\w+) is free")
_ALLOWED = re.compile(r"([0-9.]+) (\w+) allowed|max allowed: ([0-9.]+) (\w+)")
_TOTAL = re.compile(r"total capacity of ([0-9.]+) (\w+)")


def shortage(error: BaseException) -> str:
    """What was asked for and what was there, if `error` is an allocator's; empty for any other error."""
    if not isinstance(error, (RuntimeError, MemoryError)):
        return ""
    text = str(error)
    if not (isinstance(error, MemoryError) or _WORDS.search(text)):
        return ""
    on_gpu = "CUDA" in text or "MPS" in text
    told = [f"{asked} more were asked for"] if (asked := _size(_ASKED, text)) else []
    free = _size(_FREE, text) if on_gpu else _free_memory()
    if allowed := _size(_ALLOWED, text):
        told.append(f"{allowed} are allowed")
    if free:
        total = _size(_TOTAL, text)
        told.append(f"{free} were free" + (f" of {total}" if total else ""))
    where = "on the GPU" if on_gpu else "in main memory"
    return f"out of memory {where}" + (": " + ", ".join(told) if told else "")


def _size(pattern: re.Pattern[str], text: str) -> str:
    """The size that the pattern finds, in our words; empty where it finds none."""
    if (match := pattern.search(text)) is None:
        return ""
    number, unit = (group for group in match.groups() if group)
    try:
        return size_text(parse_size("", number.rstrip(".") + ("B" if unit == "bytes" else unit)))
    except UserError:  # 0 bytes, or a unit that is none
        return ""


def _free_memory() -> str:
    """Main memory that programs can have without making others swap; empty where the system does not say."""
    try:
        found = re.search(r"MemAvailable:\s*([0-9]+) kB", Path("/proc/meminfo").read_text())
        free = int(found[1]) * 1024 if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return ""
    return size_text(free)
