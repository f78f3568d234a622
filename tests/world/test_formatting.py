"""Formats: what the checkers accept and what they do not."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.world import formatting
from instructgpt.world.lexicon import NOUNS, PEOPLE

WORDS = {entry.en: entry for entry in (*NOUNS, *PEOPLE)}
TOM, CAT, APPLE, HAT = (WORDS[word] for word in ("Tom", "cat", "apple", "hat"))


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Tom", "age": 12}',
        '{"age":12,"name":"Tom"}',
        '\n{ "name" : "Tom",\n "age": 12 }',
        '{"name": "T\\u006fm", "age": 12}',
    ],
)
def test_the_same_json_is_accepted(text: str) -> None:
    assert formatting.same_json('{"name": "Tom", "age": 12}')(text) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Tom", "age": "12"}',
        '{"name": "Tom", "age": 12.0}',
        '{"name": "Tom", "age": 12, "age": 12}',
        '{"name": "Tom", "age": 12, "home": ""}',
        '{"name": "Tom"}',
        '{"Name": "Tom", "age": 12}',
        "{'name': 'Tom', 'age': 12}",
        '{"name": "Tom", "age": 12',
        '{"name": "Tom", "age": 12} ok',
        '```json\n{"name": "Tom", "age": 12}\n```',
        '[{"name": "Tom", "age": 12}]',
        "Tom, 12",
        "",
        "[" * 100_000,
    ],
)
def test_other_json_is_not(text: str) -> None:
    assert formatting.same_json('{"name": "Tom", "age": 12}')(text) == 0.0


@given(st.text(max_size=40))
def test_checkers_never_fail_on_any_text(text: str) -> None:
    for check in (
        formatting.same_json('{"a": 1}'),
        formatting.same_bullets("- a\n- b"),
        formatting.exactly(2, ["a", "b"]),
    ):
        assert check(text) in (0.0, 1.0)


def test_bullets() -> None:
    check = formatting.same_bullets("- cat\n- hat")
    assert [check(text) for text in ("- cat\n- hat", "* cat\n* hat\n", "•  cat\n• hat", "\n- cat \n- hat")] == [1.0] * 4
    for wrong in (
        "- cat\n* hat",
        "cat\nhat",
        "- hat\n- cat",
        "- cat",
        "- cat - hat",
        "-cat\n-hat",
        "1. cat\n2. hat",
        "",
    ):
        assert check(wrong) == 0.0, wrong
    assert check("- cat\n- hat\n- dog") == 0.0


def test_exactly_n_words() -> None:
    check = formatting.exactly(2, ["cat", "hat", "apple"])
    assert [check(text) for text in ("cat hat", "apple cat", " hat\napple ")] == [1.0] * 3
    for wrong in ("cat", "cat hat apple", "cat cat", "a cat", "cat dog", "cat, hat", "cathat", ""):
        assert check(wrong) == 0.0, wrong


def test_examples_by_hand() -> None:
    fact = formatting.JSON.question(formatting.Fact(0, TOM, 12), "en", Random(0))
    assert fact.slots == {"fact": "Tom is 12 years old.", "keys": "name and age"}
    assert fact.answer == '{"name": "Tom", "age": 12}'
    assert fact.check is not None and fact.check('{"age": 12, "name": "Tom"}') == 1.0
    assert (
        formatting.JSON.question(formatting.Fact(2, TOM, CAT), "zh", Random(0)).answer
        == '{"名字": "汤姆", "东西": "猫"}'
    )

    having = formatting.Belongings(TOM, (CAT, APPLE, HAT))
    bullets = formatting.BULLETS.question(having, "en", Random(0))
    assert bullets.slots["things"] == "a cat, an apple and a hat"
    assert bullets.answer == "- cat\n- apple\n- hat"
    assert bullets.check is not None and bullets.check("* cat\n* apple\n* hat") == 1.0
    assert formatting.BULLETS.question(having, "zh", Random(0)).slots["things"] == "猫、苹果和帽子"

    limited = formatting.N_WORDS.question(formatting.Limited(TOM, (CAT, APPLE, HAT), 2), "zh", Random(0))
    assert limited.answer == "猫 苹果"
    assert limited.check is not None
    assert (limited.check("帽子 猫"), limited.check("猫"), limited.check("猫 苹果 帽子")) == (1.0, 0.0, 0.0)


def test_the_number_of_words_is_spread() -> None:
    rng = Random(0)
    numbers = [formatting.N_WORDS.draw(rng).number for _ in range(2000)]
    assert set(numbers) == {1, 2, 3, 4}
    assert max(numbers.count(n) for n in (1, 2, 3, 4)) / 2000 < 0.35
