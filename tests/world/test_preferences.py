"""Preference pairs: the chosen answer is right, the rejected one has the fault it is said to have."""

from __future__ import annotations

from collections import Counter
from functools import cache
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.errors import UserError
from instructgpt.world import noise, preferences
from instructgpt.world.core import ask
from instructgpt.world.dialogue import HARMFUL, REFUSAL_ANSWER
from instructgpt.world.families import BY_NAME
from instructgpt.world.formatting import same_bullets, same_json
from instructgpt.world.preferences import FAULTS, PreferencePair, flawed_demonstration, preference

SPLITS = ("train", "val", "test", "test_phrasing")
REFUSALS = set(REFUSAL_ANSWER.values())


@cache
def pairs(split: str = "train", count: int = 1800) -> tuple[PreferencePair, ...]:
    return tuple(preference(split, index) for index in range(count))


def with_fault(fault: str) -> list[PreferencePair]:
    return [pair for pair in pairs() if pair.fault == fault]


def has_chinese(text: str) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for character in text)


@given(split=st.sampled_from(SPLITS), index=st.integers(0, 10**9), seed=st.integers(0, 10**6))
def test_a_pair_is_a_function_of_its_arguments(split: str, index: int, seed: int) -> None:
    pair = preference(split, index, seed)
    assert pair == preference(split, index, seed)
    assert pair != preference(split, index, seed + 1)
    assert pair.fault == FAULTS[index % len(FAULTS)]
    assert pair.messages[-1]["role"] == "user"
    assert pair.rejected.strip() != pair.chosen.strip()


def test_faults_are_balanced_and_spread_over_their_families() -> None:
    assert set(Counter(pair.fault for pair in pairs()).values()) == {300}
    for fault, families in (("wrong_answer", len(BY_NAME) - 1), ("rambling", len(BY_NAME)), ("wrong_format", 8)):
        assert len({pair.family for pair in with_fault(fault)}) == families
    assert len({pair.family for pair in with_fault("wrong_language")}) > 15
    assert {pair.family for pair in with_fault("unsafe_compliance")} == {"refusal"}
    needless = Counter(pair.family for pair in with_fault("needless_refusal"))
    assert 80 < needless["refusal"] < 200  # about half: that is where the mistake is likely
    assert len(needless) > 20


def test_the_chosen_answer_passes_and_the_rejected_one_scores_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the very example of the pair, caught where it is posed."""
    posed: list = []
    pose = preferences.pose

    def remember(*args):
        posed.append(pose(*args))
        return posed[-1]

    monkeypatch.setattr(preferences, "pose", remember)
    monkeypatch.setattr(noise, "SHARE", 0.0)
    for split in SPLITS:
        for index in range(300):
            posed.clear()
            pair = preference(split, index, seed=1)
            example = next(e for e in reversed(posed) if e.messages == pair.messages and e.answer == pair.chosen)
            assert example.split == split
            assert example.check(pair.chosen) == 1.0
            assert example.check(pair.rejected) < 1.0


def test_a_wrong_format_holds_the_right_words() -> None:
    checks = {"json": same_json, "bullets": same_bullets}

    def letters(text: str) -> set[str]:
        return {character for character in text.lower() if character.isalnum()}

    for pair in with_fault("wrong_format"):
        if pair.family in checks:
            assert checks[pair.family](pair.chosen)(pair.rejected) == 0.0
        if pair.family == "upper_case":
            assert pair.rejected.upper() == pair.chosen
        elif pair.family == "n_words":
            assert len(pair.rejected.split()) != len(pair.chosen.split())
        else:
            assert letters(pair.rejected) <= letters(pair.chosen)


def test_a_wrong_language_is_the_other_one() -> None:
    for pair in with_fault("wrong_language"):
        if BY_NAME[pair.family].group != "translation":
            assert has_chinese(pair.chosen) != has_chinese(pair.rejected), pair
        assert pair.rejected not in pair.chosen


def test_rambling_begins_right_and_goes_on() -> None:
    for pair in with_fault("rambling"):
        assert pair.rejected.startswith(pair.chosen)
        assert len(pair.rejected) > len(pair.chosen) + 1


def test_compliance_is_rejected_for_harm_only_and_refusal_for_the_rest() -> None:
    openings = tuple(text.split("{")[0] for row in HARMFUL for deed in row for text in (deed.en,))
    for pair in with_fault("unsafe_compliance"):
        assert pair.chosen in REFUSALS
        assert pair.rejected not in REFUSALS
        prompt = pair.messages[-1]["content"]
        assert has_chinese(prompt) or any(opening.strip() in prompt for opening in openings)
    for pair in with_fault("needless_refusal"):
        assert pair.rejected in REFUSALS
        assert pair.chosen not in REFUSALS
        assert has_chinese(pair.rejected) == has_chinese(pair.messages[-1]["content"]) or pair.family != "refusal"


def test_no_test_prompt_is_in_training() -> None:
    trained = {repr(pair.messages) for pair in pairs("train")}
    rng = Random(0)
    tested = {repr(ask(family, "en", rng, "test").messages) for family in BY_NAME.values() for _ in range(50)}
    assert not trained & (tested | {repr(pair.messages) for pair in pairs("test", 600)})


@pytest.mark.parametrize("split", ["test_composition", "tset", ""])
def test_other_splits_are_told_which_there_are(split: str) -> None:
    with pytest.raises(UserError, match="train, val, test, test_phrasing"):
        preference(split, 0)


@given(split=st.sampled_from(SPLITS), index=st.integers(0, 10**9), seed=st.integers(0, 10**6))
def test_a_flawed_demonstration_is_a_conversation_and_a_function_of_its_arguments(
    split: str, index: int, seed: int
) -> None:
    conversation = flawed_demonstration(split, index, seed)
    assert conversation == flawed_demonstration(split, index, seed) != flawed_demonstration(split, index, seed + 1)
    assert [message["role"] for message in conversation[-2:]] == ["user", "assistant"]


def test_a_flawed_demonstration_has_one_of_the_faults_of_demonstrations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is what the preference of the same draw rejects, and none is a fault of models, such as a refusal."""
    made = [flawed_demonstration("train", index) for index in range(300)]
    assert sum(conversation[-1]["content"] in REFUSALS for conversation in made) < 10
    monkeypatch.setattr(preferences, "DEMONSTRATION_FAULTS", ("rambling",))
    answers = [flawed_demonstration("train", index)[-1]["content"] for index in range(100)]
    assert sum(len(answer.split()) > 3 or "\n" in answer or len(answer) > 12 for answer in answers) > 90
    with pytest.raises(UserError, match="test_composition"):
        flawed_demonstration("test_composition", 0)
