"""Templates: every way to a field, what is missing, and mistakes told in one line."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.data.account import Unusable
from instructgpt.data.fields import Fields
from instructgpt.data.templates import Template, Templates
from instructgpt.errors import UserError

RECORD: dict[str, Any] = {
    "text": "T",
    "n": 3,
    "ok": True,
    "null": None,
    "answers": {"text": ["x", "y"], "start": [1]},
    "choices": ["red", None, "blue"],
    "turns": [{"say": "a"}, {"say": "b"}, {"other": 1}],
    "a.b": "flat",
    "Is it good? (yes/no)": "yes",
    "Price [EUR]": 5,
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{text}!", "T!"),
        ("{n} {ok}", "3 true"),
        ("{answers.text[0]}", "x"),
        ("{answers.text[-1]} of {answers.text}", "y of x\ny"),
        ("{choices}", "red\nblue"),
        ("Choose {choices:, }.", "Choose red, blue."),
        (r"{choices:\n- }", "red\n- blue"),
        ("{turns.say: / }", "a / b"),
        ("{turns[1].say}", "b"),
        ("{a.b}", "flat"),
        ("{Is it good? (yes/no)} {Price [EUR]}", "yes 5"),
        (r"a\nb\t{text}\\n", "a\nb\tT\\n"),
        (r"{{name}} \{{text}\}", "{{name}} {T}"),
        (r"{text}\n\n{null?}", "T"),
        (r"{missing?}{text} {answers.text[9]?}", "T"),
    ],
)
def test_a_template_is_filled(template: str, text: str) -> None:
    assert Template(template).fill(Fields(RECORD)) == text


def test_values_are_taken_as_they_are() -> None:
    record = Fields({"text": r"{n} \n {{x}} ", "n": 1})
    assert Template("{text}").fill(record) == r"{n} \n {{x}} "
    assert record.unused() == {"n"}, "what a template reads counts as used, and nothing else does"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{missing}", "no field 'missing'"),
        ("{null}", "null where text should be, in 'null'"),
        ("{answers}", "an object where text should be, in 'answers'"),
        ("{answers.text[2]}", "no field 'answers.text[2]'"),
        ("{answers[0]}", "an object where a list should be, in 'answers'"),
        ("{text.inner}", "text where an object should be, in 'text'"),
        ("{a[}", "no field 'a['"),
    ],
)
def test_what_is_not_there_drops_the_record(template: str, reason: str) -> None:
    with pytest.raises(Unusable) as found:
        Template(template).fill(Fields(RECORD))
    assert found.value.reason == reason


def test_the_nearest_field_is_named() -> None:
    with pytest.raises(Unusable) as found:
        Template("{txt}").fill(Fields({"text": "a", "label": "b"}))
    assert found.value.detail == "it has the fields text, label; did you mean 'text'?"


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ({"prompt": "{text"}, "--prompt '{text': the brace at character 1 has no partner"),
        ({"prompt": "text}"}, "--prompt 'text}': the brace at character 5 has no partner"),
        ({"prompt": "{}"}, "names no field"),
        ({"prompt": "text", "answer": "{label}"}, "--prompt 'text' names no field; write it in braces"),
        ({"prompt": "{text}", "answer": "yes"}, "--answer 'yes' names no field"),
        ({"system": "persona"}, "--system 'persona' names no field"),
        ({"answer": "{label}"}, "--prompt and --answer go together"),
        ({"chosen": "{a}", "rejected": "{b}"}, "--prompt and --chosen go together"),
        ({"prompt": "{text}", "rejected": "{b}"}, "--rejected without --chosen"),
        ({"prompt": "{text}", "answer": "{a}", "chosen": "{b}"}, "--answer and --chosen both say"),
        ({"prompt": "{text}", "chosen": "{a}", "rejected": "{a}"}, "nothing would be compared"),
    ],
)
def test_mistakes(flags: dict[str, str], complaint: str) -> None:
    with pytest.raises(UserError) as found:
        Templates.of(**flags)
    assert complaint in str(found.value) and "\n" not in str(found.value)


def test_texts_without_fields_where_they_make_sense() -> None:
    templates = Templates.of(prompt="Tell me a joke.", answer="{joke}", system="Be brief.")
    assert [each.written for each in templates.given] == ["Tell me a joke.", "{joke}", "Be brief."]


def test_a_field_that_no_record_has_is_a_mistake_even_where_it_may_be_absent() -> None:
    templates = Templates.of(prompt="{text} {contxt?}", answer="{label}")
    templates.require_known(["text", "contxt", "label"], "a.json")
    with pytest.raises(UserError, match=r"a\.json: no record has the field 'contxt' of --prompt .*did you mean 'conte"):
        templates.require_known(["text", "context", "label"], "a.json")


@given(st.text(alphabet="a{}[]?:.\\n0", max_size=12))
def test_any_text_is_a_template_or_a_mistake_in_one_line(text: str) -> None:
    try:
        template = Template(text)
    except UserError as error:
        assert "\n" not in str(error)
        return
    with contextlib.suppress(Unusable):
        template.fill(Fields({"a": "x", "n": ["y"], "0": None}))


@given(st.text(max_size=20), st.text(max_size=20))
def test_a_field_alone_gives_its_text_unchanged(name: str, value: str) -> None:
    if name.strip() and not set(name) & set("{}?:.[]\\") and name == name.strip():
        assert Template(f"{{{name}}}").fill(Fields({name: value})) == value
