"""Answers are in the text: they are read out of it again here, by pattern."""

from __future__ import annotations

import re
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from instructgpt.world.core import Family, Question
from instructgpt.world.lexicon import NOUNS, PEOPLE, PLACES, VERBS
from instructgpt.world.reading import PASSAGE, POLICY, SUMMARY, TABLE, Case, Event, Passage, Story, Table

seeds = st.integers(0, 2**32)
PAST = {verb.base: verb.past for verb in VERBS}
CHINESE = {entry.en: entry.zh for entry in (*PEOPLE, *NOUNS, *PLACES)}


def both(family, seed: int) -> tuple[Question, Question]:
    """One instance in English and in Chinese."""
    rng = Random(seed)
    instance = family.instance(rng, "train")
    english, chinese = (family.question(instance, language, rng) for language in ("en", "zh"))
    return english, chinese


def sentences(text: str) -> list[str]:
    """Chinese ones, each with its full stop."""
    return re.findall(r"[^。]+。", text)


@given(seed=seeds)
def test_a_passage_answers_its_question(seed: int) -> None:
    """By the sentence of the text that it is about, up to the word asked for, or by who did it."""
    english, chinese = both(PASSAGE, seed)
    events = re.findall(r"((\w+) (\w+) (an? (\w+)) at the (\w+))\.", english.slots["text"])
    asked = english.slots["question"]
    if match := re.fullmatch(r"Who (\w+) the (\w+)\?", asked):
        ((i, who),) = (
            (i, who) for i, (_, who, verb, _, what, _) in enumerate(events) if (verb, what) == match.groups()
        )
        assert english.answer == f"The one who {match[1]} the {match[2]} is {who}."
        told = sentences(chinese.slots["text"])[i]
        deed, zh_who = re.fullmatch(r"(.+)的是(.+)。", chinese.answer).groups()
        assert zh_who == CHINESE[who] and told.startswith(zh_who)
        assert deed.endswith(CHINESE[match[2]]) and told.endswith(f"{CHINESE[match[2]]}。")
    elif match := re.fullmatch(r"What did (\w+) (\w+)\?", asked):
        ((i, what),) = ((i, what) for i, (_, who, verb, what, *_) in enumerate(events) if who == match[1])
        assert english.answer == f"{match[1]} {PAST[match[2]]} {what}."
        assert chinese.answer == sentences(chinese.slots["text"])[i]
    else:
        match = re.fullmatch(r"Where was (\w+)\?", asked)
        assert match
        ((told, where),) = ((event[0], event[-1]) for event in events if event[1] == match[1])
        assert english.answer == f"{told}."
        assert chinese.answer == f"{CHINESE[match[1]]}在{CHINESE[where]}。"
        assert chinese.answer.removesuffix("。") in chinese.slots["text"]


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
    thing = english.slots["thing"]
    assert english.answer == f"The {thing}: {limit} days. {days} days: {'yes' if days <= limit else 'no'}."
    may = "可以" if days <= limit else "不可以"
    assert chinese.answer == f"{chinese.slots['thing']}：{limit} 天。{days} 天：{may}。"
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
    """By the one who has so many, or by all of the row and then, where it has more cells, the one asked for."""
    english, chinese = both(TABLE, seed)
    (_, *heads), *rows = (line.strip("| ").split(" | ") for line in english.slots["table"].split("\n"))
    (_, *zh_heads), *_ = (line.strip("|").split("|") for line in chinese.slots["table"].split("\n"))
    asked = english.slots["question"]
    if match := re.fullmatch(r"Who has (\d+) (\w+)\?", asked):
        (who,) = (who for who, *cells in rows if cells[heads.index(match[2])] == match[1])
        assert english.answer == f"The one with {match[1]} {match[2]} is {who}."
        assert re.fullmatch(rf"有 {match[1]} .+的是{CHINESE[who]}。", chinese.answer)
    else:
        match = re.fullmatch(r"How many (\w+) does (\w+) have\?", asked)
        assert match
        (cells,) = (cells for who, *cells in rows if who == match[2])
        column = heads.index(match[1])
        row = ", ".join(map(" ".join, zip(heads, cells)))
        zh_row = "，".join(map(" ".join, zip(zh_heads, cells)))
        more = len(cells) > 1
        assert english.answer == f"{match[2]}: {row}." + f" So {match[1]} {cells[column]}." * more
        assert chinese.answer == f"{CHINESE[match[2]]}：{zh_row}。" + f"所以{zh_heads[column]} {cells[column]}。" * more


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
    people, nouns, places = ({entry.en: entry for entry in entries} for entries in (PEOPLE, NOUNS, PLACES))
    verbs = {verb.base: verb for verb in VERBS}

    def event(who: str, verb: str, what: str) -> Event:
        return Event(people[who], verbs[verb], nouns[what], places["park"])

    def answers(family: Family, instance: object) -> list[str]:
        return [family.question(instance, language, Random(0)).answer for language in ("en", "zh")]

    def summary(told: Event) -> list[str]:
        return answers(SUMMARY, Story(told, people["Max"], 0, 0, 0, other_first=False))

    assert summary(event("Anna", "buy", "apple")) == ["Anna bought an apple.", "安娜买了一个苹果。"]
    assert summary(event("Tom", "draw", "cow")) == ["Tom drew a cow.", "汤姆画了一头牛。"]
    case = Case((nouns["hat"], nouns["key"]), (30, 10), asked=0, days=12)
    assert answers(POLICY, case) == ["The hat: 30 days. 12 days: yes.", "帽子：30 天。12 天：可以。"]
    passage = Passage((event("Tom", "draw", "cow"), event("Anna", "buy", "hat")), asked=1, kind="who")
    assert answers(PASSAGE, passage) == ["The one who bought the hat is Anna.", "买了帽子的是安娜。"]
    table = Table(
        (people["Tom"], people["Anna"]), (nouns["hat"], nouns["dog"]), ((4, 5), (2, 3)), row=1, column=1, asks_who=False
    )
    assert answers(TABLE, table) == ["Anna: hats 2, dogs 3. So dogs 3.", "安娜：帽子 2，狗 3。所以狗 3。"]
