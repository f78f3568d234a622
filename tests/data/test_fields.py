"""The view of a record: how names are compared, what counts as absent, and what was used."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.data.fields import Fields, is_filled


@pytest.mark.parametrize("spelling", ["system_prompt", "System Prompt", "systemPrompt", "SYSTEM-PROMPT"])
def test_names_are_compared_without_case_and_signs(spelling: str) -> None:
    fields = Fields({spelling: "s"})
    assert "system_prompt" in fields and fields.take("system_prompt") == "s" and not fields.unused()


def test_the_very_spelling_comes_first_and_the_filled_one_before_the_empty() -> None:
    assert Fields({"Answer": "A", "answer": "a"}).take("answer") == "a"
    assert Fields({"answer": "", "Answer": "A"}).take("answer") == "A"
    assert Fields({"answer": "", "Answer": ""}).take("answer") == ""
    fields = Fields({"Answer": "A", "ANSWER": "B"})
    assert fields.take("answer") == "B" and fields.unused() == {"Answer"}


@pytest.mark.parametrize("absent", [None, float("nan")])
def test_null_is_absent(absent: object) -> None:
    fields = Fields({"output": absent, "response": "x"})
    assert "output" not in fields and fields.take("output") is None and fields.names == ("output", "response")
    assert fields.first(("output", "response")) == "response"


def test_the_first_filled_field_comes_before_an_empty_one() -> None:
    assert Fields({"output": "", "response": "x"}).first(("output", "response")) == "response"
    assert Fields({"output": " ", "response": []}).first(("response", "output")) == "response"
    assert Fields({"a": 1}).first(("output", "response")) is None


def test_what_was_not_taken_is_not_used_unless_it_is_empty() -> None:
    record = {"a": "x", "b": "x", "images": ["i"], "n": 0, "no": False, "e1": "", "e2": [], "e3": {}, "e4": None}
    fields = Fields({**record, "e5": " \n"})
    assert fields.take("a") == "x" and fields.peek("b") == "x"
    assert fields.unused() == {"b", "images", "n", "no"}


def test_what_was_not_taken_of_inner_objects_has_their_name() -> None:
    fields = Fields({"Messages": [{"role": "user", "name": "Ann"}, {"role": "assistant", "name": ""}], "id": 1})
    for message in fields.take("messages"):
        fields.inner("messages", message).take("role")
    assert fields.unused() == {"Messages.name", "id"}


names = st.sampled_from(["prompt", "Prompt", "answer", "an_swer", "id", "images"])
values = st.none() | st.integers(0, 2) | st.sampled_from(["", " ", "a"]) | st.lists(st.just("a"), max_size=1)


@given(record=st.dictionaries(names, values), asked=st.lists(names))
def test_every_filled_field_is_taken_or_not_used_whatever_the_order(record: dict, asked: list[str]) -> None:
    fields, turned = Fields(record), Fields(dict(reversed(record.items())))
    assert [fields.take(name) for name in asked] == [turned.take(name) for name in asked]
    assert fields.unused() == turned.unused() <= {name for name, value in record.items() if is_filled(value)}
    assert fields.first(asked) == turned.first(asked)
    for name in record:
        for _ in record:
            fields.take(name)
    absent = Fields({name: value for name, value in record.items() if value is not None})
    assert [absent.take(name) for name in asked] == [turned.take(name) for name in asked]


def test_two_names_may_find_one_field():
    fields = Fields({"Source Text": "a", "context": "b", "hint": None})
    assert fields.is_same("source_text", "Source Text") and fields.is_same("context", "Context")
    assert not fields.is_same("context", "source_text") and not fields.is_same("context", None)
    assert not fields.is_same("hint", "Hint"), "what is absent is no field"
