"""Pretraining text: a function of its index, varied, and silent about what a test asks."""

from __future__ import annotations

import re
from collections import Counter
from random import Random

import pytest

from instructgpt.world import document, documents, sample
from instructgpt.world.core import Family
from instructgpt.world.exercises import EXERCISES, Asked, Exercise
from instructgpt.world.families import BY_NAME
from instructgpt.world.translation import EN_ZH

DOCUMENTS = 1500


@pytest.fixture(scope="module")
def text() -> list[str]:
    return [document(index) for index in range(DOCUMENTS)]


def test_a_document_is_a_function_of_seed_and_index(text: list[str]) -> None:
    assert [document(index) for index in (7, 3, 7)] == [text[7], text[3], text[7]]
    assert document(0, seed=1) != document(0, seed=0)
    assert len(set(text)) > 0.99 * DOCUMENTS


def told_belongings(text: str) -> list[str]:
    """The lines of a text about belongings, without what they may ask; of another text none."""
    lines = [re.sub(r"; \w+\? (Yes|No)\.$|；\w+？(是|不是)。$", "", line) for line in text.split("\n")]
    return lines if set(Counter(lines).values()) == {3} else []


def test_belongings_are_told_thrice_in_changing_order(text: list[str]) -> None:
    told = list(filter(None, map(told_belongings, text)))
    assert 0.04 < len(told) / len(text) < 0.12
    orders = []
    for lines in told:
        count = len(lines) // 3
        rounds = [lines[:count], lines[count : 2 * count], lines[2 * count :]]
        assert all(sorted(lines) == sorted(rounds[0]) for lines in rounds)
        owners, belongings = zip(*(re.split(": |：", line) for line in rounds[0]))
        assert len(set(owners)) == len(set(belongings)) == count, "each has one thing, nobody else has it"
        orders.append(rounds[0] != rounds[1])
    assert sum(orders) > len(orders) / 2


def test_belongings_are_compared_with_what_is_asked(text: list[str]) -> None:
    lines = "\n".join(one for one in text if told_belongings(one)).split("\n")
    asked = [match.groups() for line in lines if (match := re.search(r"(?:: |：)(\w+)[;；] ?(\w+)[?？] ?(\w+)", line))]
    assert 0.25 < len(asked) / len(lines) < 0.42  # half of two rounds in three
    assert all((thing == other) == (verdict in ("Yes", "是")) for thing, other, verdict in asked)
    assert 0.4 < sum(thing == other for thing, other, _ in asked) / len(asked) < 0.6


def test_only_training_instances_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every instance in a document comes from Family.instance or from an exercise, and from its training bucket."""
    instance_of, questions_of, drawn = Family.instance, Exercise.questions, []

    def recorded(family: Family, rng: Random, split: str) -> object:
        instance = instance_of(family, rng, split)
        drawn.append((split, family.split_of(instance), family.name))
        return instance

    def recorded_questions(exercise: Exercise, rng: Random) -> list[Asked]:
        questions = questions_of(exercise, rng)
        drawn.extend(("train", family.split_of(instance), family.name) for family, instance in questions)
        return questions

    monkeypatch.setattr(Family, "instance", recorded)
    monkeypatch.setattr(Exercise, "questions", recorded_questions)
    for index in range(1500):
        before = len(drawn)
        text = document(index)
        # A glossary draws nothing, nor do belongings.
        assert len(drawn) > before or "、" in text or ", " in text or told_belongings(text)
    assert {(asked, bucket) for asked, bucket, _ in drawn} == {("train", "train")}
    assert len({name for *_, name in drawn}) == len(BY_NAME)


def test_no_test_question_is_in_a_document(text: list[str]) -> None:
    blob = "\n\n".join(text) + "\n"
    for split in ("val", "test", "test_phrasing"):
        for example in sample(split, 320):
            if len(example.messages) == 1:  # after other turns, the last one alone says nothing
                content = example.messages[-1]["content"]
                # One that ends in a word may begin a trained one: "… la feuille", "… la feuille rouge".
                assert (f"{content}\n" if content[-1].isalpha() else content) not in blob


def test_no_sum_or_translation_of_the_test_is_in_a_document(text: list[str]) -> None:
    blob = "\n\n".join(text)
    for name, sign in (("add", r"\+"), ("subtract", "-")):
        stated = {(int(a), int(b)) for a, b in re.findall(rf"\b(\d+) {sign} (\d+)\b", blob)}
        assert len(stated) > 100
        assert {BY_NAME[name].split_of(pair) for pair in stated} == {"train"}
    # Whole lines: a tested noun phrase may well be part of a trained sentence.
    lines = [set(re.split(r"\n|: |：", one)) for one in text]
    rng = Random(0)
    for _ in range(300):
        sentence = EN_ZH.instance(rng, "test")
        for one in lines:
            assert len({sentence.en, sentence.zh, sentence.fr} & one) < 2


@pytest.mark.parametrize(
    "table", (documents._NUMBER_FACTS, documents._WORD_FACTS, documents._READING_FACTS), ids=("number", "word", "text")
)
def test_a_statement_tells_the_answer(table: tuple[tuple[Family, documents.Statements], ...]) -> None:
    rng = Random(0)
    for family, statements in table:
        for language in ("en", "zh"):
            for statement in statements[language]:
                assert statement.endswith("{answer}") or "{answer}" in statement
                question = family.question(family.instance(rng, "train"), language, rng)
                told = statement.format(**question.slots, answer=question.answer)
                assert question.answer in told and "{" not in told


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


def test_facts_by_hand(text: list[str]) -> None:
    """Every stated sum, difference and maximum is right."""
    blob = "\n".join(text)
    sums = re.findall(r"^(\d+) ([+-]) (\d+) = (\d+)$", blob, re.MULTILINE)
    assert len(sums) > 100
    for a, sign, b, result in sums:
        assert int(result) == (int(a) + int(b) if sign == "+" else int(a) - int(b))
    maxima = re.findall(r"^The maximum of ([\d ]+) is (\d+)\.$", blob, re.MULTILINE)
    assert len(maxima) > 20
    for numbers, largest in maxima:
        assert max(map(int, numbers.split())) == int(largest)


def test_both_languages_and_french_are_there(text: list[str]) -> None:
    chinese = sum(bool(re.search("[\u4e00-\u9fff]", one)) for one in text)
    assert 0.4 < chinese / DOCUMENTS < 0.7
    assert sum("French: " in one or "法语：" in one for one in text) > 0.04 * DOCUMENTS


def test_some_numbers_in_chinese_are_of_full_width_and_their_answers_are_not(text: list[str]) -> None:
    told = [
        found
        for document in text
        for found in re.findall(r"([０-９]+) (?:\+|加) ([０-９]+) (?:=|等于) (\d+)", document)
    ]
    assert len(told) >= 10
    assert all(int(a) + int(b) == int(answer) and answer.isascii() for a, b, answer in told)
