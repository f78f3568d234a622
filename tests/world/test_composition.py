"""Chains of two tasks: which pairs exist, and answers against a second computation from the words of the prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.world import composition
from instructgpt.world.composition import HELD_OUT_PAIRS, TRAINED_PAIRS
from instructgpt.world.core import SPLITS, Family
from instructgpt.world.families import BY_NAME
from instructgpt.world.lexicon import NOUNS

seeds = st.integers(0, 2**32)
PLURALS = {noun.en: noun.plural for noun in NOUNS}


def named(pairs: tuple[tuple[str, str], ...]) -> set[str]:
    return {"+".join(pair) for pair in pairs}


def test_no_held_out_pair_is_trained_but_all_of_its_parts_are() -> None:
    assert not set(TRAINED_PAIRS) & set(HELD_OUT_PAIRS)
    assert len(set(TRAINED_PAIRS)) == len(TRAINED_PAIRS)
    assert len(set(HELD_OUT_PAIRS)) == len(HELD_OUT_PAIRS)
    assert {first for first, _ in HELD_OUT_PAIRS} <= {first for first, _ in TRAINED_PAIRS}
    assert {second for _, second in HELD_OUT_PAIRS} <= {second for _, second in TRAINED_PAIRS}
    assert {name for pair in (*TRAINED_PAIRS, *HELD_OUT_PAIRS) for name in pair} <= set(BY_NAME)


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_asks_its_own_pairs_and_all_of_them(split: str) -> None:
    asked = {composition.ask(Random(seed), split).family for seed in range(500)}
    assert asked == named(HELD_OUT_PAIRS if split == "test_composition" else TRAINED_PAIRS)


@given(seed=seeds, split=st.sampled_from(SPLITS))
def test_the_answer_passes_and_others_fail(seed: int, split: str) -> None:
    example = composition.ask(Random(seed), split)
    assert example == composition.ask(Random(seed), split)
    assert example.split == split
    assert [message["role"] for message in example.messages] == ["user"]
    assert example.check(example.answer) == 1.0
    for wrong in ("", example.answer[:-1], f"{example.answer} {example.answer}", f"It is {example.answer}"):
        assert example.check(wrong) == 0.0, wrong


@pytest.mark.parametrize("chain", (*composition.TRAINED, *composition.HELD_OUT), ids=lambda chain: chain.name)
def test_a_chain_splits_like_its_first_task(chain: Family) -> None:
    first = BY_NAME[chain.name.split("+")[0]]
    rng = Random(0)
    for _ in range(50):
        instance = chain.draw(rng)
        # A thing to translate stands for itself; all other chains draw instances of the first task.
        key = instance.en if first.group == "translation" else first.key(instance)
        assert chain.key(instance) == key
        assert chain.group == (first.group or first.name)


def sorted_again(match: re.Match[str]) -> str:
    return " ".join(sorted(match[1].split(), key=int, reverse=match[2] == "large to small"))


FIRST: dict[str, tuple[str, Callable[[re.Match[str]], str]]] = {
    "sort": (r"sort ([\d ]+) from (small to large|large to small)", sorted_again),
    "reverse": (r"reverse ([a-z ]+?)(?=[.,;])", lambda m: " ".join(m[1].split()[::-1])),
    "remove": (r"remove (\w+) from ([a-z ]+)", lambda m: " ".join(w for w in m[2].split() if w != m[1])),
    "replace": (
        r"replace (\w+) with (\w+) in ([a-z ]+)",
        lambda m: " ".join(m[2] if w == m[1] else w for w in m[3].split()),
    ),
    "add": (r"add (\d+) and (\d+)", lambda m: str(int(m[1]) + int(m[2]))),
    "subtract": (r"subtract (\d+) from (\d+)", lambda m: str(int(m[2]) - int(m[1]))),
    "maximum": (r"find the largest of ([\d ]+)", lambda m: str(max(map(int, m[1].split())))),
    "count": (r"count how often (\w+) is in ([a-z ]+)", lambda m: str(m[2].split().count(m[1]))),
    "plural": (
        r"change 1 ((?:\w+ )?)(\w+) to (\d+)",
        lambda m: f"{m[3]} {m[1]}{PLURALS[m[2]]}",
    ),
}
SECOND: dict[str, tuple[str, Callable[[str, re.Match[str]], str]]] = {
    "reverse": (r"reverse the result", lambda text, m: " ".join(text.split()[::-1])),
    "upper_case": (r"write it in upper case", lambda text, m: text.upper()),
    "bullets": (r"write it as a bullet list", lambda text, m: "\n".join(f"- {word}" for word in text.split())),
    "json": (
        r"give it as JSON with the key result",
        lambda text, m: json.dumps({"result": int(text) if text.isdigit() else text}),
    ),
    "add": (r"add (\d+)\.", lambda text, m: str(int(text) + int(m[1]))),
    "compare": (
        r"give the (larger|smaller) of that and (\d+)",
        lambda text, m: str((max if m[1] == "larger" else min)(int(text), int(m[2]))),
    ),
}


@pytest.mark.parametrize("split", ["train", "test_composition", "test_phrasing"])
def test_answers_follow_from_the_words(split: str) -> None:
    solved = set()
    for seed in range(1500):
        example = composition.ask(Random(seed), split)
        first, second = example.family.split("+")
        if example.language == "en" and first in FIRST:
            prompt = example.messages[0]["content"]
            (pattern, do_first), (then, do_second) = FIRST[first], SECOND[second]
            found, next_found = re.search(pattern, prompt), re.search(then, prompt)
            assert found and next_found, prompt
            assert example.answer == do_second(do_first(found), next_found), prompt
            solved.add(example.family)
    pairs = HELD_OUT_PAIRS if split == "test_composition" else TRAINED_PAIRS
    assert solved == {name for name in named(pairs) if name.split("+")[0] in FIRST}


def test_numbers_stay_below_a_hundred() -> None:
    for seed in range(3000):
        example = composition.ask(Random(seed), "train")
        if example.family.endswith(("+add", "+compare")):
            assert 0 <= int(example.answer) <= 99


def test_examples_by_hand() -> None:
    """Before capitals, which Chinese has none of, the input is English in both languages."""
    chains = {chain.name: chain for chain in (*composition.TRAINED, *composition.HELD_OUT)}
    chain = chains["translate_en_fr+upper_case"]
    things = {thing.en: thing for thing in (chain.draw(Random(seed)) for seed in range(3000))}
    for language in ("en", "zh"):
        assert chain.question(things["the green book"], language, Random(0)).answer == "LE LIVRE VERT"
    json_chain = chains["translate_en_zh+json"]
    assert json_chain.question(things["a cat"], "zh", Random(0)).answer == '{"结果": "一只猫"}'
    for language in ("en", "zh"):
        instance = chains["remove+upper_case"].draw(Random(5))
        answer = chains["remove+upper_case"].question(instance, language, Random(0)).answer
        assert answer.isascii() and answer.isupper()
