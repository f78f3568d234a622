"""Formats: answer as JSON, as a bullet list, in exactly N words. What to say lies in the input; the task is how."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from instructgpt.world.core import Family, Language, Question, Wordings
from instructgpt.world.lexicon import NOUNS, PEOPLE, PLACES, THINGS, Entry, a

# --- JSON -------------------------------------------------------------------------------------------------------------


class FactKind(NamedTuple):
    """How a pair of values is told, and the two keys they go under."""

    told: dict[Language, str]
    keys: dict[Language, tuple[str, str]]


_FACT_KINDS = (
    FactKind(
        {"en": "{first} is {second} years old.", "zh": "{first}今年 {second} 岁。"},
        {"en": ("name", "age"), "zh": ("名字", "年龄")},
    ),
    FactKind(
        {"en": "{first} works at the {second}.", "zh": "{first}在{second}工作。"},
        {"en": ("name", "place"), "zh": ("名字", "地点")},
    ),
    FactKind(
        {"en": "{first} likes the {second}.", "zh": "{first}喜欢{second}。"},
        {"en": ("name", "thing"), "zh": ("名字", "东西")},
    ),
    FactKind(
        {"en": "The {first} costs {second}.", "zh": "{first}的价格是 {second}。"},
        {"en": ("thing", "price"), "zh": ("东西", "价格")},
    ),
)


class Fact(NamedTuple):
    """Two values that belong together."""

    kind: int
    first: Entry
    second: Entry | int


def _draw_fact(rng: Random) -> Fact:
    kind = rng.randrange(len(_FACT_KINDS))
    first = rng.choice(THINGS if kind == 3 else PEOPLE)
    second = rng.choice(PLACES if kind == 1 else NOUNS) if kind in (1, 2) else rng.randint(2, 99)
    return Fact(kind, first, second)


def _value(value: Entry | int, language: Language) -> str | int:
    return value if isinstance(value, int) else value[language]


def as_json(value: object) -> str:
    """JSON on one line, Chinese as it is."""
    return json.dumps(value, ensure_ascii=False)


def same_json(answer: str) -> Callable[[str], float]:
    """1.0 for text that is the same JSON value as `answer`, whatever its white space and order of keys."""
    expected = json.dumps(json.loads(answer), sort_keys=True)

    def check(text: str) -> float:
        try:
            # Dumped again because Python holds 1, 1.0 and true for equal, and JSON does not.
            return float(json.dumps(json.loads(text, object_pairs_hook=_unique), sort_keys=True) == expected)
        except (ValueError, RecursionError):
            return 0.0

    return check


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("the same key twice")
    return dict(pairs)


def _json_question(fact: Fact, language: Language, rng: Random) -> Question:
    kind = _FACT_KINDS[fact.kind]
    values = [_value(fact.first, language), _value(fact.second, language)]
    keys = kind.keys[language]
    slots = {
        "fact": kind.told[language].format(first=values[0], second=values[1]),
        "keys": f"{keys[0]} and {keys[1]}" if language == "en" else f"{keys[0]}和{keys[1]}",
    }
    answer = as_json(dict(zip(keys, values)))
    return Question(slots, answer, same_json(answer))


def _fact_key(fact: Fact) -> str:
    return f"{fact.kind} {fact.first.en} {_value(fact.second, 'en')}"


JSON = Family(
    "json",
    _draw_fact,
    _json_question,
    {
        "en": Wordings(
            (
                "Write as JSON with {keys}: {fact}",
                "{fact}\nAnswer as JSON with the keys {keys}.",
                "Give {keys} as JSON. {fact}",
                "{fact}\nPut {keys} into JSON.",
                "JSON with the keys {keys}: {fact}",
            ),
            ("Answer as JSON with {keys}. {fact}", "{fact}\nWrite the keys {keys} as JSON."),
        ),
        "zh": Wordings(
            (
                "写成 JSON，键是{keys}：{fact}",
                "{fact}\n请用 JSON 回答，键是{keys}。",
                "用 JSON 给出{keys}：{fact}",
                "{fact}\n把{keys}写成 JSON。",
                "JSON，键是{keys}：{fact}",
            ),
            ("{fact}\n请写成 JSON，键是{keys}。", "请用 JSON 给出{keys}。{fact}"),
        ),
    },
    key=_fact_key,
    weight=0.7,
)

# --- bullet list ------------------------------------------------------------------------------------------------------


class Belongings(NamedTuple):
    """Somebody and the different things they have."""

    person: Entry
    things: tuple[Entry, ...]


def _draw_belongings(rng: Random, least: int, most: int) -> Belongings:
    return Belongings(rng.choice(PEOPLE), tuple(rng.sample(NOUNS, rng.randint(least, most))))


def _belongings_key(instance: Belongings) -> str:
    return " ".join(thing.en for thing in instance.things)


def enumerated(things: tuple[Entry, ...], language: Language) -> str:
    """`a cat, an apple and a dog`, in the language's own way."""
    words = [a(thing.en) if language == "en" else thing.zh for thing in things]
    comma, last = (", ", " and ") if language == "en" else ("、", "和")
    return comma.join(words[:-1]) + last + words[-1]


def as_bullets(words: list[str]) -> str:
    """One word a line, each after a dash."""
    return "\n".join(f"- {word}" for word in words)


def same_bullets(answer: str) -> Callable[[str], float]:
    """1.0 for the lines of `answer` in their order; any one of the signs -, * and • may mark them."""

    def check(text: str) -> float:
        lines = [line.strip() for line in text.strip().splitlines()]
        marks = {line[:1] for line in lines}
        if len(marks) != 1 or not marks <= {"-", "*", "•"} or any(line[1:2] != " " for line in lines):
            return 0.0
        return float([line[2:].strip() for line in lines] == [line[2:] for line in answer.split("\n")])

    return check


def _bullets_question(instance: Belongings, language: Language, rng: Random) -> Question:
    answer = as_bullets([thing[language] for thing in instance.things])
    slots = {"name": instance.person[language], "things": enumerated(instance.things, language)}
    return Question(slots, answer, same_bullets(answer))


BULLETS = Family(
    "bullets",
    lambda rng: _draw_belongings(rng, 2, 4),
    _bullets_question,
    {
        "en": Wordings(
            (
                "Write as a bullet list: {things}",
                "{name} has {things}. Make a bullet list of these things.",
                "Bullet list: {things}",
                "{name} has {things}.\nWhat does {name} have? Answer as a bullet list.",
                "Make a list with bullets: {things}",
            ),
            ("Answer as a list with bullets: {things}", "{name} has {things}. Write these things as a bullet list."),
        ),
        "zh": Wordings(
            (
                "写成项目列表：{things}",
                "{name}有{things}。请用项目列表写出这些东西。",
                "项目列表：{things}",
                "{name}有{things}。\n{name}有什么？用项目列表回答。",
                "把{things}分行列出，每行一项。",
            ),
            ("{name}有{things}。请写成项目列表。", "用项目列表写出：{things}"),
        ),
    },
    key=_belongings_key,
    weight=0.7,
)

# --- exactly N words --------------------------------------------------------------------------------------------------


class Limited(NamedTuple):
    """Things somebody has, of which the answer names exactly `number`."""

    person: Entry
    things: tuple[Entry, ...]
    number: int


def _draw_limited(rng: Random) -> Limited:
    person, things = _draw_belongings(rng, 3, 4)
    return Limited(person, things, rng.randint(1, len(things)))


def exactly(number: int, allowed: list[str]) -> Callable[[str], float]:
    """1.0 for exactly `number` words, all different, all of them `allowed`; their order is free."""

    def check(text: str) -> float:
        words = text.split()
        return float(len(words) == len(set(words)) == number and set(words) <= set(allowed))

    return check


def _n_words_question(instance: Limited, language: Language, rng: Random) -> Question:
    words = [thing[language] for thing in instance.things]
    slots = {
        "name": instance.person[language],
        "things": enumerated(instance.things, language),
        "n": str(instance.number),
        "words": "word" if instance.number == 1 else "words",
    }
    return Question(slots, " ".join(words[: instance.number]), exactly(instance.number, words))


def _limited_key(instance: Limited) -> str:
    return f"{instance.number}: {' '.join(thing.en for thing in instance.things)}"


N_WORDS = Family(
    "n_words",
    _draw_limited,
    _n_words_question,
    {
        "en": Wordings(
            (
                "{name} has {things}. What does {name} have? Answer in exactly {n} {words}.",
                "In exactly {n} {words}: what does {name} have? {name} has {things}.",
                "{name} has {things}. Use exactly {n} {words} to say what {name} has.",
                "Answer with {n} {words} only. {name} has {things}. What does {name} have?",
                "{name} has {things}.\nWhat does {name} have, in {n} {words}?",
            ),
            (
                "{name} has {things}. Say what {name} has in exactly {n} {words}.",
                "What does {name} have? Answer with exactly {n} {words}. {name} has {things}.",
            ),
        ),
        "zh": Wordings(
            (
                "{name}有{things}。{name}有什么？只用 {n} 个词回答。",
                "用 {n} 个词回答：{name}有什么？{name}有{things}。",
                "{name}有{things}。请用正好 {n} 个词说出{name}有什么。",
                "只说 {n} 个词。{name}有{things}。{name}有什么？",
                "{name}有{things}。\n{name}有什么？用正好 {n} 个词回答。",
            ),
            (
                "{name}有{things}。请只用 {n} 个词说出{name}有什么。",
                "{name}有什么？用正好 {n} 个词回答：{name}有{things}。",
            ),
        ),
    },
    key=_limited_key,
    weight=0.7,
)

FAMILIES: tuple[Family, ...] = (JSON, BULLETS, N_WORDS)
