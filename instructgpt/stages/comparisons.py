"""What the stages that learn from compared answers share: their flags, their data, and how they are validated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from instructgpt import world
from instructgpt.data.account import Account
from instructgpt.data.comparisons import (
    ComparisonBatch,
    Ranked,
    RankedSource,
    Rankings,
    WorldPreferences,
    comparison_batches,
    tokenized_all,
)
from instructgpt.data.data_file import DataFile, Reading
from instructgpt.data.preferences import Ranking, read_rankings
from instructgpt.data.sources import Mixture
from instructgpt.errors import UserError
from instructgpt.objectives.lm import Loss
from instructgpt.settings import FilePath, NonNegativeInt, PositiveInt, ShareBelow1
from instructgpt.stages.common import StageConfig
from instructgpt.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ComparisonConfig(StageConfig):
    """Flags of the stages that learn from compared answers."""

    data: tuple[FilePath, ...] = ()
    """Preference files (chosen and rejected beside a prompt, HH-RLHF transcripts, rankings), or `world` for the
    embedded world. Files together are one source, drawn as often as `world` beside them."""
    long: Literal["cut", "drop"] = "cut"
    """What becomes of a comparison longer than the context: its prompt loses the earliest turns and then the front of
    the question, down to half of the context, then its answers their tails; or it is left out."""
    prompts: PositiveInt = 32
    """Prompts of a batch, each with all its answers."""
    val_share: ShareBelow1 = 0.1
    """Share of each file's records that is validated on and never trained on (at most 500 a file)."""
    val_pairs: NonNegativeInt = 600
    """Pairs of the embedded world validated on."""
    reading: Reading = field(default_factory=Reading)


class HeldOut(NamedTuple):
    """What is validated on: rankings, and the kind of each: the fault in a pair of the world, or the file's name."""

    rankings: list[Ranked]
    kinds: list[str]

    @property
    def pair_kinds(self) -> list[str]:
        """A kind for each pair of answers, in the order of the batches' pairs."""
        counts = (len(ranked.answers) for ranked in self.rankings)
        return [kind for kind, count in zip(self.kinds, counts) for _ in range(count * (count - 1) // 2)]

    def batches(self, context: int, prompts: int) -> list[ComparisonBatch]:
        return list(comparison_batches(self.rankings, context, prompts))


def comparisons(config: ComparisonConfig, tokenizer: Tokenizer, context: int) -> tuple[RankedSource, HeldOut]:
    """What to train on and what to hold out of --data; prints what was read, dropped and cut."""
    held_out = HeldOut([], [])
    sources: list[Any] = []
    trained: list[Ranked] = []
    for file in config.reading.files(config.data):
        train, validation = _split(_read(file, config), config.val_share)
        ranked, what_was_cut = tokenized_all(train, tokenizer, context, config.long)
        if what_was_cut:
            print(f"  {what_was_cut}", flush=True)
        trained += ranked
        validated, _ = tokenized_all(validation, tokenizer, context, config.long)
        held_out.rankings.extend(validated)
        held_out.kinds.extend([Path(file.path).name] * len(validated))
    if trained or any(name != "world" for name in config.data):
        sources.append(Rankings(trained, config.seed))
    if "world" in config.data:
        sources.append(WorldPreferences("train", tokenizer, context, config.seed))
        validation_source = WorldPreferences("val", tokenizer, context)
        held_out.rankings.extend(validation_source[i] for i in range(config.val_pairs))
        held_out.kinds.extend(world.preference("val", i).fault for i in range(config.val_pairs))
    source = sources[0] if len(sources) == 1 else Mixture(sources, [1.0, 1.0], config.seed)
    return source, held_out  # pyright: ignore[reportReturnType]


def _read(file: DataFile, config: ComparisonConfig) -> list[Ranking]:
    """What is usable of a file. Of exact duplicates the first is kept: the others would stand on both sides."""
    account = Account(file.path)
    unique = {repr(ranking): ranking for ranking in read_rankings([file], account, config.reading.strict)}
    print(account.report(), flush=True)
    if duplicates := account.kept - len(unique):
        print(f"  {duplicates} exact duplicates of another comparison are left out", flush=True)
    return list(unique.values())


def _split(rankings: list[Ranking], share: float) -> tuple[list[Ranking], list[Ranking]]:
    """Every n-th prompt, at most 500, is held out, with all that is ranked for it: the same ones whatever the seed."""
    by_prompt: dict[str, list[Ranking]] = {}
    for ranking in rankings:
        by_prompt.setdefault(repr(ranking.messages), []).append(ranking)
    groups = list(by_prompt.values())
    if not share:
        return rankings, []
    if len(groups) < 2:
        raise UserError(f"{len(groups)} prompt(s) cannot be split into training and validation; set --val-share 0")
    every = max(2, min(round(1 / share), len(groups)))
    held = set(range(every - 1, len(groups), every)[:500])
    return (
        [ranking for i, group in enumerate(groups) if i not in held for ranking in group],
        [ranking for i in sorted(held) for ranking in groups[i]],
    )


def validation(
    loss_fn: Callable[[ComparisonBatch], Loss], batches: Iterable[ComparisonBatch], device: torch.device
) -> Callable[[], dict[str, float]] | None:
    """The `validate` of a stage: its own loss and metrics on held-out comparisons, as means over prompts."""
    batches = list(batches)
    if not batches:
        return None

    def validate() -> dict[str, float]:
        losses = [loss_fn(batch.to(device)) for batch in batches]
        weight = sum(float(loss.weight) for loss in losses)

        def mean(values: Iterable[Tensor]) -> float:
            return sum(float(value) for value in values) / weight

        means = {f"val_{name}": mean(loss.metrics[name] for loss in losses) for name in losses[0].metrics}
        return {"val_loss": mean(loss.total for loss in losses), **means}

    return validate
