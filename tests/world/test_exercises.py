"""Exercises: several questions on one input, told as text or asked in a conversation."""

from __future__ import annotations

from random import Random

import pytest

from instructgpt import world
from instructgpt.world.core import Language
from instructgpt.world.exercises import EXERCISES, WITH_FOLLOW_UPS, Asked, Exercise
from instructgpt.world.families import BY_NAME


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: "-".join(exercise.lines))
def test_an_exercise_asks_several_things_about_one_input(exercise: Exercise) -> None:
    rng = Random(0)
    counts = []
    for _ in range(50):
        questions = exercise.questions(rng)
        counts.append(len(questions))
        assert len(questions) <= exercise.most and {family.split_of(one) for family, one in questions} == {"train"}
        assert {family.name for family, _ in questions} <= exercise.lines.keys()
    assert sum(counts) > 1.5 * len(counts)
    for language in ("en", "zh"):
        assert "{" not in exercise.tell(language, rng)


def test_exercises_by_hand() -> None:
    told = {"-".join(exercise.lines): exercise.tell("en", Random(1)) for exercise in EXERCISES}
    for line in told["add-subtract"].splitlines():
        a, sign, b, _, result = line.split()
        assert int(result) == (int(a) + int(b) if sign == "+" else int(a) - int(b))
    listed, *counted = told["count"].splitlines()
    assert dict(line.split(": ") for line in counted) == {
        word: str(listed.split().count(word)) for word in {line.split(": ")[0] for line in counted}
    }
    words, *changed = told["reverse-remove-replace"].splitlines()
    for line in changed:
        asked, answer = line.split(": ")
        left = [word for word in words.split() if word not in asked.split()]
        if asked == "backwards":
            assert answer.split() == words.split()[::-1]
        else:
            assert [word for word in answer.split() if word not in asked.split()] == left and len(left) > 1


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("family", sorted(WITH_FOLLOW_UPS))
def test_a_conversation_asks_on_about_the_same_input(
    family: str, language: Language, monkeypatch: pytest.MonkeyPatch
) -> None:
    exercise, asked = WITH_FOLLOW_UPS[family], []
    questions_of = Exercise.questions

    def recorded(exercise: Exercise, rng: Random) -> list[Asked]:
        asked[:] = questions_of(exercise, rng)
        return asked

    monkeypatch.setattr(Exercise, "questions", recorded)
    lengths = set()
    for seed in range(40):
        messages = exercise.conversation(BY_NAME[family], language, Random(seed))
        turns = len(messages) // 2
        lengths.add(turns)
        assert [message["role"] for message in messages] == ["user", "assistant"] * turns
        assert 1 <= turns <= exercise.most
        # What is asked are training instances, and each answer is the right one to one of them.
        assert {one.split_of(instance) for one, instance in asked} == {"train"}
        right = [one.question(instance, language, Random(0)).answer for one, instance in asked]
        for message in messages[1::2]:
            right.remove(message["content"])
        assert all("{" not in message["content"] for message in messages)
        # The input is told once: nobody repeats it to ask on.
        assert all(len(message["content"]) < len(messages[0]["content"]) for message in messages[2::2])
    assert 1 in lengths and max(lengths) > 1


def test_a_conversation_by_hand() -> None:
    first, answer, *further = WITH_FOLLOW_UPS["reverse"].conversation(BY_NAME["reverse"], "en", Random(3))
    words = answer["content"].split()[::-1]
    assert " ".join(words) in first["content"] or ", ".join(words) in first["content"]
    assert further
    for user, assistant in zip(further[::2], further[1::2]):
        asked = user["content"].removesuffix("?").split()
        if asked[1] == "without":
            expected = [word for word in words if word != asked[2]]
        else:
            assert asked[1] == "with"
            expected = [asked[2] if word == asked[4] else word for word in words]
        assert assistant["content"].split() == expected


def test_training_conversations_are_examples_that_may_go_on() -> None:
    turns = {True: 0, False: 0}
    for index in range(400):
        example, messages = world.example("train", index, 5), world.conversation("train", index, 5)
        goes_on = example.family in WITH_FOLLOW_UPS
        turns[goes_on] += len(messages) > len(example.conversation)
        if not goes_on:
            assert messages == example.conversation
    assert turns[False] == 0 and turns[True] > 50
    assert world.conversation("train", 7) == world.conversation("train", 7) != world.conversation("train", 7, seed=1)


def test_tests_ask_once() -> None:
    for split in ("val", "test", "test_phrasing", "test_composition"):
        assert world.conversation(split, 3) == world.example(split, 3).conversation
