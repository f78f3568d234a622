"""JSON from a stream: the same records as json.loads, each with its line, wherever the stream happens to be cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.data.json_stream import json_records
from instructgpt.errors import UserError

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


def read(text: str, size: int = 1 << 20) -> list:
    return list(json_records((text[i : i + size] for i in range(0, len(text), size)), "a.json"))


@given(
    records=st.lists(values), size=st.integers(1, 40), indent=st.none() | st.integers(0, 2), ascii_only=st.booleans()
)
def test_an_array_is_read_wherever_it_is_cut(records: list, size: int, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(records, indent=indent, ensure_ascii=ascii_only)
    assert [value for _, value in read(text, size)] == records


@given(records=st.lists(values.filter(lambda value: not isinstance(value, list)), min_size=1), size=st.integers(1, 40))
def test_json_lines_have_their_line_numbers(records: list, size: int) -> None:
    text = "\n".join(json.dumps(record) for record in records)
    assert read(text, size) == list(enumerate(records, start=1))


def test_lines_of_a_pretty_printed_array() -> None:
    text = '[\n  {\n    "a": 1\n  },\n\n  {"b": "x\\ny"}, 3,\n  "c"\n]\n'
    expected = [(2, {"a": 1}), (6, {"b": "x\ny"}), (6, 3), (7, "c")]
    assert read(text) == expected
    assert all(read(text, size) == expected for size in range(1, len(text)))


def test_one_object_over_lines_and_objects_end_to_end() -> None:
    assert read('{\n "a": [1,\n 2]\n}\n') == [(1, {"a": [1, 2]})]
    assert read('{"a": 1} {"b": 2}\r\n\r\n{"c": 3}') == [(1, {"a": 1}), (1, {"b": 2}), (3, {"c": 3})]
    assert read("[]") == read(" [ ]\n") == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"a": 1}\n{"a": 2,,}\n{"a": 3}', 2),
        ('{"a": 1}\n{"a": 2\n{"a": 3}', 2),  # the decoder notices at line 3 only
        ('{"a": 1}\n{"a": "two\n{"a": 3}', 2),
        ('{"a": 1}\nnonsense\n', 2),
        ('{"a": 1}\n{"a": 2', 2),
        ('[\n  {"a": 1},\n  {"a": 2}', 3),
        ('[\n  {"a": 1}\n  {"a": 2}\n]', 3),
        ('[\n  {\n    "a": 1,\n    "b" 2\n  }\n]', 4),
        ('[\n  {"a": 1},\n]', 3),
        ("[1, 2]\n\n[3]", 3),
        ('{"a": "\\ud83d\\q"}', 1),
        ('{"a": tru}', 1),
        ("1" * 5000, 1),
        ("[" * 100_000, 1),
        ('[\n"\\ud800", ' + "[" * 100_000, 2),
        ("hello\n", 1),
    ],
)
def test_broken_json_names_its_line(text: str, line: int) -> None:
    for size in (7, 1 << 20):
        with pytest.raises(UserError, match=rf"^a\.json:{line}: broken JSON"):
            read(text, size)


def test_records_before_the_broken_one_come_first() -> None:
    records = json_records(iter(['[{"a": 1},\n{"a": 2},\n{"a": }]']), "a.json")
    assert [next(records), next(records)] == [(1, {"a": 1}), (2, {"a": 2})]
    with pytest.raises(UserError, match=r"a\.json:3"):
        next(records)


def test_broken_json_does_not_read_on_to_the_end_of_the_file() -> None:
    def chunks():
        yield '{"a": 1}\n{"a": 2,, "b": "' + "x" * 100
        yield "y" * 100
        raise AssertionError("read on")

    with pytest.raises(UserError, match=r"a\.json:2"):
        list(json_records(chunks(), "a.json"))


def test_a_number_cut_in_its_middle() -> None:
    text = "12 1.5e+30\n-2.25"
    assert all(read(text, size) == [(1, 12), (1, 1.5e30), (2, -2.25)] for size in range(1, len(text)))


def test_lone_surrogates_become_replacement_characters_and_pairs_stay() -> None:
    assert read('{"\\ud800a": ["\\uDc00", "\\ud83d\\ude00", {"b": "x\\ud83d"}], "c": 1}') == [
        (1, {"\ufffda": ["\ufffd", "😀", {"b": "x\ufffd"}], "c": 1})
    ]
    assert read('"\\uDc00"') == read('"\\udc00"') == [(1, "\ufffd")]


@given(text=st.text() | st.text('[]{}",: \n\\u0d8truefalsn-1.5e'))
def test_garbage_gives_records_or_a_user_error(text: str) -> None:
    try:
        read(text, 5)
    except UserError as error:
        assert str(error).startswith("a.json:")


@given(record=values, size=st.integers(1, 9))
def test_a_record_of_many_chunks(record, size: int) -> None:
    assert read(json.dumps([record, "end"]), size)[1] == (1, "end")
