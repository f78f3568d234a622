"""What holds for every family of the world."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.world.core import Family, Language, ask, pose
from instructgpt.world.families import FAMILIES

LANGUAGES: tuple[Language, ...] = ("en", "zh")

every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
in_both_languages = pytest.mark.parametrize("language", LANGUAGES)
seeds = st.integers(0, 2**32)


@every_family
@given(
    seed=seeds, split=st.sampled_from(("train", "val", "test", "test_phrasing")), language=st.sampled_from(LANGUAGES)
)
def test_the_answer_passes_and_others_fail(family: Family, seed: int, split: str, language: Language) -> None:
    example = ask(family, language, Random(seed), split)
    assert example.check(example.answer) == 1.0
    assert example.check(f"  {example.answer}\n") == 1.0
    for wrong in ("", example.answer[:-1], f"{example.answer} {example.answer}", f"It is {example.answer}", "?"):
        if wrong.strip() != example.answer:
            assert example.check(wrong) == 0.0, wrong


@every_family
@given(seed=seeds, language=st.sampled_from(LANGUAGES))
def test_an_example_is_a_function_of_its_seed(family: Family, seed: int, language: Language) -> None:
    once, again = (ask(family, language, Random(seed), "train") for _ in range(2))
    assert once == again
    assert "{" not in once.messages[-1]["content"]


@every_family
def test_test_inputs_are_never_trained_on(family: Family) -> None:
    asked: dict[str, set[str]] = {split: set() for split in ("train", "val", "test")}
    keys: dict[str, set[str]] = {split: set() for split in asked}
    rng = Random(1)
    for split, times in (("train", 3000), ("val", 300), ("test", 300)):
        for _ in range(times):
            instance = family.instance(rng, split)
            keys[split].add(family.key(instance))
            for language in LANGUAGES:
                question = family.question(instance, language, rng)
                asked[split].add(f"{question.system} {question.history} {sorted(question.slots.items())}")
    for apart in (keys, asked):
        assert not apart["train"] & (apart["test"] | apart["val"])
        assert not apart["val"] & apart["test"]
    assert len(keys["test"]) > 60  # of 300 draws: there are many to draw from


@every_family
@in_both_languages
def test_no_answer_is_right_more_often_than_not(family: Family, language: Language) -> None:
    rng = Random(2)
    instances = (family.instance(rng, "test") for _ in range(800))
    answers = Counter(family.question(instance, language, rng).answer for instance in instances)
    assert answers.most_common(1)[0][1] / 800 < 0.55


@every_family
@in_both_languages
def test_wordings_are_many_and_held_out_ones_new(family: Family, language: Language) -> None:
    wordings = family.wordings[language]
    assert len(set(wordings.train)) >= 5
    assert len(set(wordings.held_out)) >= 2
    assert not set(wordings.train) & set(wordings.held_out)


@every_family
@in_both_languages
def test_only_the_split_of_new_phrasings_uses_held_out_wordings(family: Family, language: Language) -> None:
    wordings = family.wordings[language]
    for split, templates in (("test_phrasing", wordings.held_out), ("test", wordings.train), ("train", wordings.train)):
        asked = set()
        for seed in range(60):
            instance, rng = family.draw(Random(seed)), Random(seed)
            slots = family.question(instance, language, rng).slots
            prompt = pose(family, instance, language, Random(seed), split).messages[-1]["content"]
            asked |= {template for template in templates if template.format(**slots) == prompt}
            assert any(template.format(**slots) == prompt for template in templates)
        assert asked == set(templates)


@every_family
@in_both_languages
def test_held_out_wordings_use_trained_words(family: Family, language: Language) -> None:
    """A small model cannot know a word it has never seen: Chinese is compared by character."""

    def parts(templates: tuple[str, ...]) -> set[str]:
        text = " ".join(templates).lower()
        return set(text) if language == "zh" else set("".join(c if c.isalpha() else " " for c in text).split())

    # Words that every task shares ("please", "write", "this" …) are learned from the others.
    known = parts(tuple(template for other in FAMILIES for template in other.wordings[language].train))
    assert parts(family.wordings[language].held_out) <= known
