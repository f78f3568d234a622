"""Sizes of memory: read from a flag, and shown."""

from __future__ import annotations

import re

from instructgpt.errors import UserError, suggestion

_PREFIXES = "KMGTPE"
_UNITS = {"B": 1} | {
    f"{prefix}{letter}": base ** (power + 1)
    for letter, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate(_PREFIXES)
}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", re.ASCII)


def parse_size(flag: str, text: str) -> int:
    """Bytes of `24GB`, `1.5 GiB` or `800mb`; the unit's letters may be small. Errors: UserError, naming the flag."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UserError(f"{flag} {text!r} is not a size: a number and its unit, such as 24GB or 1.5GiB")
    number, unit = match.groups()
    if not unit:
        raise UserError(f"{flag} {text} has no unit: write {number}GB, say, or {number}GiB")
    factor = {name.lower(): bytes for name, bytes in _UNITS.items()}.get(unit.lower())
    if factor is None:
        raise UserError(f"{flag} {text}: the unit {unit!r} is unknown{suggestion(unit, _UNITS)}")
    size = float(number) * factor
    if not 1 <= size < 2**63:
        raise UserError(f"{flag} {text} is no size that a memory has")
    return int(size)


def size_text(size: float) -> str:
    """`24.0 GB`, `37.5 MB`: three digits, in powers of 1000."""
    for unit in (f"{prefix}B" for prefix in reversed(_PREFIXES)):
        if size >= 0.9995 * _UNITS[unit]:
            value = size / _UNITS[unit]
            return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f} {unit}"
    return f"{size:.0f} B"
