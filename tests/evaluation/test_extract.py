from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.errors import UserError
from instructgpt.evaluation.extract import LabelWords, last_number, same_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("She has 3 eggs, so 16 - 3 - 4 = <<16-3-4=9>>9.\n#### 18", 18),
        ("#### 1,080", 1080),
        ("The answer is 5.", 5),
        ("12.50 dollars", Fraction(25, 2)),
        ("it costs $1,234,567.25!", Fraction(123456725, 100)),
        ("about .5", Fraction(1, 2)),
        ("x = -3", -3),
        ("x = −3", -3),
        ("-$5", -5),
        ("+7", 7),
        ("5-3", 3),
        ("(5)-3", 3),
        ("from 10-12", 12),
        ("1, 2", 2),
        ("1,2", 2),
        ("１２３", 123),
        ("答案是－１，２３４．５", Fraction(-24690 // 2, 10)),
        ("共12个", 12),
        ("٤٢", 42),
        ("3/4", Fraction(3, 4)),
        ("1 3/4 cups", Fraction(7, 4)),
        ("2½", Fraction(5, 2)),
        ("½ of it", Fraction(1, 2)),
        ("-3/4", Fraction(-3, 4)),
        ("12/4 = 3", 3),
        ("7/0", 0),
        ("3/4/2020", 2020),
        ("1.5e3", 1500),
        ("2e-1", Fraction(1, 5)),
        ("12\u202f345", 12345),
        ("12 345", 345),
        ("\\boxed{42}", 42),
        ("5 m²", 5),
        ("ends at 3:30", 30),
        ("9e999999999", Fraction(9) * Fraction(10) ** 400),
    ],
)
def test_the_last_number_of_a_text(text: str, value: Fraction | int) -> None:
    found = last_number(text)
    assert found is not None and found.value == value


@pytest.mark.parametrize("text", ["", "none", "²", "一百", "- . , /", "%"])
def test_a_text_without_a_number(text: str) -> None:
    assert last_number(text) is None and not same_number(last_number(text), last_number("0"))


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("50%", "#### 50", True),
        ("50 %", "0.5", True),
        ("0.5", "５０％", True),
        ("0.5%", "50%", False),
        ("0.5", "50", False),
        ("3/4", "75%", True),
        ("18.00", "18", True),
        ("1,000", "1000", True),
        ("0.33", "1/3", False),
        ("-5", "5", False),
    ],
)
def test_numbers_that_are_the_same(answer: str, reference: str, same: bool) -> None:
    assert same_number(last_number(answer), last_number(reference)) is same
    assert same_number(last_number(reference), last_number(answer)) is same


@given(st.integers(-(10**9), 10**9), st.text("the cat 猫", max_size=9))
def test_an_integer_is_read_in_any_spelling(value: int, before: str) -> None:
    wide = str(value).translate({ord(c): ord(c) + 0xFEE0 for c in "0123456789-"})
    for spelling in (str(value), f"{value:,}", wide, f"{value}.0", f"{value}."):
        found = last_number(f"1 {before} {spelling}")
        assert found is not None and found.value == value


@given(st.text(max_size=40))
def test_no_text_breaks_the_reading(text: str) -> None:
    found = last_number(text)
    assert found is None or any(character.isnumeric() for character in text)
    assert LabelWords.parse(["a=b,c"], ["a"]).of_answer(text) in ("a", None)


WORDS = LabelWords.parse(["positive=good,great,好", "negative=bad,not good,不好"], ["positive", "neutral", "bad"])


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("positive", "positive"),
        ("It is Great!", "positive"),
        ("not good at all", "negative"),
        ("这个不好", "negative"),
        ("很好。", "positive"),
        ("good, though some say bad", "positive"),
        ("goodness", None),
        ("Neutral.", "neutral"),
        ("**bad**", "negative"),
        ("_bad_", "negative"),
        ("", None),
    ],
)
def test_the_label_that_an_answer_names(answer: str, label: str | None) -> None:
    assert WORDS.of_answer(answer) == label


def test_a_reference_is_a_label_or_one_of_its_words() -> None:
    assert [WORDS.of_reference(text) for text in ("bad", " Good\n", "neutral", "not good at all")] == [
        "negative", "positive", "neutral", None,
    ]  # fmt: skip
    assert str(WORDS) == "positive: good, great, 好; negative: bad, not good, 不好; neutral: by its name"


def test_labels_that_are_none() -> None:
    with pytest.raises(UserError, match="'=good' has no label; write it as label=word,word"):
        LabelWords.parse(["=good"], [])
    with pytest.raises(UserError, match="'Good' stands for both 'a' and 'b'"):
        LabelWords.parse(["a=good", "b=Good"], [])
    assert LabelWords.parse(["a", "b="], []).words == {"a": ("a",), "b": ("b",)}
