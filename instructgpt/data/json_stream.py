"""JSON records out of a stream of text, one at a time, each with its line: an array, JSON lines, or a single object."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instructgpt.errors import UserError

_SPACE = re.compile(r"[ \t\r\n]*")
# What the decoder complains about this near to the end of what was read so far may only be cut off: the longest thing
# it complains about as a whole is an escaped pair of surrogates, 12 characters.
_MAY_BE_CUT = 16


def json_records(chunks: Iterator[str], path: str | Path) -> Iterator[tuple[int, Any]]:
    """(line, record) of each element of an array, or of each value of a file of values (JSON lines, or one object).

    Holds no more than a record and a chunk or two in memory. Lone surrogates (an escape like `\\ud800` by itself)
    become U+FFFD, so that every string can be encoded. Raises UserError with file and line for broken JSON.
    """
    return _Stream(chunks, path).records()


class _Stream:
    def __init__(self, chunks: Iterator[str], path: str | Path):
        self.chunks, self.path = chunks, path
        self.text, self.at, self.line = "", 0, 1  # `at` is how far `text` is used up; `line` is the line there
        self.ended = False
        self.decode = json.JSONDecoder().raw_decode

    def records(self) -> Iterator[tuple[int, Any]]:
        if self._next() == "[" and not self._has_lists_on_lines():
            self._advance(self.at + 1)
            yield from self._elements()
            if self._next():
                raise self._broken("there is more after the end of the array", self.at)
            return
        while self._next():
            yield self.line, self._value()

    def _has_lists_on_lines(self) -> bool:
        """Whether the first line is a whole list of objects, and more follows: then each line is a record."""
        end = self.text.find("\n", self.at)
        line = self.text[self.at : max(end, self.at)].rstrip()
        if not line.endswith("]"):
            return False
        while not (rest := self.text[end:].strip()) and self._more():
            end = self.text.find("\n", self.at)
        try:
            items, stop = self.decode(line)
        except (ValueError, RecursionError):
            return False
        return rest != "" and stop == len(line) and bool(items) and all(isinstance(item, dict) for item in items)

    def _elements(self) -> Iterator[tuple[int, Any]]:
        if self._next() == "]":
            self._advance(self.at + 1)
            return
        while True:
            self._next()
            yield self.line, self._value()
            separator = self._next()
            if separator not in (",", "]"):
                raise self._broken("',' or ']' must follow a record of an array", self.at)
            self._advance(self.at + 1)
            if separator == "]":
                return

    def _next(self) -> str:
        """The next character that is not space, not used up; "" at the end of the file."""
        while True:
            match = _SPACE.match(self.text, self.at)
            self._advance(match.end() if match else self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def _value(self) -> Any:
        while True:
            try:
                value, end = self.decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut_off = error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - _MAY_BE_CUT
                if cut_off and self._more():
                    continue
                raise self._broken(error.msg, error.pos) from None
            except RecursionError:
                raise self._broken("nested too deeply", self.at) from None
            except ValueError as error:  # a whole number of more digits than Python converts
                raise self._broken(str(error), self.at) from None
            # A number may go on in the next chunk, "1" or "1." as "1.5"; everything else shows its own end.
            if end >= len(self.text) - _MAY_BE_CUT and isinstance(value, (int, float)) and self._more():
                continue
            has_surrogates = any(self.text.find(escape, self.at, end) >= 0 for escape in ("\\ud", "\\uD"))
            self._advance(end)
            try:
                return _without_lone_surrogates(value) if has_surrogates else value
            except RecursionError:
                raise UserError("broken JSON: nested too deeply", self.path, self.line) from None

    def _more(self) -> bool:
        """Read on; False at the end of the file."""
        rest, parts, size = self.text[self.at :], [], 0
        # At least as much again, so that a record of many chunks is not tried once for each.
        while not self.ended and size <= len(rest):
            chunk = next(self.chunks, None)
            if chunk is None:
                self.ended = True
            else:
                parts.append(chunk)
                size += len(chunk)
        if size:
            self.text, self.at = rest + "".join(parts), 0
        return size > 0

    def _advance(self, to: int) -> None:
        self.line += self.text.count("\n", self.at, to)
        self.at = to

    def _broken(self, what: str, position: int) -> UserError:
        end = self.text.find("\n", self.at)
        first_line = self.text[self.at : end if end >= 0 else len(self.text)].rstrip()
        if self.ended and not self.text[position:].strip():
            return UserError(f"broken JSON: the file ends too early ({what})", self.path, self.line)
        # A record that goes on over lines is broken where the decoder stopped. One meant to be a line is broken on that
        # line, even where the decoder only notices at the next.
        line = self.line
        if first_line.endswith(("{", "[", ",", ":")):
            line += self.text.count("\n", self.at, position)
        return UserError(f"broken JSON: {what}", self.path, line)


def _without_lone_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_without_lone_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_lone_surrogates(key): _without_lone_surrogates(item) for key, item in value.items()}
    return value
