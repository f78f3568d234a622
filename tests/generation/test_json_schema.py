from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.errors import UserError
from instructgpt.generation.grammar import Automaton
from instructgpt.generation.json_grammar import any_json
from instructgpt.generation.json_schema import json_schema


def automaton_of(schema: Any) -> Automaton:
    return Automaton(json_schema(schema))


def allows(automaton: Automaton, value: Any, **options: Any) -> bool:
    text = json.dumps(value, ensure_ascii=False, **options)
    return automaton.accepts(automaton.read(automaton.start, text.encode()))


def said(automaton: Automaton, choose: Callable[[int], int], most: int = 400) -> str | None:
    """A text, byte by byte as chosen; None where it has no end by then."""
    state, data = automaton.start, bytearray()
    while len(data) < most:
        row = automaton.known([state])[state]
        follows = [byte for byte in range(256) if row[byte] >= 0]
        if automaton.accepts(state) and (not follows or not choose(3)):
            return data.decode()
        data.append(follows[choose(len(follows))])
        state = int(row[data[-1]])
    return None


any_value = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**14), 10**14)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5) | st.floats(-1e9, 1e9).map(lambda x: round(x, 4)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab\"\\ 猫", max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def anything() -> Automaton:
    return Automaton(any_json())


@given(any_value, st.sampled_from([None, 1, 2]))
def test_any_json_is_whatever_python_writes(anything: Automaton, value: Any, indent: int | None):
    assert allows(anything, value, indent=indent)


@given(st.data())
def test_what_is_said_is_json(anything: Automaton, data: st.DataObject):
    random = data.draw(st.randoms(use_true_random=False))
    text = said(anything, random.randrange)
    assert text is None or is_json(text), text


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("text", ["", "{", '{"a"}', "01", "1.", ".5", "+1", "NaN", '"\t"', '"\\x"', "[1,]", "tru",
                                  "1 2", '"\\ud800"', "- 1", "[1 2]", '{"a":1,}', "{1:2}"])  # fmt: skip
def test_what_is_no_json_is_not_said(anything: Automaton, text: str):
    assert not anything.accepts(anything.read(anything.start, text.encode()))


# ---- by schema: pairs of a schema and what Python says of a value

Checked = tuple[Any, Callable[[Any], bool]]
is_number = lambda v: isinstance(v, (int, float)) and not isinstance(v, bool)  # noqa: E731


def bounded(bounds: dict[str, float], is_whole: bool) -> Checked:
    def check(v: Any) -> bool:
        if not is_number(v) or (is_whole and not isinstance(v, int)):
            return False
        return (
            bounds.get("minimum", v) <= v <= bounds.get("maximum", v)
            and ("exclusiveMinimum" not in bounds or v > bounds["exclusiveMinimum"])
            and ("exclusiveMaximum" not in bounds or v < bounds["exclusiveMaximum"])
        )

    return {"type": "integer" if is_whole else "number", **bounds}, check


limits = st.integers(-1200, 1200).map(lambda n: n / 8) | st.integers(-30, 30)
bounds = st.dictionaries(st.sampled_from(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]), limits)


def text_of(least: int, more: int) -> Checked:
    schema = {"type": "string", "minLength": least, "maxLength": least + more}
    return schema, lambda v: isinstance(v, str) and least <= len(v) <= least + more


def list_of(item: Checked, least: int, more: int | None) -> Checked:
    schema = {"type": "array", "items": item[0], "minItems": least} | (
        {} if more is None else {"maxItems": least + more}
    )
    return (
        schema,
        lambda v: (
            isinstance(v, list)
            and least <= len(v)
            and (more is None or len(v) <= least + more)
            and all(map(item[1], v))
        ),
    )


def object_of(members: dict[str, Checked], required: list[str], further: Checked | bool) -> Checked:
    required = [name for name in required if name in members]
    schema = {
        "type": "object", "properties": {name: schema for name, (schema, _) in members.items()}, "required": required,
        "additionalProperties": further if isinstance(further, bool) else further[0],
    }  # fmt: skip

    def check(v: Any) -> bool:
        if not isinstance(v, dict) or not set(required) <= set(v):
            return False
        others = further[1] if isinstance(further, tuple) else lambda _: further
        return all(members[name][1](each) if name in members else others(each) for name, each in v.items())

    return schema, check


leaves: st.SearchStrategy[Checked] = st.one_of(
    st.builds(bounded, bounds, st.booleans()),
    st.builds(text_of, st.integers(0, 3), st.integers(0, 3)),
    st.just(({"type": "boolean"}, lambda v: isinstance(v, bool))),
    st.just(({"type": ["null", "integer"]}, lambda v: v is None or (isinstance(v, int) and not isinstance(v, bool)))),
    st.just(({"enum": ["a", 'q"', 7, None, [1]]}, lambda v: v in ("a", 'q"', 7, None, [1]))),
    st.just(({"const": {"k": "猫"}}, lambda v: v == {"k": "猫"})),
    st.just(({"type": "string", "pattern": '^[a-c"]+\\d?$'}, lambda v: bool(re.search('^[a-c"]+\\d?$', v)))),
    st.just(({"pattern": "b\\n"}, lambda v: "b\n" in v)),
)
names = st.sampled_from(["a", "ab", "b", "猫", 'q"'])
schemas: st.SearchStrategy[Checked] = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(list_of, inner, st.integers(0, 2), st.integers(0, 2) | st.none()),
        st.builds(
            object_of, st.dictionaries(names, inner, max_size=4), st.lists(names, max_size=2), st.booleans() | inner
        ),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda each: ({"anyOf": [s for s, _ in each]}, lambda v: any(_holds(check, v) for _, check in each))
        ),
    ),
    max_leaves=6,
)


def _holds(check: Callable[[Any], bool], value: Any) -> bool:
    try:
        return check(value)
    except TypeError:  # a pattern met a number
        return False


@given(schemas, st.randoms(use_true_random=False))
def test_what_is_said_meets_the_schema(made: Checked, random: Any):
    schema, check = made
    try:
        automaton = automaton_of(schema)
    except UserError as error:
        assert "nothing meets it" in str(error)
        return
    text = said(automaton, random.randrange)
    if text is not None:
        assert check(json.loads(text)), text


@given(bounds, st.integers(-200, 200) | st.integers(-1600, 1600).map(lambda n: n / 8), st.booleans())
def test_every_number_within_its_bounds_may_be_said(bounds: dict[str, float], value: float, is_whole: bool):
    schema, check = bounded(bounds, is_whole)
    if check(value):
        assert allows(automaton_of(schema), value)
    elif is_number(value) and isinstance(value, int) == is_whole:
        try:
            assert not allows(automaton_of(schema), value)
        except UserError:
            assert not bounds.keys() <= {"minimum"}


def test_properties_come_in_order_and_optional_ones_may_be_missing():
    automaton = automaton_of(
        {"properties": {"a": {"type": "integer"}, "b": {}, "c": {"type": "null"}}, "required": ["b"]}
    )
    for value in ({"b": 1}, {"a": 1, "b": [2]}, {"a": 1, "b": {}, "c": None}, {"b": 1, "c": None}):
        assert allows(automaton, value), value
    for value in ({}, {"a": 1}, {"b": 1, "a": 1}, {"b": 1, "d": 1}, {"b": 1, "b ": 2}, {"a": "x", "b": 1}, []):
        assert not allows(automaton, value), value


def test_further_properties_are_those_of_other_names():
    automaton = automaton_of({"properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}})
    for value in ({}, {"a": 1}, {"a": 1, "b": "x"}, {"ab": "x"}, {"": "x", "猫": "y"}):
        assert allows(automaton, value), value
    for value in ({"a": "x"}, {"a": 1, "b": 1}, {"b": "x", "a": "y"}):
        assert not allows(automaton, value), value
    assert not automaton.accepts(automaton.read(automaton.start, b'{"\\u0061": "x"}'))


def test_references_recursion_and_several_schemas():
    tree = {"$ref": "#/$defs/tree", "$defs": {"tree": {
        "type": "object", "required": ["v", "next"], "properties": {
            "v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}}}}}  # fmt: skip
    automaton = automaton_of(tree)
    assert allows(automaton, {"v": 1, "next": {"v": 2, "next": None}}) and not allows(automaton, {"v": 1})
    both = automaton_of({"allOf": [{"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]},
                                   {"properties": {"b": {"type": "null"}}, "required": ["b"]}]})  # fmt: skip
    assert allows(both, {"a": None, "b": None}) and not allows(both, {"a": None})
    kinds = [{"type": "object", "properties": {"kind": {"const": k}}, "required": ["kind"]} for k in ("x", "y")]
    assert allows(automaton_of({"oneOf": kinds}), {"kind": "y"})
    assert allows(automaton_of({"oneOf": [{"type": "string"}, {"type": "integer"}]}), 3)
    assert allows(
        automaton_of({"type": "array", "prefixItems": [{"type": "null"}, {"const": 1}], "maxItems": 3}), [None, 1, "x"]
    )


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        ("date", "2024-02-28", "2023-02-30"), ("date-time", "1999-12-31T23:59:59Z", "1999-12-31 23:59"),
        ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123e4567"), ("ipv4", "10.0.255.1", "256.1.1.1"),
        ("email", "a.b@example.org", "a@b"), ("time", "23:59:59+01:00", "24:00:00Z"),
    ],
)  # fmt: skip
def test_formats(form: str, good: str, bad: str):
    automaton = automaton_of({"type": "string", "format": form})
    assert allows(automaton, good) and not allows(automaton, bad)


NEVER_MET = [
    False, {"type": "integer", "minimum": 5, "maximum": 4}, {"type": "string", "minLength": 3, "maxLength": 2},
    {"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2}, {"type": "array", "items": False, "minItems": 1},
    {"type": "array", "minItems": 2, "maxItems": 1}, {"type": "object", "properties": {"a": False}, "required": ["a"]},
    {"type": "object", "required": ["a"], "additionalProperties": False}, {"type": "string", "enum": [1, 2]},
    {"$ref": "#"}, {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    {"type": "array", "items": {"$ref": "#"}, "minItems": 1}, {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
    {"type": "number", "minimum": 0.1, "exclusiveMaximum": 0.1}, {"const": 1, "enum": [2]},
]  # fmt: skip


@pytest.mark.parametrize("schema", NEVER_MET, ids=str)
def test_what_cannot_be_met_or_never_ends_is_told(schema: Any):
    with pytest.raises(UserError, match="nothing meets it, or what would never ends"):
        automaton_of(schema)


def deep(levels: int) -> Any:
    return {"type": "array", "items": deep(levels - 1)} if levels else {"type": "null"}


REFUSED = {
    "schema is 3": 3,
    "schema is [1]": [1],
    "schema has \"foo\", which is not supported": {"foo": 1},
    "schema has \"not\"": {"not": {}},
    "did you mean 'minimum'": {"minimun": 1},
    "schema.properties.a has \"uniqueItems\"": {"properties": {"a": {"uniqueItems": True}}},
    "schema.type is \"text\"": {"type": "text"},
    "schema.type is null": {"type": [None]},
    "schema.properties is [1]": {"properties": [1]},
    "schema.required is \"a\"": {"required": "a"},
    "schema.enum is []": {"enum": []},
    "schema.minLength is -1": {"minLength": -1},
    "schema.minItems is true": {"minItems": True},
    "schema.minimum is \"1\"": {"minimum": "1"},
    "schema.exclusiveMinimum is true": {"minimum": 1, "exclusiveMinimum": True},
    "schema.minimum is 1e+300": {"minimum": 1e300},
    "schema.pattern: regular expression: '(a' at character 1": {"pattern": "(a"},
    "schema.format is \"hostnames\"": {"format": "hostnames"},
    "more than one of pattern, format and a length": {"pattern": "a", "maxLength": 3},
    "refers to \"http://x/y\"": {"$ref": "http://x/y"},
    "refers to \"#/$defs/b\", which is not there": {"$ref": "#/$defs/b", "$defs": {"a": {}}},
    "schema.anyOf is {}": {"anyOf": {}},
    "it is not certain that no value meets both 0 and 1": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    "schema.allOf[1].type is said twice": {"allOf": [{"type": "integer"}, {"type": "number"}]},
    "too deep or large": deep(100),
    "a value that JSON in UTF-8 cannot hold": {"const": "\ud800"},
    "name is no UTF-8": {"properties": {"\ud800": {}}},
}  # fmt: skip


@pytest.mark.parametrize("told", REFUSED)
def test_what_cannot_be_kept_is_refused_with_its_place(told: str):
    with pytest.raises(UserError) as error:
        automaton_of(REFUSED[told])
    assert told in str(error.value) and "\n" not in str(error.value)
