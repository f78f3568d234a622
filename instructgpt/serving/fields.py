"""A body of JSON, taken apart field by field: what a stranger sends is checked before anybody uses it.

Sentences and codes are those of the original, as clients know them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from instructgpt.serving.problems import Problem

T = TypeVar("T")
_KINDS = {
    bool: "a boolean", int: "an integer", float: "a decimal", str: "a string", list: "an array", dict: "an object",
    type(None): "null",
}  # fmt: skip
_HALF = re.compile("[\ud800-\udfff]")
_SHOWN = 40


def parse_json(body: bytes) -> dict[str, Any]:
    """The object that a body holds. Raises Problem for what is no JSON, no object, or nested too deeply to be read."""
    try:
        values = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise Problem(400, f"The body is not UTF-8: byte {error.start} cannot be read.") from None
    except RecursionError:
        raise Problem(400, "The body is nested too deeply to be read.") from None
    except ValueError as error:
        raise Problem(400, f"The body is not JSON: {str(error).split(';')[0]}.") from None
    if not isinstance(values, dict):
        raise Problem(400, f"The body must be a JSON object, not {kind_of(values)}.")
    return values


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def kind_of(value: Any) -> str:
    """What a value of JSON is, in words."""
    return _KINDS.get(type(value), type(value).__name__)


def wrong_type(path: str, wanted: str, value: Any) -> Problem:
    message = f"Invalid type for '{path}': expected {wanted}, but got {kind_of(value)} instead."
    return Problem(400, message, path, "invalid_type")


def invalid(path: str, why: str, code: str = "invalid_value") -> Problem:
    return Problem(400, f"Invalid '{path}': {why}", path, code)


def shown(text: str) -> str:
    """A text of the client's in a sentence: short, and on one line."""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


def whole_text(value: str, path: str) -> str:
    """The text itself. Raises Problem where it holds half a character, which no UTF-8 can hold."""
    if half := _HALF.search(value):
        raise invalid(path, f"character {half.start() + 1} is half of a surrogate pair.")
    return value


class Fields:
    """A JSON object on its way to being understood. Each field is taken once; `done` refuses those that nobody took.

    A field that is null is as one that is not there, as with the original.
    """

    def __init__(self, values: Any, path: str = ""):
        """path: where the object stands in the body, "" for the body itself."""
        if not isinstance(values, dict):
            raise wrong_type(path, "an object", values)
        self._values, self._path = dict(values), path

    def at(self, name: str) -> str:
        """A field's place in the body: `messages[0].role`."""
        return f"{self._path}.{name}" if self._path else name

    def take(self, name: str) -> Any:
        """The field as it came; None where it is not there."""
        return self._values.pop(name, None)

    def required(self, name: str, taken: T | None) -> T:
        """What was taken. Raises Problem where that was nothing."""
        if taken is None:
            path = self.at(name)
            raise Problem(400, f"Missing required parameter: '{path}'.", path, "missing_required_parameter")
        return taken

    def text(self, name: str, most: int | None = None) -> str | None:
        """most: characters."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise wrong_type(self.at(name), "a string", value)
        if most is not None and len(value) > most:
            why = f"string too long. Expected at most {most} characters, but got {len(value)} instead."
            raise invalid(self.at(name), why, "string_above_max_length")
        return whole_text(value, self.at(name))

    def flag(self, name: str) -> bool:
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise wrong_type(self.at(name), "a boolean", value)
        return bool(value)

    def integer(self, name: str, least: int, most: int) -> int | None:
        value = self.take(name)
        return None if value is None else whole_number(value, self.at(name), least, most)

    def number(self, name: str, least: float, most: float) -> float | None:
        value = self.take(name)
        return None if value is None else real_number(value, self.at(name), least, most)

    def array(self, name: str) -> list[Any] | None:
        value = self.take(name)
        if value is not None and not isinstance(value, list):
            raise wrong_type(self.at(name), "an array", value)
        return value

    def object(self, name: str, read: Callable[[Fields], T]) -> T | None:
        """What `read` makes of an object inside, all of whose fields it has to take."""
        value = self.take(name)
        if value is None:
            return None
        inner = Fields(value, self.at(name))
        result = read(inner)
        inner.done()
        return result

    def ignore(self, *names: str) -> None:
        """Fields that change nothing here, as who the end user is."""
        for name in names:
            self._values.pop(name, None)

    def refuse(self, names: dict[str, tuple[Any, ...]], why: str) -> None:
        """Fields that ask for what is not done here, unless their value is null or one of those given."""
        for name, harmless in names.items():
            value = self.take(name)
            if value is not None and not any(type(value) is type(one) and value == one for one in harmless):
                raise Problem(
                    400, f"Unsupported parameter: '{self.at(name)}': {why}", self.at(name), "unsupported_parameter"
                )

    def done(self) -> None:
        """Raises Problem where a field is left."""
        if self._values:
            name = next(iter(self._values))
            path = self.at(name if len(name) <= _SHOWN else name[:_SHOWN] + "…")
            raise Problem(
                400, f"Unknown parameter: {shown(path)}.", path if path.isprintable() else None, "unknown_parameter"
            )


def whole_number(value: Any, path: str, least: int, most: int) -> int:
    """The value as an integer from `least` to `most`. Errors: Problem."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_type(path, "an integer", value)
    if value < least:
        why = f"integer below minimum value. Expected a value >= {least}, but got {_number(value)} instead."
        raise invalid(path, why, "integer_below_min_value")
    if value > most:
        why = f"integer above maximum value. Expected a value <= {most}, but got {_number(value)} instead."
        raise invalid(path, why, "integer_above_max_value")
    return value


def real_number(value: Any, path: str, least: float, most: float) -> float:
    """The value as a number from `least` to `most`. Errors: Problem."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise wrong_type(path, "a decimal", value)
    if not least <= value <= most or (isinstance(value, float) and not math.isfinite(value)):
        side, bound, code = ("below minimum", f">= {least:g}", "decimal_below_min_value")
        if not value < least:
            side, bound, code = ("above maximum", f"<= {most:g}", "decimal_above_max_value")
        raise invalid(path, f"decimal {side} value. Expected a value {bound}, but got {_number(value)} instead.", code)
    return float(value)


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value) if abs(value) < 10**20 else "a far larger one"
