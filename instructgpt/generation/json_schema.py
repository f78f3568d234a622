"""JSON, and JSON by a schema, as expressions of bytes (`grammar.py`).

Of a schema (JSON Schema 2020-12) everything that is kept, is kept to the letter; where it leaves a choice, a narrow
one is taken: properties come in the order they are declared in, further ones only where `additionalProperties` says so,
numbers have at most 15 digits before the point, white space is that of usual printing. What cannot be kept is refused,
with its place: a keyword that were passed over would make an answer valid that is not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

from instructgpt.errors import UserError, suggestion
from instructgpt.generation.grammar import (
    EMPTY,
    NEVER,
    Expression,
    Repeat,
    Rule,
    choice,
    literal,
    one_of,
    optional,
    sequence,
)
from instructgpt.generation.json_grammar import (
    COLON,
    COMMA,
    ESCAPED,
    INTEGER,
    MOST,
    NESTED,
    NUMBER,
    any_json,
    any_object,
    between,
    character,
    in_string,
    listed,
    numbers_between,
    simple_types,
    string,
)
from instructgpt.generation.regex import ALL, characters, parse_regex, utf8, without

_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
_NOTES = {"title", "description", "default", "examples", "$schema", "$id", "$comment", "$defs", "definitions",
          "deprecated", "readOnly", "writeOnly"}  # fmt: skip
"""Keywords that say nothing of a value."""
_OF_TYPE = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
}
_ANY_TYPE = {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"}
_KNOWN = _NOTES | _ANY_TYPE | set().union(*_OF_TYPE.values())
_DAY = r"(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
FORMATS = {
    "date": rf"[12]\d{{3}}-{_DAY}",
    "time": _TIME,
    "date-time": rf"[12]\d{{3}}-{_DAY}T{_TIME}",
    "uuid": r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "ipv4": rf"{_OCTET}(?:\.{_OCTET}){{3}}",
    "email": r"[A-Za-z0-9_+-]{1,32}(?:\.[A-Za-z0-9_+-]{1,16}){0,2}@(?:[A-Za-z0-9]{1,32}\.){1,3}[A-Za-z]{2,16}",
}
_BOUND = 10**18
_DECIMALS = 6
"""Most digits behind the point, of a number with bounds."""
_DEEPEST = 64
_LARGEST = 10_000


def json_schema(schema: Any) -> Expression:
    """The values that a schema, as parsed from JSON, allows. Raises UserError with the place of what is wrong."""
    return _Reader(schema).value(schema, "schema", 0)


class _Reader:
    def __init__(self, root: Any):
        self._root, self._rules, self._read = root, dict[str, Rule](), 0

    def value(self, schema: Any, where: str, depth: int) -> Expression:
        self._read += 1
        if depth > _DEEPEST or self._read > _LARGEST:
            raise UserError(f"{where} is too deep or large: {_DEEPEST} levels and {_LARGEST:,} parts are allowed")
        if schema is True or (schema == {} and isinstance(schema, dict)):
            return any_json()
        if schema is False:
            return NEVER
        if not isinstance(schema, dict):
            raise UserError(f"{where} is {_shown(schema)}; a schema is an object, true or false")
        for keyword in schema:
            if keyword not in _KNOWN:
                raise UserError(f"{where} has {_shown(keyword)}, which is not supported{suggestion(keyword, _KNOWN)}")
        said = {key: value for key, value in schema.items() if key not in _NOTES}
        if "$ref" in said:
            self._alone(said, "$ref", where)
            return self._reference(said["$ref"], where, depth)
        for keyword in ("allOf", "anyOf", "oneOf"):
            if keyword in said:
                return self._combined(keyword, said, where, depth)
        types = self._types(said, where)
        if "const" in said or "enum" in said:
            return self._listed_values(said, types, where)
        makers: dict[str, Callable[[dict[str, Any], str, int], Expression]] = {
            "object": self._object, "array": self._array, "string": self._text, "number": self._number,
            "integer": lambda said, where, _: self._number(said, where, 0, is_whole=True),
        }  # fmt: skip
        return choice(*[
            makers[name](said, where, depth + 1) if name in makers else simple_types()[name] for name in types
        ])  # fmt: skip

    # ---- several schemas as one

    def _reference(self, name: Any, where: str, depth: int) -> Expression:
        if not isinstance(name, str) or not (name == "#" or name.startswith("#/")):
            raise UserError(
                f"{where} refers to {_shown(name)}; only places within the schema, as '#/$defs/x', are read"
            )
        if name not in self._rules:
            found = self._root
            for key in name[2:].split("/") if name != "#" else ():
                key = key.replace("~1", "/").replace("~0", "~")
                if isinstance(found, list) and key.isdigit() and int(key) < len(found):
                    found = found[int(key)]
                elif isinstance(found, dict) and key in found:
                    found = found[key]
                else:
                    raise UserError(f"{where} refers to {_shown(name)}, which is not there")
            rule = self._rules[name] = Rule()
            rule.body = self.value(found, name, depth + 1)
        return self._rules[name]

    def _combined(self, keyword: str, said: dict[str, Any], where: str, depth: int) -> Expression:
        options = said.pop(keyword)
        if not isinstance(options, list) or not options:
            raise UserError(f"{where}.{keyword} is {_shown(options)}; it must be a list of schemas")
        if keyword == "allOf":
            whole = said
            for i, option in enumerate(options):
                whole = self._merged(whole, option, f"{where}.allOf[{i}]")
            return self.value(whole, where, depth + 1)
        merged = [self._merged(said, option, f"{where}.{keyword}[{i}]") for i, option in enumerate(options)]
        if keyword == "oneOf":
            for i, a in enumerate(merged):
                for j, b in enumerate(merged[:i]):
                    if not _are_apart(a, b):
                        raise UserError(
                            f"{where}.oneOf: it is not certain that no value meets both {j} and {i}; use anyOf"
                        )
        return choice(*[
            self.value(option, f"{where}.{keyword}[{i}]", depth + 1) for i, option in enumerate(merged)
        ])  # fmt: skip

    def _merged(self, one: Any, other: Any, where: str) -> Any:
        """A schema that says both."""
        if other is True or one == {}:
            return other
        if other is False or one is False:
            return False
        if not isinstance(other, dict):
            raise UserError(f"{where} is {_shown(other)}; a schema is an object, true or false")
        found = dict(one)
        for key, value in other.items():
            if key in _NOTES or key not in found or found[key] == value:
                found[key] = value
            elif key == "required" and isinstance(value, list) and isinstance(found[key], list):
                found[key] = [*found[key], *(name for name in value if name not in found[key])]
            elif key == "properties" and isinstance(value, dict) and not set(value) & set(found[key]):
                found[key] = {**found[key], **value}
            else:
                raise UserError(f"{where}.{key} is said twice, differently; that is not supported")
        is_split = ("properties" in one) != ("properties" in other) or one.get("properties") != other.get("properties")
        if found.get("additionalProperties", True) is not True and is_split and "properties" in found:
            raise UserError(f"{where} takes additionalProperties and properties from two schemas; put them into one")
        return found

    def _alone(self, said: dict[str, Any], keyword: str, where: str) -> None:
        if others := sorted(set(said) - {keyword}):
            raise UserError(f"{where} has {_shown(others[0])} beside {keyword!r}, which is not supported")

    # ---- types

    def _types(self, said: dict[str, Any], where: str) -> list[str]:
        given = said.get("type")
        if given is None:
            if "const" in said or "enum" in said:
                return list(_TYPES)
            # What says something of arrays alone allows everything else; an array is meant.
            meant = [name for name, keywords in _OF_TYPE.items() if keywords & set(said)]
            return meant or ["object", "array", "string", "number", "boolean", "null"]
        types = given if isinstance(given, list) else [given]
        for name in types:
            if name not in _TYPES:
                raise UserError(f"{where}.type is {_shown(name)}{suggestion(str(name), _TYPES)}")
        if not types:
            raise UserError(f"{where}.type is an empty list; nothing meets it")
        return [name for name in dict.fromkeys(types) if name != "integer" or "number" not in types]

    def _listed_values(self, said: dict[str, Any], types: list[str], where: str) -> Expression:
        values = [said["const"]] if "const" in said else said["enum"]
        if not isinstance(values, list) or not values:
            raise UserError(f"{where}.enum is {_shown(values)}; it must be a list of values")
        if "const" in said and "enum" in said and said["const"] not in said["enum"]:
            return NEVER
        if others := sorted(set(said) - {"const", "enum", "type"}):
            raise UserError(f"{where} has {_shown(others[0])} beside its values, which is not supported")
        kept = [value for value in values if any(_is_of(value, name) for name in types)]
        try:
            return one_of([json.dumps(value, ensure_ascii=False, allow_nan=False).encode() for value in kept])
        except ValueError:  # half a character, too
            raise UserError(f"{where} has a value that JSON in UTF-8 cannot hold") from None

    def _object(self, said: dict[str, Any], where: str, depth: int) -> Expression:
        properties, required = said.get("properties", {}), said.get("required", [])
        further = said.get("additionalProperties", not properties and not required)
        if not isinstance(properties, dict):
            raise UserError(f"{where}.properties is {_shown(properties)}; it must be an object of schemas")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise UserError(f"{where}.required is {_shown(required)}; it must be a list of names")
        if not properties and not required and further is True:
            return any_object(NESTED)
        undeclared = said.get("additionalProperties", True)
        names = [*properties, *(name for name in dict.fromkeys(required) if name not in properties)]
        tail = EMPTY  # what may follow a member
        alone = EMPTY  # what may stand where no member was
        if further is not False:
            key = string(_name_but(names))
            member = sequence(key, COLON, self.value(further, f"{where}.additionalProperties", depth))
            tail = Repeat(sequence(COMMA, member), 0, None)
            alone = optional(sequence(member, tail))
        for name in reversed(names):
            schema = properties.get(name, undeclared)
            at = f"{where}.properties.{name}"
            member = sequence(literal(_encoded(name, where)), COLON, self.value(schema, at, depth))
            first, after = sequence(member, tail), sequence(COMMA, member, tail)
            alone, tail = (first, after) if name in required else (choice(first, alone), choice(after, tail))
        return between("{", alone, "}")

    def _array(self, said: dict[str, Any], where: str, depth: int) -> Expression:
        least, most = _counts(said, "minItems", "maxItems", where)
        prefix = said.get("prefixItems", [])
        if not isinstance(prefix, list):
            raise UserError(f"{where}.prefixItems is {_shown(prefix)}; it must be a list of schemas")
        if not {"items", "prefixItems"} & set(said):
            return between("[", listed(any_json(NESTED - 1), least, most), "]")
        item = self.value(said.get("items", True), f"{where}.items", depth)
        first = [self.value(each, f"{where}.prefixItems[{i}]", depth) for i, each in enumerate(prefix)]
        if not first:
            return between("[", listed(item, least, most), "]")
        rest = max(0, least - len(first)), None if most is None else most - len(first)
        tail = Repeat(sequence(COMMA, item), *rest) if rest[1] is None or rest[1] >= rest[0] else NEVER
        if most is not None and most < len(first):
            first, tail = first[:most], EMPTY
        for i, each in reversed(list(enumerate(first))):
            found = sequence(COMMA, each, tail) if i else sequence(each, tail)
            tail = found if least > i else optional(found)
        return between("[", tail if most is None or most >= least else NEVER, "]")

    def _text(self, said: dict[str, Any], where: str, _: int) -> Expression:
        least, most = _counts(said, "minLength", "maxLength", where)
        has_length = least > 0 or most is not None
        if sum((has_length, "pattern" in said, "format" in said)) > 1:
            raise UserError(f"{where} has more than one of pattern, format and a length, which is not supported")
        if "format" in said:
            if said["format"] not in FORMATS:
                raise UserError(f"{where}.format is {_shown(said['format'])}{suggestion(str(said['format']), FORMATS)}")
            return string(parse_regex(FORMATS[said["format"]], in_string))
        if "pattern" in said:
            if not isinstance(said["pattern"], str):
                raise UserError(f"{where}.pattern is {_shown(said['pattern'])}; it must be a text")
            try:
                return string(parse_regex(said["pattern"], in_string, is_search=True))
            except UserError as error:
                raise UserError(f"{where}.pattern: {error}") from None
        return string(Repeat(character(), least, most)) if most is None or most >= least else NEVER

    def _number(self, said: dict[str, Any], where: str, _: int, is_whole: bool = False) -> Expression:
        bounds = {key: _bound(said[key], f"{where}.{key}") for key in _OF_TYPE["number"] if key in said}
        if not bounds:
            return INTEGER if is_whole else NUMBER
        options: list[Expression] = []
        for decimals in (0,) if is_whole else range(_DECIMALS + 1):
            unit = Decimal(10) ** decimals
            # Floats have 15 digits for certain: a decimal with more could be a bound that it must not be.
            reach = MOST if decimals == 0 else 10**15 // 10
            least = [int((value * unit).to_integral_value(ROUND_CEILING)) for key, value in bounds.items()
                     if key == "minimum"]  # fmt: skip
            least += [int((value * unit).to_integral_value(ROUND_FLOOR)) + 1 for key, value in bounds.items()
                      if key == "exclusiveMinimum"]  # fmt: skip
            most = [int((value * unit).to_integral_value(ROUND_FLOOR)) for key, value in bounds.items()
                    if key == "maximum"]  # fmt: skip
            most += [int((value * unit).to_integral_value(ROUND_CEILING)) - 1 for key, value in bounds.items()
                     if key == "exclusiveMaximum"]  # fmt: skip
            low = max(least) if least else min(-reach, min(most) - reach)
            high = min(most) if most else max(reach, low + reach)
            options += numbers_between(low, high, decimals) if low <= high else []
        return choice(*options) if options else NEVER


def _name_but(names: list[str]) -> Expression:
    """The content of a key that is none of `names`, of characters that need no escape."""
    plain = without(ALL, ESCAPED)

    def after(rest: list[str]) -> Expression:
        begun: dict[str, list[str]] = {}
        for name in rest:
            if name:
                begun.setdefault(name[0], []).append(name[1:])
        options = [sequence(utf8(characters(sign)), after(tails)) for sign, tails in begun.items()]
        other = without(plain, characters("".join(begun)))
        options.append(sequence(utf8(other), Repeat(utf8(plain), 0, None)))
        return choice(*options) if "" in rest else choice(EMPTY, *options)

    return after([name for name in names if not any(a <= ord(sign) <= b for sign in name for a, b in ESCAPED)])


def _are_apart(a: Any, b: Any) -> bool:
    """Whether it is plain that no value meets both: other types, other values, or a required property that is so."""
    if not isinstance(a, dict) or not isinstance(b, dict):
        return a is False or b is False
    values = [each.get("enum", [each["const"]] if "const" in each else None) for each in (a, b)]
    if all(isinstance(each, list) for each in values):
        return not any(x == y for x in values[0] for y in values[1])
    types = [{each["type"]} if isinstance(each.get("type"), str) else set(each.get("type", _TYPES)) for each in (a, b)]
    types = [each | {"integer"} if "number" in each else each for each in types]
    if not types[0] & types[1]:
        return True
    if types[0] != {"object"} or types[1] != {"object"}:
        return False
    both = set(a.get("required", ())) & set(b.get("required", ()))
    return any(_are_apart(a.get("properties", {}).get(name), b.get("properties", {}).get(name)) for name in both)


def _is_of(value: Any, name: str) -> bool:
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    if name in kinds:
        return isinstance(value, kinds[name])
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and (name == "number" or float(value).is_integer())


def _counts(said: dict[str, Any], least: str, most: str, where: str) -> tuple[int, int | None]:
    for key in (least, most):
        value = said.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 100_000:
            raise UserError(f"{where}.{key} is {_shown(value)}; it must be a whole number from 0 to 100,000")
    return said.get(least, 0), said.get(most)


def _bound(value: Any, where: str) -> Decimal:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not abs(value) <= _BOUND:
        raise UserError(f"{where} is {_shown(value)}; it must be a number from -1e18 to 1e18")
    return Decimal(str(value))


def _encoded(name: str, where: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where} has a property whose name is no UTF-8") from None
    return json.dumps(name, ensure_ascii=False)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 40 else text[:37] + "..."
