"""Answers are in the text: they are read out of it again here, by pattern."""

from __future__ import annotations

import re
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from instructgpt.world.core import Language, Question
from instructgpt.world.lexicon import NOUNS, PEOPLE, PLACES, VERBS
from instructgpt.world.reading import PASSAGE, POLICY, SUMMARY, TABLE

seeds = st.integers(0, 2**32)
PAST = {verb.base: verb.past for verb in VERBS}
CHINESE = {entry.en: entry.zh for entry in (*PEOPLE, *NOUNS, *PLACES)}


def both(family, seed: int) -> tuple[Question, Question]:
    """One instance in English and in Chinese."""
    rng = Random(seed)
    instance = family.instance(rng, "train")
    english, chinese = (family.question(instance, language, rng) for language in ("en", "zh"))
    return english, chinese


def bare(answer: str) -> str:
    return re.sub(r"^(at )?(the|an?) ", "", answer)


@given(seed=seeds)
def test_a_passage_answers_its_question(seed: int) -> None:
    english, chinese = both(PASSAGE, seed)
    events = re.findall(r"(\w+) (\w+) an? (\w+) at the (\w+)\.", english.slots["text"])
    asked = english.slots["question"]
    if match := re.fullmatch(r"Who (\w+) the (\w+)\?", asked):
        answers = [who for who, verb, what, _ in events if (verb, what) == match.groups()]
    elif match := re.fullmatch(r"What did (\w+) (\w+)\?", asked):
        answers = [f"the {what}" for who, verb, what, _ in events if (who, verb) == (match[1], PAST[match[2]])]
    else:
        match = re.fullmatch(r"Where was (\w+)\?", asked)
        assert match
        answers = [f"at the {where}" for who, _, _, where in events if who == match[1]]
    assert answers == [english.answer]
    assert chinese.answer == CHINESE[bare(english.answer)]
    assert chinese.answer in chinese.slots["text"]


def test_a_passage_names_nobody_and_nothing_twice() -> None:
    """So that a question has one answer."""
    rng = Random(0)
    for _ in range(500):
        events = PASSAGE.instance(rng, "train").events
        for column in ("who", "what", "where"):
            assert len({getattr(event, column) for event in events}) == len(events)


@given(seed=seeds)
def test_a_return_is_within_the_limit_of_its_own_thing(seed: int) -> None:
    english, chinese = both(POLICY, seed)
    limits = dict(re.findall(r"(\w+) (\d+) days", english.slots["policy"]))
    limit, days = int(limits[english.slots["thing"]]), int(english.slots["days"])
    assert len(limits) == 2
    assert english.answer == (f"Yes, within {limit} days." if days <= limit else f"No, only within {limit} days.")
    assert chinese.answer == f"{'可以' if days <= limit else '不可以'}，期限是 {limit} 天。"
    assert f"{chinese.slots['thing']} {limit} 天" in chinese.slots["policy"]


def test_the_limit_of_the_other_thing_often_says_otherwise() -> None:
    rng = Random(0)
    cases = [POLICY.instance(rng, "train") for _ in range(2000)]
    yes = sum(case.days <= case.limits[case.asked] for case in cases)
    misled = sum((case.days <= case.limits[0]) != (case.days <= case.limits[1]) for case in cases)
    assert 0.45 < yes / 2000 < 0.55
    assert misled / 2000 > 0.4


@given(seed=seeds)
def test_a_table_answers_its_question(seed: int) -> None:
    english, chinese = both(TABLE, seed)
    heads, *rows = (line.strip("| ").split(" | ") for line in english.slots["table"].split("\n"))
    asked = english.slots["question"]
    if match := re.fullmatch(r"Who has (\d+) (\w+)\?", asked):
        answers = [row[0] for row in rows if row[heads.index(match[2])] == match[1]]
        assert chinese.answer == CHINESE[english.answer]
    else:
        match = re.fullmatch(r"How many (\w+) does (\w+) have\?", asked)
        assert match
        answers = [row[heads.index(match[1])] for row in rows if row[0] == match[2]]
        assert chinese.answer == english.answer
    assert answers == [english.answer]


@given(seed=seeds)
def test_a_summary_names_the_one_who_came(seed: int) -> None:
    english, chinese = both(SUMMARY, seed)
    text = english.slots["text"]
    (who,) = re.findall(r"(\w+) (?:went to|walked to|was at) the", text)
    ((pronoun, deed),) = re.findall(r"There (he|she) (\w+ an? \w+)\.", text)
    assert english.answer == f"{who} {deed}."
    gender = next(person.gender for person in PEOPLE if person.en == who)
    assert pronoun == ("he" if gender == "m" else "she")
    assert chinese.answer.startswith(CHINESE[who])
    assert ("他" if gender == "m" else "她") in chinese.slots["text"]
    assert chinese.answer.removeprefix(CHINESE[who]) in chinese.slots["text"]


def test_examples_by_hand() -> None:
    def example(family, wanted: str, language: Language) -> str:
        """The answer of the first instance whose text in English is `wanted`, met among its own kind."""
        rng = Random(0)
        while True:
            instance = family.draw(rng)
            if family.question(instance, "en", rng).answer == wanted:
                return family.question(instance, language, rng).answer

    assert example(SUMMARY, "Anna bought an apple.", "zh") == "安娜买了一个苹果。"
    assert example(SUMMARY, "Tom drew a cow.", "zh") == "汤姆画了一头牛。"
    assert example(POLICY, "Yes, within 30 days.", "zh") == "可以，期限是 30 天。"
    assert example(PASSAGE, "at the library", "zh") == "图书馆"
