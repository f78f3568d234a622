"""Chains of two tasks: do f, then g on its answer.

Some pairs are trained on, others never are, though each of their tasks occurs in a trained pair: whether a model puts
together what it has learned apart is what the split `test_composition` measures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from instructgpt.world import core
from instructgpt.world.core import Example, Family, Language, Question, Wordings, exact
from instructgpt.world.formatting import as_bullets, as_json, same_bullets, same_json
from instructgpt.world.numbers import ADD, COUNT, MAXIMUM, MOST, SIZES, SORT, SUBTRACT
from instructgpt.world.reading import PASSAGE
from instructgpt.world.rewriting import PLURAL, REMOVE, REPLACE, REVERSE, draw_words
from instructgpt.world.translation import EN_FR, EN_ZH, FR_EN, ZH_EN, draw_thing

Phrases = Mapping[Language, str]
Pair = tuple[str, str]

TRAINED_PAIRS: tuple[Pair, ...] = (
    ("sort", "reverse"),
    ("sort", "bullets"),
    ("reverse", "upper_case"),
    ("remove", "reverse"),
    ("remove", "bullets"),
    ("replace", "bullets"),
    ("replace", "upper_case"),
    ("add", "compare"),
    ("add", "json"),
    ("subtract", "json"),
    ("maximum", "add"),
    ("maximum", "compare"),
    ("count", "add"),
    ("count", "json"),
    ("plural", "upper_case"),
    ("passage", "json"),
    ("translate_en_fr", "json"),
    ("translate_fr_en", "upper_case"),
    ("translate_zh_en", "upper_case"),
    ("translate_en_zh", "json"),
)
HELD_OUT_PAIRS: tuple[Pair, ...] = (
    ("reverse", "bullets"),
    ("remove", "upper_case"),
    ("replace", "reverse"),
    ("subtract", "compare"),
    ("maximum", "json"),
    ("plural", "json"),
    ("passage", "upper_case"),
    ("translate_en_fr", "upper_case"),
    ("translate_fr_en", "json"),
)

_WORDINGS: Mapping[Language, Wordings] = {
    "en": Wordings(
        (
            "First {first}, then {second}.",
            "Please {first}, then {second}.",
            "Please {first}. Then {second}.",
            "Two steps: {first}; {second}.",
            "Do this: {first}, and then {second}.",
        ),
        ("Two steps: first {first}, then {second}.", "Please do this: {first}. Then {second}."),
    ),
    "zh": Wordings(
        (
            "先{first}，再{second}。",
            "请{first}，然后{second}。",
            "请先{first}。再{second}。",
            "两步：{first}；{second}。",
            "{first}，最后{second}。",
        ),
        ("两步：先{first}，再{second}。", "请先{first}，然后{second}。"),
    ),
}


# --- first steps ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class First:
    """A family as the first step: its question, asked in a clause."""

    family: Family
    clause: Phrases
    english_before_capitals: bool = False
    """The input is in the question's language, but in English where capitals come next: Chinese has none."""


_THE_FIRST: Mapping[str, First] = {
    first.family.name: first
    for first in (
        First(SORT, {"en": "sort {list} {order}", "zh": "把 {list} {order}排序"}),
        First(
            replace(REVERSE, draw=draw_words),
            {"en": "reverse {list}", "zh": "把 {list} 倒过来"},
            english_before_capitals=True,
        ),
        First(
            REMOVE, {"en": "remove {word} from {list}", "zh": "从 {list} 里去掉{word}"}, english_before_capitals=True
        ),
        First(
            REPLACE,
            {"en": "replace {old} with {new} in {list}", "zh": "在 {list} 里把{old}换成{new}"},
            english_before_capitals=True,
        ),
        First(ADD, {"en": "add {a} and {b}", "zh": "计算 {a} + {b}"}),
        First(SUBTRACT, {"en": "subtract {b} from {a}", "zh": "计算 {a} - {b}"}),
        First(MAXIMUM, {"en": "find the largest of {list}", "zh": "求 {list} 的最大值"}),
        First(COUNT, {"en": "count how often {word} is in {list}", "zh": "数一数{word}在“{list}”里出现几次"}),
        First(
            PASSAGE,
            {"en": "read “{text}” and answer “{question}”", "zh": "读“{text}”并回答“{question}”"},
            english_before_capitals=True,
        ),
        First(PLURAL, {"en": "change {one} to {n}", "zh": "把 {one} 改成 {n} 个"}),
        *(
            First(
                replace(family, draw=draw_thing, key=lambda thing: thing.en),
                {"en": "translate {text} into {to}", "zh": "把“{text}”翻译成{to}"},
            )
            for family in (EN_FR, FR_EN, EN_ZH, ZH_EN)
        ),
    )
}

# --- second steps -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What a second step made of the first one's answer."""

    answer: str
    slots: Mapping[str, str]
    """Of the second clause."""
    check: Callable[[str], float]


@dataclass(frozen=True)
class Second:
    """A task on the answer of another, asked in a clause."""

    clause: Phrases
    apply: Callable[[str, Language, Random], Result]


def _reverse(text: str, language: Language, rng: Random) -> Result:
    answer = " ".join(reversed(text.split()))
    return Result(answer, {}, exact(answer))


def _upper(text: str, language: Language, rng: Random) -> Result:
    return Result(text.upper(), {}, exact(text.upper()))


def _bullets(text: str, language: Language, rng: Random) -> Result:
    answer = as_bullets(text.split())
    return Result(answer, {}, same_bullets(answer))


def _json(text: str, language: Language, rng: Random) -> Result:
    answer = as_json({"result" if language == "en" else "结果": int(text) if text.isdecimal() else text})
    return Result(answer, {}, same_json(answer))


def _add(text: str, language: Language, rng: Random) -> Result:
    # A small summand: two steps are asked for in one answer. It may be 0 only after 99.
    room = min(9, MOST - int(text))
    more = rng.randint(min(1, room), room)
    answer = str(int(text) + more)
    return Result(answer, {"c": str(more)}, exact(answer))


def _compare(text: str, language: Language, rng: Random) -> Result:
    value = int(text)
    # Near the value on either side, so that neither its size nor that of the other number gives the answer away.
    other = value + rng.choice((-1, 1)) * rng.randint(1, 20)
    if not 1 <= other <= MOST:
        other = 2 * value - other
    larger = rng.random() < 0.5
    answer = str(max(value, other) if larger else min(value, other))
    return Result(answer, {"c": str(other), "size": SIZES[language][larger]}, exact(answer))


_THE_SECOND: Mapping[str, Second] = {
    "reverse": Second({"en": "reverse the result", "zh": "倒过来写"}, _reverse),
    "upper_case": Second({"en": "write it in upper case", "zh": "改成大写"}, _upper),
    "bullets": Second({"en": "write it as a bullet list", "zh": "写成项目列表"}, _bullets),
    "json": Second({"en": "give it as JSON with the key result", "zh": "用 JSON 给出，键是结果"}, _json),
    "add": Second({"en": "add {c}", "zh": "加上 {c}"}, _add),
    "compare": Second({"en": "give the {size} of that and {c}", "zh": "和 {c} 比较，给出更{size}的数"}, _compare),
}

# --- chains -----------------------------------------------------------------------------------------------------------


def _chain(pair: Pair) -> Family:
    """The pair as a family. It splits like its first task: no input tested here is trained on, alone or in a chain."""
    first, second = _THE_FIRST[pair[0]], _THE_SECOND[pair[1]]
    family = first.family

    def question(instance: Any, language: Language, rng: Random) -> Question:
        written: Language = "en" if first.english_before_capitals and pair[1] == "upper_case" else language
        asked = family.question(instance, written, rng)
        result = second.apply(asked.answer, language, rng)
        slots = {
            "first": first.clause[language].format(**asked.slots),
            "second": second.clause[language].format(**result.slots),
        }
        return Question(slots, result.answer, result.check)

    group = family.group or family.name
    return Family("+".join(pair), family.draw, question, _WORDINGS, key=family.key, group=group)


TRAINED: tuple[Family, ...] = tuple(map(_chain, TRAINED_PAIRS))
HELD_OUT: tuple[Family, ...] = tuple(map(_chain, HELD_OUT_PAIRS))


def ask(rng: Random, split: str) -> Example:
    """A chain, its family called `f+g`: of the held-out pairs for the split test_composition, else of the trained."""
    chain = rng.choice(HELD_OUT if split == "test_composition" else TRAINED)
    return core.ask(chain, "en" if rng.random() < 0.5 else "zh", rng, split)
