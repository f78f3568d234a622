"""Numbers: answers against a second computation from the words of the question, and examples by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from random import Random

import pytest

from instructgpt.world import numbers
from instructgpt.world.core import Family, Language
from instructgpt.world.lexicon import NOUNS

ENTRIES = {noun.en: noun for noun in NOUNS}

Slots = Mapping[str, str]


def numbers_in(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def sort_again(slots: Slots) -> str:
    rest, ordered = numbers_in(slots["list"]), []
    while rest:
        pick = max(rest) if slots["order"] in ("from large to small", "从大到小") else min(rest)
        rest.remove(pick)
        ordered.append(str(pick))
    return " ".join(ordered)


def continue_again(slots: Slots) -> str:
    shown = numbers_in(slots["list"])
    (step,) = {b - a for a, b in pairwise(shown)}
    return str(shown[-1] + step)


AGAIN: dict[str, Callable[[Slots], str]] = {
    "add": lambda s: str(len(range(int(s["a"]))) + int(s["b"])),
    "subtract": lambda s: str(int(s["a"]) - int(s["b"])),
    "compare": lambda s: sorted((s["a"], s["b"]), key=int)[s["size"] in ("larger", "大")],
    "count": lambda s: str(sum(word == s["word"] for word in s["list"].split(" "))),
    "sort": sort_again,
    "maximum": lambda s: str(sorted(numbers_in(s["list"]))[-1]),
    "next_in_sequence": continue_again,
}


@pytest.mark.parametrize("family", numbers.FAMILIES, ids=lambda family: family.name)
def test_answers_are_right_and_small(family: Family) -> None:
    rng = Random(0)
    languages: tuple[Language, ...] = ("en", "zh")
    for i in range(600):
        question = family.question(family.draw(rng), languages[i % 2], rng)
        assert question.answer == AGAIN[family.name](question.slots)
        assert all(0 <= number <= 99 for number in numbers_in(question.answer))


def ask_in(family: Family, instance: object, language: Language) -> tuple[Slots, str]:
    question = family.question(instance, language, Random(0))
    return question.slots, question.answer


def test_examples_by_hand() -> None:
    assert ask_in(numbers.ADD, (37, 45), "en") == ({"a": "37", "b": "45"}, "82")
    assert ask_in(numbers.SUBTRACT, (80, 35), "zh") == ({"a": "80", "b": "35"}, "45")
    assert ask_in(numbers.MAXIMUM, (31, 9, 86, 64), "zh") == ({"list": "31 9 86 64"}, "86")
    assert ask_in(numbers.NEXT_IN_SEQUENCE, (43, -10), "en") == ({"list": "43 33 23 13"}, "3")
    cat, dog = ENTRIES["cat"], ENTRIES["dog"]
    assert ask_in(numbers.COUNT, (cat, (dog, cat, cat)), "zh") == ({"word": "猫", "list": "狗 猫 猫"}, "2")
    # 9 before 31: by size, not by the first digit.
    answers = {tuple(ask_in(numbers.SORT, (31, 9, 86), "en")[1].split()) for _ in range(1)}
    assert answers <= {("9", "31", "86"), ("86", "31", "9")}


def test_the_swapped_sum_is_in_the_same_split() -> None:
    for family in (numbers.ADD, numbers.COMPARE):
        assert all(family.split_of((a, 50)) == family.split_of((50, a)) for a in range(1, 49))
    assert numbers.SORT.split_of((3, 1, 2)) == numbers.SORT.split_of((1, 2, 3))


def test_comparing_needs_both_digits_and_both_numbers() -> None:
    rng = Random(3)
    pairs = [numbers.COMPARE.draw(rng) for _ in range(2000)]
    same_tens = sum(a // 10 == b // 10 for a, b in pairs) / len(pairs)
    first_is_larger = sum(a > b for a, b in pairs) / len(pairs)
    assert same_tens > 0.2
    assert 0.45 < first_is_larger < 0.55


def test_counts_and_directions_are_spread() -> None:
    rng = Random(4)
    counts = [numbers.COUNT.question(numbers.COUNT.draw(rng), "en", rng).answer for _ in range(2000)]
    assert all(0.2 < counts.count(answer) / 2000 < 0.3 for answer in "1234")
    falling = sum(numbers.NEXT_IN_SEQUENCE.draw(rng)[1] < 0 for _ in range(2000)) / 2000
    assert 0.45 < falling < 0.55
