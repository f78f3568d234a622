"""The instruction world: a seeded, endless generator of tasks whose every answer can be checked by code.

    sample("test", n=100, seed=0)   # examples, evenly spread over the families
    sample("test_noise", n=100)     # the same as people type it: a final space, no full stop, digits of full width
    example("train", 7)             # the 7th of the endless training mixture
    document(7)                     # plain text of the same world, for pretraining
    preference("train", 7)          # two answers, the better one first

Each of them is a pure function of its arguments, the seed among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate
from random import Random

from instructgpt.errors import UserError, suggestion
from instructgpt.world import composition, families, noise
from instructgpt.world.core import SPLITS, Example, Language, Split, ask
from instructgpt.world.documents import document
from instructgpt.world.preferences import PreferencePair, flawed_demonstration, preference

__all__ = [
    "FAMILIES", "SPLITS", "Example", "PreferencePair", "Split", "document", "example", "flawed_demonstration",
    "preference", "sample",
]  # fmt: skip

FAMILIES: tuple[str, ...] = tuple(families.BY_NAME)
"""Names of the families; a chain of two is reported as `first+second`."""

CHAINED_SHARE = 0.06
"""Share of chains of two families in the training mixture."""

_CUMULATIVE_WEIGHTS = tuple(accumulate(family.weight for family in families.FAMILIES))
_MAX_REDRAWS = 20


def example(split: str, index: int, seed: int = 0) -> Example:
    """The `index`-th example of the endless sequence of `split`: a pure function of its arguments.

    `train` draws families by weight, and chains of two among them, and a share of it is carelessly typed. In the other
    splits the families take turns, in an order that the seed decides, so that as many consecutive examples as there are
    families ask each of them once. `test_noise` is `test`, every example of it carelessly typed.
    UserError for an unknown split.
    """
    _check_split(split)
    return _typed(_example(split, index, seed, None, 0), split, index, seed)


def sample(split: str, n: int, seed: int = 0, families: Sequence[str] | None = None) -> list[Example]:
    """`n` examples of `split`: the first of `example(split, …, seed)`, without those that would ask the same twice.

    With `families` (names out of FAMILIES) these alone take turns, in training too. UserError for an unknown split or
    family, a negative n, or families together with `test_composition`, whose pairs are fixed.
    """
    _check_split(split)
    if n < 0:
        raise UserError(f"n is {n}; it must be 0 or more")
    chosen = None if families is None else _chosen(split, families)
    examples: list[Example] = []
    asked: set[str] = set()
    for index in range(n):
        # A split may hold fewer instances of a family than are asked for: at last a repetition is let through.
        for redraw in range(_MAX_REDRAWS):
            drawn = _example(split, index, seed, chosen, redraw)
            if (prompt := repr(drawn.messages)) not in asked:
                break
        asked.add(prompt)
        examples.append(_typed(drawn, split, index, seed))
    return examples


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r}{suggestion(split, SPLITS)}")


def _chosen(split: str, names: Sequence[str]) -> tuple[str, ...]:
    if split == "test_composition":
        raise UserError("the split test_composition holds chains of two families; leave `families` out")
    for name in names:
        if name not in families.BY_NAME:
            raise UserError(f"there is no family {name!r}{suggestion(name, FAMILIES)}")
    if not names:
        raise UserError("`families` is empty; name at least one family, or leave it out")
    return tuple(names)


@lru_cache(maxsize=32)
def _turns(names: tuple[str, ...], split: str, seed: int) -> tuple[str, ...]:
    """The order in which the families take turns: it varies, so that few examples are not always of the first ones."""
    return tuple(Random(f"order {split} {seed}").sample(names, len(names)))


def _typed(example: Example, split: str, index: int, seed: int) -> Example:
    """The example as it is asked in this split: as it is written, or carelessly typed."""
    rng = Random(f"noise {split} {seed} {index}")
    if split == "test_noise":
        return replace(noise.disturbed(example, rng, trained=False), split=split)
    return noise.sometimes(example, rng) if split == "train" else example


def _example(split: str, index: int, seed: int, chosen: tuple[str, ...] | None, redraw: int) -> Example:
    split = "test" if split == "test_noise" else split
    rng = Random(f"example {split} {seed} {index} {redraw}")
    if split == "test_composition":
        return composition.ask(rng, split)
    if split == "train" and chosen is None:
        if rng.random() < CHAINED_SHARE:
            return composition.ask(rng, split)
        family = rng.choices(families.FAMILIES, cum_weights=_CUMULATIVE_WEIGHTS)[0]
    else:
        order = _turns(chosen or FAMILIES, split, seed)
        family = families.BY_NAME[order[index % len(order)]]
    language: Language = "en" if rng.random() < 0.5 else "zh"
    return ask(family, language, rng, split)
