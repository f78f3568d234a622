"""How the world makes an example: a family draws an instance, a wording asks for it, a checker scores the answer.

Splits are disjoint by construction. An instance's key (what is unique about its input) is hashed into a bucket, and a
bucket belongs to one of train, val and test; wordings and pairs of chained families are listed as trained or held out.
`test_noise` asks the instances of `test`, each a little carelessly typed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal, get_args

Language = Literal["en", "zh"]
Message = dict[str, str]
"""`{"role": "system" | "user" | "assistant", "content": text}`"""

Split = Literal["train", "val", "test", "test_phrasing", "test_composition", "test_noise"]
SPLITS: tuple[Split, ...] = get_args(Split)

_BUCKETS = {"train": range(0, 84), "val": range(84, 92), "test": range(92, 100)}
_MAX_DRAWS = 2000


def bucket_of(family: str, key: str) -> str:
    """`train`, `val` or `test`: which split the instance `key` of `family` belongs to, for ever."""
    bucket = zlib.crc32(f"{family}\0{key}".encode()) % 100
    return next(split for split, buckets in _BUCKETS.items() if bucket in buckets)


def exact(answer: str) -> Callable[[str], float]:
    """1.0 for the very answer (outer white space aside), else 0.0."""
    return lambda text: float(text.strip() == answer)


@dataclass(frozen=True)
class Question:
    """An instance put into one language: what fills the wording, and the answer."""

    slots: Mapping[str, str]
    """Values of the wording's `{placeholders}`."""
    answer: str
    check: Callable[[str], float] | None = None
    """Scores an answer in [0, 1]; None means `exact(answer)`."""
    system: str = ""
    """A system message, when there is one."""
    history: tuple[Message, ...] = ()
    """Turns before the wording's own user turn."""
    kept: tuple[str, ...] = ()
    """What the answer repeats character by character: careless typing must leave it as it is."""


@dataclass(frozen=True)
class Wordings:
    """Templates of a family in one language; `held_out` ones are never trained on."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """One kind of task."""

    name: str
    draw: Callable[[Random], Any]
    """Draws a structured, language-free instance; cheap, since drawing goes on until one is of the split."""
    question: Callable[[Any, Language, Random], Question]
    """Puts an instance into a language. The generator only varies what the answer does not depend on."""
    wordings: Mapping[Language, Wordings]
    key: Callable[[Any], str] = repr
    """What must not be shared between training and test: the input that decides the answer."""
    weight: float = 1.0
    """How often it is drawn in training, relative to the other families; tests weigh all alike."""
    group: str = ""
    """Families of one group split alike: a sentence tested from English to Chinese is trained on in no direction."""

    def split_of(self, instance: Any) -> str:
        """`train`, `val` or `test`: where this instance belongs."""
        return bucket_of(self.group or self.name, self.key(instance))

    def instance(self, rng: Random, split: str) -> Any:
        """Draws until an instance of this bucket (train, val or test) comes up."""
        for _ in range(_MAX_DRAWS):
            instance = self.draw(rng)
            if self.split_of(instance) == split:
                return instance
        raise RuntimeError(f"family {self.name}: no instance of split {split} in {_MAX_DRAWS} draws")


@dataclass(frozen=True)
class Example:
    """One task, asked and answered."""

    family: str
    language: Language
    messages: list[Message]
    """The prompt: it ends with a user turn."""
    answer: str
    split: str
    checker: Callable[[str], float] = field(repr=False, compare=False)
    kept: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """Parts of the prompt that the answer repeats character by character."""

    def check(self, text: str) -> float:
        """Score of an answer in [0, 1]; exact where an exact answer exists."""
        return self.checker(text)

    @property
    def conversation(self) -> list[Message]:
        """The prompt with its answer, as it is trained on."""
        return [*self.messages, {"role": "assistant", "content": self.answer}]


def ask(family: Family, language: Language, rng: Random, split: str) -> Example:
    """An example of `family` for `split`, as it is written: any of SPLITS but `test_noise`, which disturbs `test`."""
    return pose(family, family.instance(rng, "test" if split.startswith("test") else split), language, rng, split)


def pose(family: Family, instance: Any, language: Language, rng: Random, split: str) -> Example:
    """The example that asks for this instance of `family`."""
    question = family.question(instance, language, rng)
    wordings = family.wordings[language]
    wording = rng.choice(wordings.held_out if split == "test_phrasing" else wordings.train)
    system: list[Message] = [{"role": "system", "content": question.system}] if question.system else []
    user: Message = {"role": "user", "content": wording.format(**question.slots)}
    return Example(
        family.name,
        language,
        [*system, *question.history, user],
        question.answer,
        split,
        question.check or exact(question.answer),
        question.kept,
    )
