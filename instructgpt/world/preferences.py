"""Pairs of answers, the better one first, with the kind of the worse one's fault.

A rejected answer is plausible: the answer to another question of the family, the right words in the wrong form, the
right answer in another language. It always scores lower by the example's own check than the chosen one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from instructgpt.errors import UserError
from instructgpt.world import noise, translation
from instructgpt.world.core import Example, Family, Language, Message, ask, pose
from instructgpt.world.dialogue import HARMLESS, REFUSAL, REFUSAL_ANSWER, Request
from instructgpt.world.families import FAMILIES
from instructgpt.world.formatting import as_bullets

FAULTS = ("wrong_answer", "wrong_format", "wrong_language", "rambling", "unsafe_compliance", "needless_refusal")
SPLITS = ("train", "val", "test", "test_phrasing")
DEMONSTRATION_FAULTS = ("wrong_answer", "wrong_format", "rambling")
"""What is wrong with demonstrations that people write; the others are faults of models."""
_MAX_TRIES = 500
_OTHERS = 8
"""Answers to other questions, of which a wrong answer is the most alike."""


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to one prompt."""

    family: str
    messages: list[Message]
    """The prompt: it ends with a user turn."""
    chosen: str
    rejected: str
    fault: str
    """What is wrong with `rejected`: one of FAULTS."""


@dataclass(frozen=True)
class Task:
    """An example with what it was made from, so that a fault can be built for it."""

    family: Family
    instance: Any
    example: Example
    seed: int
    """Of the choices that the question left to the generator; the same seed asks the same in another language."""


Fault = Callable[[Task, Random], "str | None"]
"""Makes the rejected answer, or None where this task does not lend itself to the fault."""

# --- wrong answer -----------------------------------------------------------------------------------------------------


def _wrong_answer(task: Task, rng: Random) -> str | None:
    answer, example = task.example.answer, task.example
    if (numbers := list(re.finditer(r"\d+", answer))) and rng.random() < 0.5:
        number = rng.choice(numbers)
        near = abs(int(number[0]) + rng.choice((-10, -2, -1, 1, 2, 10)))
        return f"{answer[: number.start()]}{near}{answer[number.end() :]}"
    words = answer.split(" ")
    if task.family.name in _LISTS and len(words) > 1 and rng.random() < 0.5:
        i = rng.randrange(len(words) - 1)
        words[i : i + 2] = reversed(words[i : i + 2])
        return " ".join(words)
    others = (ask(task.family, example.language, rng, example.split).answer for _ in range(_OTHERS))
    return max(
        filter(lambda other: _is_worse(example, other), others), key=lambda o: _likeness(answer, o), default=None
    )


def _is_worse(example: Example, answer: str) -> bool:
    return example.check(answer) < example.check(example.answer)


def _likeness(a: str, b: str) -> float:
    """Jaccard index of the characters: of several wrong answers, the one that is hardest to tell from the right one."""
    return len(set(a) & set(b)) / len(set(a) | set(b))


# --- wrong format -----------------------------------------------------------------------------------------------------

_LISTS = frozenset(("sort", "reverse", "replace", "remove"))


def _list_in_lines(answer: str, language: Language, rng: Random) -> str:
    return as_bullets(answer.split()) if rng.random() < 0.5 else ", ".join(answer.split())


def _json_as_text(answer: str, language: Language, rng: Random) -> str:
    pairs = json.loads(answer).items()
    return ", ".join(str(value) if rng.random() < 0.3 else f"{key}: {value}" for key, value in pairs)


def _bullets_in_a_row(answer: str, language: Language, rng: Random) -> str:
    words = [line.removeprefix("- ") for line in answer.split("\n")]
    return ", ".join(words) if rng.random() < 0.5 else "\n".join(words)


def _too_many_words(answer: str, language: Language, rng: Random) -> str:
    article = "the" if language == "en" else "一个"
    words = answer.split()
    return " ".join(words[:-1]) if len(words) > 1 and rng.random() < 0.5 else " ".join(f"{article} {w}" for w in words)


def _not_in_capitals(answer: str, language: Language, rng: Random) -> str:
    return answer.lower() if rng.random() < 0.5 else answer.capitalize()


_MISFORMATS: Mapping[str, Callable[[str, Language, Random], str]] = {
    "json": _json_as_text,
    "bullets": _bullets_in_a_row,
    "n_words": _too_many_words,
    "upper_case": _not_in_capitals,
    **dict.fromkeys(sorted(_LISTS), _list_in_lines),
}


def _wrong_format(task: Task, rng: Random) -> str | None:
    return _MISFORMATS[task.family.name](task.example.answer, task.example.language, rng)


# --- wrong language ---------------------------------------------------------------------------------------------------


def _wrong_language(task: Task, rng: Random) -> str | None:
    if task.family.group == translation.GROUP:
        return translation.say(task.instance, rng.choice(("en", "zh", "fr")))
    other: Language = "zh" if task.example.language == "en" else "en"
    return pose(task.family, task.instance, other, Random(task.seed), task.example.split).answer


# --- rambling ---------------------------------------------------------------------------------------------------------


def _rambling(task: Task, rng: Random) -> str | None:
    answer, language = task.example.answer, task.example.language
    kind = rng.random()
    if kind < 0.3:
        return "\n".join([answer] * rng.randint(2, 3))
    if kind < 0.6:
        return f"{answer}\n{task.example.messages[-1]['content']}"
    more = " ".join(translation.say(translation.draw_sentence(rng), language) for _ in range(rng.randint(1, 2)))
    return f"{answer} {more}"


# --- unsafe compliance and needless refusal ---------------------------------------------------------------------------


def _unsafe_compliance(task: Task, rng: Random) -> str | None:
    request: Request = task.instance
    if not request.is_harmful:
        return None
    language = task.example.language
    deed = rng.choice(rng.choice(HARMLESS))
    how = request._replace(deed=deed).answer(language)
    if rng.random() < 0.4:
        return how
    return f"Sure, I can help. {how}" if language == "en" else f"好的，我来帮忙。{how}"


def _needless_refusal(task: Task, rng: Random) -> str | None:
    return REFUSAL_ANSWER[task.example.language]


@dataclass(frozen=True)
class _Kind:
    """A fault and the families it can happen to."""

    families: tuple[Family, ...]
    make: Fault


def _named(*names: str) -> tuple[Family, ...]:
    return tuple(family for family in FAMILIES if family.name in names)


_KINDS: Mapping[str, _Kind] = {
    "wrong_answer": _Kind(tuple(family for family in FAMILIES if family is not REFUSAL), _wrong_answer),
    "wrong_format": _Kind(_named(*_MISFORMATS), _wrong_format),
    "wrong_language": _Kind(FAMILIES, _wrong_language),
    "rambling": _Kind(FAMILIES, _rambling),
    "unsafe_compliance": _Kind((REFUSAL,), _unsafe_compliance),
    # Half of them look-alikes of harmful requests, where the mistake is likely; half of them any task.
    "needless_refusal": _Kind(FAMILIES, _needless_refusal),
}


def preference(split: str, index: int, seed: int = 0) -> PreferencePair:
    """The `index`-th pair of `split` (train, val, test or test_phrasing), a pure function of its arguments.

    The faults take turns, so that every kind is as frequent as any other. UserError for another split.
    """
    return _pair(split, FAULTS[index % len(FAULTS)], Random(f"preference {split} {seed} {index}"))


def flawed_demonstration(split: str, index: int, seed: int = 0) -> list[Message]:
    """A conversation whose answer has a fault that people's demonstrations have; a pure function of its arguments.

    DEMONSTRATION_FAULTS take turns. UserError for a split without preferences.
    """
    fault = DEMONSTRATION_FAULTS[index % len(DEMONSTRATION_FAULTS)]
    pair = _pair(split, fault, Random(f"flawed demonstration {split} {seed} {index}"))
    return [*pair.messages, {"role": "assistant", "content": pair.rejected}]


def _pair(split: str, fault: str, rng: Random) -> PreferencePair:
    if split not in SPLITS:
        raise UserError(f"no preferences for the split {split!r}; choose one of: {', '.join(SPLITS)}")
    kind = _KINDS[fault]
    for _ in range(_MAX_TRIES):
        is_lookalike = fault == "needless_refusal" and rng.random() < 0.5
        task = _draw_task(REFUSAL if is_lookalike else rng.choice(kind.families), rng, split)
        rejected = kind.make(task, rng)
        example = task.example
        if rejected is not None and _is_worse(example, rejected):
            asked = noise.sometimes(example, rng) if split == "train" else example
            return PreferencePair(example.family, asked.messages, example.answer, rejected, fault)
    raise RuntimeError(f"no pair with the fault {fault} in {_MAX_TRIES} tries")


def _draw_task(family: Family, rng: Random, split: str) -> Task:
    language: Language = "en" if rng.random() < 0.5 else "zh"
    instance = family.instance(rng, "test" if split.startswith("test") else split)
    seed = rng.getrandbits(32)
    return Task(family, instance, pose(family, instance, language, Random(seed), split), seed)
