r"""Texts made of a record's fields, such as "Translate to French: {en}".

{field}             its text; numbers and truth values are written out as in JSON, of a list each item
                        on a line
{answers.text[0]}   a field within a field, an item of a list: [0] the first, [-1] the last
{turns.text}        a name asked of a list is asked of each of its items
{choices:, }        what follows the colon stands between the items of a list
{input?}            absent or null is an empty text, and so is what white space around it then is left at either
                    end; without the ? such a record is dropped, and counted
{{name}}            stays as it is, as placeholders do in the records
\n \t \\ \{ \}      a line's end, a tab, a backslash, a brace
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from instructgpt.data.account import Unusable, kind_of, names_of
from instructgpt.data.fields import Fields
from instructgpt.errors import UserError, suggestion
from instructgpt.flags import unescape

_PART = re.compile(
    r"\\(?P<brace>[{}])|(?P<placeholder>\{\{[^{}]*\}\})|\{(?P<field>[^{}]*)\}|(?P<stray>[{}])"
    r"|(?P<text>(?:[^\\{}]|\\(?![{}])\\?)+)"
)
_FIELD = re.compile(r"(?P<path>.*?)(?P<optional>\?)?(?::(?P<separator>.*))?", re.DOTALL)
_STEP = re.compile(r"(?:^|\.)(?P<name>[^.\[\]]+)|\[(?P<item>-?\d+)\]")
_IN_BRACES = "write it in braces, as in '{text}'"


@dataclass(frozen=True)
class Field:
    """One pair of braces."""

    written: str
    """What stands between them; a record's field of just this name, odd as it may be, comes first."""
    path: str
    """The same without ? and separator."""
    optional: bool
    separator: str

    @property
    def steps(self) -> tuple[str | int, ...]:
        """Names of fields and numbers of items, from the record to the value."""
        found = tuple(int(step["item"]) if step["item"] else step["name"] for step in _STEP.finditer(self.path))
        # Else a name with odd characters in it, if the records have one.
        return found if found and isinstance(found[0], str) and _path(found) == self.path else (self.path,)

    def is_in(self, record: Fields) -> bool:
        """Whether the record has this field, or the one in which it would be."""
        return any(name in record for name in (self.written, self.path, str(self.steps[0])))

    def value(self, record: Fields) -> Any:
        """What a record has there; None where it is absent or null and may be. Raises Unusable."""
        whole = next((name for name in (self.written, self.path) if name in record), None)
        value = self._find(record) if whole is None else record.take(whole)
        if value is None and not self.optional:
            if self.path in record.names:
                raise Unusable(f"null where text should be, in {self.path!r}")
            near = "" if self.is_in(record) else _nearest(str(self.steps[0]), record)
            raise Unusable(f"no field {self.path!r}", f"it has {names_of(record)}{near}")
        return value

    def text(self, record: Fields) -> str | None:
        """The value as text. Raises Unusable."""
        value = self.value(record)
        return None if value is None else self._written_out(value)

    def _find(self, record: Fields) -> Any:
        value = record.take(str(self.steps[0]))
        for place, step in enumerate(self.steps[1:], start=1):
            if value is not None:
                value = _step(value, step, _path(self.steps[:place]))
        return value

    def _written_out(self, value: Any) -> str:
        if isinstance(value, str):
            return value
        if isinstance(value, (bool, int, float)):
            return json.dumps(value)
        if isinstance(value, list):
            return self.separator.join(self._written_out(item) for item in value if item is not None)
        raise Unusable(f"{kind_of(value)} where text should be, in {self.path!r}")


def _step(value: Any, step: str | int, so_far: str) -> Any:
    """One step from a value to what it holds; None where it holds no such thing. Raises Unusable for no such way."""
    if isinstance(value, list):
        if isinstance(step, int):
            return value[step] if -len(value) <= step < len(value) else None
        found = (_step(item, step, so_far) for item in value if item is not None)
        return [inner for inner in found if inner is not None] or None
    if isinstance(value, dict) and isinstance(step, str):
        return value.get(step)
    wanted = "a list" if isinstance(step, int) else "an object"
    raise Unusable(f"{kind_of(value)} where {wanted} should be, in {so_far!r}")


def _path(steps: tuple[str | int, ...]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")


def _nearest(name: str, known: Iterable[Any]) -> str:
    near = suggestion(name, map(str, known))
    return near if "did you mean" in near else ""


class Template:
    """A text with fields in braces; see the module's head. Raises UserError, in words of its flag, for wrong syntax."""

    def __init__(self, written: str, flag: str = "template "):
        """flag: what is written before it, to be told: `--prompt `, or `--map b.csv:prompt=`."""
        self.written, self.flag = written, flag
        self.parts: tuple[str | Field, ...] = tuple(self._parse())

    @property
    def fields(self) -> list[Field]:
        return [part for part in self.parts if isinstance(part, Field)]

    @property
    def only(self) -> Field | None:
        """The field, where the template is that and nothing else: its value need not be text."""
        return self.fields[0] if len(self.parts) == len(self.fields) == 1 else None

    def fill(self, record: Fields) -> str:
        """The text that a record makes. Raises Unusable where a field that must be there is not, or is no text."""
        texts = [part if isinstance(part, str) else part.text(record) for part in self.parts]
        filled = "".join(text or "" for text in texts)
        return filled if all(text is not None for text in texts) else filled.strip()

    def _parse(self) -> Iterator[str | Field]:
        for part in _PART.finditer(self.written):
            kind, found = part.lastgroup, part[0]
            if kind == "field":
                yield self._field(part["field"])
            elif kind == "stray":
                raise UserError(
                    f"{self.flag}{self.written!r}: the brace at character {part.start() + 1} has no partner; fields "
                    f"are written as {{field}}, and a brace that is one as \\{found}"
                )
            else:
                yield unescape(found) if kind == "text" else part["brace"] or found

    def _field(self, written: str) -> Field:
        found = _FIELD.fullmatch(written)
        path = found["path"].strip() if found else ""
        if not found or not path:
            raise UserError(f"{self.flag}{self.written!r}: {{{written}}} names no field; {_IN_BRACES}")
        separator = "\n" if found["separator"] is None else unescape(found["separator"])
        return Field(written, path, bool(found["optional"]), separator)


@dataclass(frozen=True)
class Templates:
    """What makes the parts of a conversation, or of two compared ones, of any record; None: as the record's format is.

    Raises UserError for templates that do not go together.
    """

    prompt: Template | None = None
    answer: Template | None = None
    chosen: Template | None = None
    rejected: Template | None = None
    system: Template | None = None

    @classmethod
    def of(cls, **written: str) -> Templates:
        """From the texts of the flags; an empty one is none."""
        return cls(**{name: Template(text, f"--{name} ") for name, text in written.items() if text})

    def __post_init__(self) -> None:
        if self.answer and self.chosen:
            raise UserError("--answer and --chosen both say what the right answer is: give one of them")
        for name, template in (("answer", self.answer), ("chosen", self.chosen), ("rejected", self.rejected)):
            if template is None:
                continue
            if not template.fields:
                raise UserError(f"{template.flag}{template.written!r} names no field of the records; {_IN_BRACES}")
            if self.prompt is None:
                raise UserError(f"--prompt and --{name} go together: give both, or neither")
        if self.rejected and not self.better:
            raise UserError("--rejected without --chosen: what is the better answer?")
        if self.rejected and self.better and self.better.written == self.rejected.written:
            raise UserError(f"--chosen and --rejected are both {self.rejected.written!r}: nothing would be compared")
        for template in (self.prompt, self.system):
            if template and not template.fields and not re.search(r"\s", template.written.strip()):
                raise UserError(f"{template.flag}{template.written!r} names no field; {_IN_BRACES}")

    @property
    def better(self) -> Template | None:
        """What makes the right answer, or the better one of two."""
        return self.answer or self.chosen

    @property
    def given(self) -> list[Template]:
        return [template for one in fields(self) if (template := getattr(self, one.name)) is not None]

    def find_any(self, record: Fields) -> bool:
        """Whether a record has one of the fields that they name."""
        return any(field.is_in(record) for template in self.given for field in template.fields)

    def require_known(self, names: Iterable[str], where: str) -> None:
        """UserError when a field that may be absent is so in every record: a typing error, for all that is known."""
        seen = Fields(dict.fromkeys(sorted(names), True))
        for template in self.given:
            for field in template.fields:
                if not field.is_in(seen):
                    raise UserError(
                        f"no record has the field {field.path!r} of {template.flag}{template.written!r}; there are "
                        f"{names_of(seen)}{_nearest(str(field.steps[0]), seen)}",
                        where,
                    )
