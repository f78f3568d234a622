r"""Regular expressions, as expressions of bytes (`grammar.py`).

Read are literals, `.`, classes, groups, `|`, `* + ? {m,n}`, and `^` and `$` at the ends. Where dialects differ
(Python's and JavaScript's `\d`, `\w`, `\s`, `.`), what is read is what all of them match: ASCII for a class, what
nobody's class has for its complement. What a text cannot be made from (look-around, references, flags) is refused.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from instructgpt.errors import UserError
from instructgpt.generation.grammar import EMPTY, NEVER, Expression, Repeat, Sequence, choice, sequence, span

Ranges = tuple[tuple[int, int], ...]
"""A set of characters: rising, separate ranges of code points, ends included. No surrogates."""

ALL: Ranges = ((0, 0xD7FF), (0xE000, sys.maxunicode))
MOST_REPEATS = 100_000
_DEEPEST = 100


def united(ranges: list[tuple[int, int]]) -> Ranges:
    found: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return tuple(found)


def without(ranges: Ranges, taken: Ranges) -> Ranges:
    found: list[tuple[int, int]] = []
    places = iter(taken)
    hole = next(places, None)
    for low, high in ranges:
        while hole and hole[0] <= high:
            if hole[1] >= low:
                if low < hole[0]:
                    found.append((low, hole[0] - 1))
                low = hole[1] + 1
            if hole[1] > high:
                break  # it may reach into the next range
            hole = next(places, None)
        if low <= high:
            found.append((low, high))
    return tuple(found)


def characters(text: str) -> Ranges:
    return united([(ord(each), ord(each)) for each in text])


@lru_cache(maxsize=256)
def utf8(ranges: Ranges) -> Expression:
    """One character of a set, in UTF-8."""
    return choice(*[sequence(*[span(a, b) for a, b in zip(low, high)])
                    for each in ranges for low, high in _byte_ranges(*each)]) if ranges else NEVER  # fmt: skip


def _byte_ranges(low: int, high: int) -> list[tuple[bytes, bytes]]:
    """The range in parts whose bytes can be chosen one by one."""
    for last in (0x7F, 0x7FF, 0xFFFF):
        if low <= last < high:
            return _byte_ranges(low, last) + _byte_ranges(last + 1, high)
    if high > 0x7F:
        for bits in (6, 12, 18):
            rest = (1 << bits) - 1
            if low | rest != high | rest:
                if low & rest:
                    return _byte_ranges(low, low | rest) + _byte_ranges((low | rest) + 1, high)
                if high & rest != rest:
                    return _byte_ranges(low, (high & ~rest) - 1) + _byte_ranges(high & ~rest, high)
    return [(chr(low).encode(), chr(high).encode())]


class _Set(NamedTuple):
    """A class of characters, as all dialects have it and as some do; a complement swaps the two."""

    narrow: Ranges
    wide: Callable[[], Ranges]
    """Made when it is asked for: Unicode's letters take a moment to collect."""

    def complement(self) -> _Set:
        return _Set(without(ALL, self.wide()), lambda: without(ALL, self.narrow))


def _exactly(ranges: Ranges) -> _Set:
    return _Set(ranges, lambda: ranges)


_ASCII = {"d": ((48, 57),), "w": ((48, 57), (65, 90), (95, 95), (97, 122)), "s": ((9, 13), (32, 32))}


def _escaped_class(letter: str) -> _Set:
    found = _Set(_ASCII[letter.lower()], lambda: _anybodys(letter.lower()))
    return found if letter.islower() else found.complement()


@lru_cache(maxsize=3)
def _anybodys(letter: str) -> Ranges:
    """What Python's or JavaScript's `\\letter` matches."""
    everything = "".join(map(chr, range(0x40000)))  # planes 4 and higher have no letters
    found = [(m.start(), m.end() - 1) for m in re.finditer(rf"\{letter}+", everything)]
    return united([*found, (0xFEFF, 0xFEFF)] if letter == "s" else found)


_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
_LINE_ENDS = characters("\n\r\u2028\u2029")


def parse_regex(pattern: str, encode: Callable[[Ranges], Expression] = utf8, is_search: bool = False) -> Expression:
    """The texts that match `pattern` whole or, in a search, in some part. encode: how a character of a set is written.

    Raises UserError for what is no regular expression, or is not supported, with its place.
    """
    return _Parser(pattern, encode, is_search).parsed()


class _Parser:
    def __init__(self, pattern: str, encode: Callable[[Ranges], Expression], is_search: bool):
        self._pattern, self._encode, self._is_search = pattern, encode, is_search
        self._at = self._depth = 0

    def parsed(self) -> Expression:
        anything = Repeat(self._encode(ALL), 0, None) if self._is_search else EMPTY
        found = self._options(anything)
        if self._at < len(self._pattern):
            raise self._error("closes a group that was not opened")
        return found

    def _error(self, what: str, at: int | None = None) -> UserError:
        at = self._at if at is None else at
        shown = self._pattern[at : at + 8]
        return UserError(f"regular expression: {shown!r} at character {at + 1} {what}" if shown else
                         f"regular expression: its end, at character {at + 1}, {what}")  # fmt: skip

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _take(self, text: str) -> bool:
        if found := self._pattern.startswith(text, self._at):
            self._at += len(text)
        return found

    def _options(self, around: Expression) -> Expression:
        """Alternatives; of the whole pattern, `around` is what may stand where no anchor does."""
        options = [self._parts(around)]
        while self._take("|"):
            options.append(self._parts(around))
        return choice(*options)

    def _parts(self, around: Expression) -> Expression:
        is_whole = self._depth == 0
        before = EMPTY if is_whole and self._take("^") else around
        parts: list[Expression] = []
        behind = around
        while (sign := self._peek()) and sign not in "|)":
            if is_whole and sign == "$" and self._pattern[self._at + 1 : self._at + 2] in ("", "|"):
                self._at += 1
                behind = EMPTY
                break
            parts.append(self._repeated(self._one()))
        return Sequence((before, *parts, behind)) if around is not EMPTY else Sequence(tuple(parts))

    def _repeated(self, part: Expression) -> Expression:
        at = self._at
        if counts := re.compile(r"\{(\d+)(,(\d*))?\}").match(self._pattern, at):
            least = int(counts[1])
            most = least if counts[2] is None else int(counts[3]) if counts[3] else None
            self._at = counts.end()
        elif self._peek() and self._peek() in "*+?":
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[self._peek()]
            self._at += 1
        elif self._peek() == "{":
            raise self._error("is no count; a brace that is meant is \\{")
        else:
            return part
        if most is not None and most < least:
            raise self._error("counts from more to less", at)
        if max(least, most or 0) > MOST_REPEATS:
            raise self._error(f"counts further than {MOST_REPEATS:,}", at)
        if not self._take("?") and self._peek() == "+":
            raise self._error("is a possessive count, which is not supported")
        if self._peek() and self._peek() in "*?{":
            raise self._error("repeats a repetition; put it in a group")
        return Repeat(part, least, most)

    def _one(self) -> Expression:
        at, sign = self._at, self._peek()
        self._at += 1
        if sign == "(":
            return self._group(at)
        if sign == "[":
            return self._encode(self._class(at).narrow)
        if sign == ".":
            return self._encode(without(ALL, _LINE_ENDS))
        if sign == "\\":
            return self._encode(self._escape(at, in_class=False).narrow)
        if sign in "*+?":
            raise self._error("repeats nothing", at)
        if sign in "^$":
            raise self._error("is an anchor within the expression, which is not supported", at)
        if sign == "{":
            raise self._error("is no count; a brace that is meant is \\{", at)
        return self._encode(self._character(sign, at))

    def _character(self, sign: str, at: int) -> Ranges:
        if "\ud800" <= sign <= "\udfff":
            raise self._error("is half a character, which no UTF-8 can hold", at)
        return characters(sign)

    def _group(self, at: int) -> Expression:
        if self._take("?") and not self._take(":"):
            if not (name := re.compile(r"P?<[A-Za-z_]\w*>").match(self._pattern, self._at)):
                raise self._error("is a look-around, a flag or a reference, which is not supported", at)
            self._at = name.end()
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._error(f"is a group within more than {_DEEPEST} others", at)
        found = self._options(EMPTY)
        self._depth -= 1
        if not self._take(")"):
            raise self._error("is a group that is not closed", at)
        return found

    def _class(self, at: int) -> _Set:
        is_complement = self._take("^")
        narrow: list[tuple[int, int]] = []
        wide: list[Callable[[], Ranges]] = []
        is_first = True
        while is_first or self._peek() != "]":
            if not self._peek():
                raise self._error("is a class that is not closed", at)
            if is_first and self._peek() == "]":
                raise self._error("is an empty class; a bracket that is meant is \\]", at)
            is_first = False
            low = self._member()
            if self._peek() == "-" and self._pattern[self._at + 1 : self._at + 2] not in ("]", ""):
                here = self._at
                self._at += 1
                high = self._member()
                if not _is_one(low) or not _is_one(high) or low.narrow > high.narrow:
                    raise self._error("is no range from a character to a later one", here)
                low = _exactly(without(((low.narrow[0][0], high.narrow[0][1]),), ((0xD800, 0xDFFF),)))
            narrow += low.narrow
            wide.append(low.wide)
        self._at += 1
        found = _Set(united(narrow), lambda: united([one for ranges in wide for one in ranges()]))
        return found.complement() if is_complement else found

    def _member(self) -> _Set:
        at, sign = self._at, self._peek()
        self._at += 1
        if sign == "\\":
            return self._escape(at, in_class=True)
        return _exactly(self._character(sign, at))

    def _escape(self, at: int, in_class: bool) -> _Set:
        sign = self._peek()
        self._at += 1
        if sign and sign in "dDwWsS":
            return _escaped_class(sign)
        if sign in _ESCAPES and not (sign == "0" and self._peek().isdigit()):
            ranges = characters(_ESCAPES[sign])
        elif code := re.compile(r"x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|u\{[0-9A-Fa-f]{1,6}\}").match(self._pattern, at + 1):
            self._at = code.end()
            number = int(code[0][1:].strip("{}"), 16)
            if number > sys.maxunicode:
                raise self._error("is no character", at)
            ranges = self._character(chr(number), at)
        elif sign == "b" and in_class:
            ranges = characters("\b")
        elif not sign or sign.isalnum():
            raise self._error("is an escape that is not supported", at)
        else:
            ranges = self._character(sign, at)
        return _exactly(ranges)


def _is_one(found: _Set) -> bool:
    return len(found.narrow) == 1 and found.narrow[0][0] == found.narrow[0][1]
