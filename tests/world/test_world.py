"""The world as others use it: balanced, endless, reproducible samples, whose splits share nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.errors import UserError
from instructgpt.world import CHAINED_SHARE, FAMILIES, SPLITS, Example, composition, example, families, sample

ROOT = Path(__file__).parents[2]
ALONE = ("train", "val", "test", "test_phrasing")


@cache
def training(count: int = 12_000) -> tuple[Example, ...]:
    return tuple(example("train", index) for index in range(count))


def test_there_are_enough_families_with_names_of_their_own() -> None:
    assert len(FAMILIES) == len(families.FAMILIES) >= 24
    for family in families.FAMILIES:
        assert set(family.wordings) == {"en", "zh"}


@given(split=st.sampled_from(SPLITS), index=st.integers(0, 2**40), seed=st.integers(-5, 2**40))
def test_an_example_is_a_function_of_its_arguments(split: str, index: int, seed: int) -> None:
    drawn = example(split, index, seed)
    assert drawn == example(split, index, seed)
    assert drawn.split == split
    assert drawn.messages[-1]["role"] == "user"
    assert drawn.check(drawn.answer) == 1.0
    assert drawn.check(f" {drawn.answer}\n") == 1.0
    assert drawn.check("") == drawn.check(drawn.messages[-1]["content"] + " ?") == 0.0
    assert not {"{", "}"} & set(drawn.messages[-1]["content"])
    assert drawn.conversation == [*drawn.messages, {"role": "assistant", "content": drawn.answer}]


def test_another_process_draws_the_same() -> None:
    """Python salts its hashes anew in every process; nothing drawn may depend on them."""
    program = (
        "from instructgpt import world\n"
        "print([(e.messages, e.answer) for s in world.SPLITS for e in world.sample(s, 40, seed=3)],"
        " [world.document(i) for i in range(30)], [world.preference('train', i) for i in range(30)])"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": salt, "PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            check=True,
        ).stdout
        for salt in ("1", "2")
    }
    assert len(printed) == 1


@pytest.mark.parametrize("split", SPLITS)
def test_seeds_differ(split: str) -> None:
    prompts = [{repr(e.messages) for e in sample(split, 64, seed)} for seed in (0, 1)]
    assert len(prompts[0] & prompts[1]) <= 3


@pytest.mark.parametrize("split", ALONE[1:])
@pytest.mark.parametrize("n", (1, 10, len(FAMILIES), 3 * len(FAMILIES) + 5))
def test_a_sample_is_spread_evenly(split: str, n: int) -> None:
    drawn = Counter(e.family for e in sample(split, n))
    assert sum(drawn.values()) == n
    assert len(drawn) == min(n, len(FAMILIES))
    assert max(drawn.values()) - min(drawn.values()) <= 1
    everything = Counter(dict.fromkeys(FAMILIES, 0))
    everything.update(drawn)
    assert max(everything.values()) - min(everything.values()) <= 1


def test_few_examples_are_not_always_of_the_same_families() -> None:
    assert len({sample("test", 1, seed)[0].family for seed in range(60)}) > 15


@pytest.mark.parametrize("split", ("test", "test_phrasing", "test_composition"))
def test_a_sample_asks_nothing_twice(split: str) -> None:
    prompts = [repr(e.messages) for e in sample(split, 1000)]
    assert len(set(prompts)) > 995
    languages = Counter(e.language for e in sample(split, 1000))
    assert min(languages.values()) > 400


def test_a_sample_of_some_families() -> None:
    for split in ALONE:
        drawn = Counter(e.family for e in sample(split, 20, families=["add", "sort"]))
        assert drawn == {"add": 10, "sort": 10}


def test_a_sample_grows_at_its_end() -> None:
    for split in SPLITS:
        assert sample(split, 50)[:20] == sample(split, 20)
        assert sample(split, 20)[0] == example(split, 0)
    assert sample("test", 0) == []


def test_training_follows_the_weights() -> None:
    names = Counter(e.family for e in training())
    chained = sum(count for name, count in names.items() if "+" in name)
    assert abs(chained / len(training()) - CHAINED_SHARE) < 0.015
    total = sum(family.weight for family in families.FAMILIES)
    for family in families.FAMILIES:
        expected = (1 - CHAINED_SHARE) * family.weight / total
        assert 0.6 < names[family.name] / len(training()) / expected < 1.5, family.name


def test_held_out_pairs_and_wordings_are_not_trained_on() -> None:
    trained_pairs = {e.family for e in training() if "+" in e.family}
    tested_pairs = {e.family for e in sample("test_composition", 300)}
    assert tested_pairs == {"+".join(pair) for pair in composition.HELD_OUT_PAIRS}
    assert not trained_pairs & tested_pairs


def test_no_test_prompt_is_trained_on() -> None:
    trained = {repr(e.messages) for e in training()}
    for split in SPLITS[1:]:
        assert not trained & {repr(e.messages) for e in sample(split, 500)}


def test_no_language_of_a_family_has_an_answer_that_is_mostly_right() -> None:
    """Honest difficulty: whoever answers from the wording alone is wrong nearly half the time at least."""
    answers: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for drawn in sample("test", 200 * len(FAMILIES), seed=1):
        answers[drawn.family, drawn.language][drawn.answer] += 1
    assert len(answers) == 2 * len(FAMILIES)
    for where, counted in answers.items():
        # 0.55 and three standard deviations of a sample of a hundred.
        assert counted.most_common(1)[0][1] / counted.total() < 0.55 + 3 * 0.05, where


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (dict(split="tset", n=1), "did you mean 'test'"),
        (dict(split="tset", n=0), "did you mean 'test'"),
        (dict(split="test", n=-1), "n is -1"),
        (dict(split="test", n=1, families=["sortt"]), "did you mean 'sort'"),
        (dict(split="test", n=1, families=[]), "empty"),
        (dict(split="test_composition", n=1, families=["add"]), "leave `families` out"),
    ],
)
def test_mistakes_are_told(arguments: dict, told: str) -> None:
    with pytest.raises(UserError, match=told):
        sample(**arguments)


def test_an_unknown_split_is_told() -> None:
    with pytest.raises(UserError, match="choose one of: train, val, test"):
        example("nonsense", 0)
