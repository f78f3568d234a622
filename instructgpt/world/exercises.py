"""Exercises, for pretraining text: one input, then several questions on it with their answers.

Looking something up is learned from answers, and a question on an input that stands there already costs few further
tokens: the same number of tokens holds several times as many answers as with one question an input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from instructgpt.world import numbers, reading, reasoning, rewriting
from instructgpt.world.core import Family, Language

# How something is said in each language; one of the sentences is chosen.
Statements = Mapping[Language, tuple[str, ...]]

Asked = tuple[Family, Any]
"""A family and an instance of it: one question."""


@dataclass(frozen=True)
class Exercise:
    """Questions that share their input."""

    draw: Callable[[Random], Iterable[Asked]]
    """All that could be asked about an input just drawn."""
    most: int
    """Questions told, at most."""
    opening: Statements
    """Shows the input; filled with the slots of the first question."""
    lines: Mapping[str, Statements]
    """By family: how a question and its {answer} are told."""
    weight: float

    def questions(self, rng: Random) -> list[Asked]:
        """Some questions on one input, of the training split all of them, for a test must not be given away."""
        asked: list[Asked] = []
        while not asked:
            asked = [(family, instance) for family, instance in self.draw(rng) if family.split_of(instance) == "train"]
        return rng.sample(asked, min(self.most, len(asked)))

    def tell(self, language: Language, rng: Random) -> str:
        """An input, and in lines below it questions and answers."""
        told: list[str] = []
        for family, instance in self.questions(rng):
            question = family.question(instance, language, rng)
            if not told:
                told.append(rng.choice(self.opening[language]).format(**question.slots))
            line = rng.choice(self.lines[family.name][language])
            told.append(line.format(**question.slots, answer=question.answer))
        return "\n".join(filter(None, told))


def _passage(rng: Random) -> Iterable[Asked]:
    passage = reading.PASSAGE.draw(rng)
    for event in range(len(passage.events)):
        for kind in ("who", "what", "where"):
            yield reading.PASSAGE, passage._replace(asked=event, kind=kind)


def _table(rng: Random) -> Iterable[Asked]:
    table = reading.TABLE.draw(rng)
    for row in range(len(table.people)):
        for column in range(len(table.things)):
            for asks_who in (False, True):
                yield reading.TABLE, table._replace(row=row, column=column, asks_who=asks_who)


def _policy(rng: Random) -> Iterable[Asked]:
    case = reading.POLICY.draw(rng)
    yield reading.POLICY, case
    for _ in range(3):
        yield reading.POLICY, case._replace(asked=rng.randrange(2), days=rng.randint(2, 99))


def _inference(rng: Random) -> Iterable[Asked]:
    facts = reasoning.INFERENCE.draw(rng)
    for holds in (False, True):
        yield reasoning.INFERENCE, facts._replace(holds=holds)
        if isinstance(facts, reasoning.Chain):
            yield reasoning.INFERENCE, facts._replace(holds=holds, asks_greater=not facts.asks_greater)


def _words(rng: Random) -> Iterable[Asked]:
    words = rewriting.draw_words(rng)
    yield rewriting.REVERSE, words
    for place, new in enumerate(rng.sample([word for word in rewriting.WORDS if word not in words], len(words))):
        yield rewriting.REMOVE, rewriting.Removal(words, place)
        yield rewriting.REPLACE, rewriting.Replacement(words, place, new)


def _count(rng: Random) -> Iterable[Asked]:
    _, items = numbers.COUNT.draw(rng)
    for word in dict.fromkeys(items):
        yield numbers.COUNT, (word, items)


def _sum(rng: Random) -> Iterable[Asked]:
    a, b = numbers.ADD.draw(rng)
    yield from ((numbers.ADD, (a, b)), (numbers.ADD, (b, a)))
    yield from ((numbers.SUBTRACT, (a + b, a)), (numbers.SUBTRACT, (a + b, b)))


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        _passage,
        5,
        {"en": ("{text}",), "zh": ("{text}",)},
        {"passage": {"en": ("{question} {answer}",), "zh": ("{question}{answer}",)}},
        weight=2,
    ),
    Exercise(
        _table,
        5,
        {"en": ("{table}",), "zh": ("{table}",)},
        {"table": {"en": ("{question} {answer}",), "zh": ("{question}{answer}",)}},
        weight=2,
    ),
    Exercise(
        _policy,
        3,
        {"en": ("Returns: {policy}.",), "zh": ("退货期限：{policy}。",)},
        {"policy": {"en": ("The {thing}, {days} days: {answer}",), "zh": ("{thing}，{days} 天：{answer}",)}},
        weight=1.5,
    ),
    Exercise(
        _inference,
        3,
        {"en": ("{facts}",), "zh": ("{facts}",)},
        {"inference": {"en": ("{question} {answer}",), "zh": ("{question}{answer}",)}},
        weight=3,
    ),
    Exercise(
        _words,
        4,
        {"en": ("{list}",), "zh": ("{list}",)},
        {
            "reverse": {"en": ("backwards: {answer}",), "zh": ("倒过来：{answer}",)},
            "remove": {"en": ("without {word}: {answer}",), "zh": ("去掉{word}：{answer}",)},
            "replace": {"en": ("{new} for {old}: {answer}",), "zh": ("把{old}换成{new}：{answer}",)},
        },
        weight=9,
    ),
    Exercise(
        _count,
        3,
        {"en": ("{list}",), "zh": ("{list}",)},
        {"count": {"en": ("{word}: {answer}",), "zh": ("{word}出现 {answer} 次",)}},
        weight=2,
    ),
    Exercise(
        _sum,
        4,
        {"en": ("",), "zh": ("",)},
        {
            "add": {"en": ("{a} + {b} = {answer}",), "zh": ("{a} + {b} = {answer}", "{a} 加 {b} 等于 {answer}")},
            "subtract": {"en": ("{a} - {b} = {answer}",), "zh": ("{a} - {b} = {answer}", "{a} 减 {b} 等于 {answer}")},
        },
        weight=3,
    ),
)
