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
from instructgpt.data.held_out import held_out_keys, prompt_key
from instructgpt.data.preferences import Ranking, read_rankings
from instructgpt.errors import UserError
from instructgpt.objectives.lm import Loss
from instructgpt.settings import FilePath, NonNegativeInt, PositiveInt, ShareBelow1
from instructgpt.stages.adapting import AdapterFlags
from instructgpt.stages.common import StageConfig, say_split
from instructgpt.stages.mixture import groups, mixed, of_group, require_weights
from instructgpt.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ComparisonConfig(StageConfig):
    """Flags of the stages that learn from compared answers."""

    data: tuple[FilePath, ...] = ()
    """Preference files (chosen and rejected beside a prompt, HH-RLHF transcripts, rankings), or `world` for the
    embedded world. Files together are one source, drawn as often as `world` beside them, unless --weights says how
    often."""
    weights: tuple[float, ...] = ()
    """How often each of --data is drawn, relative to the others, one number for each."""
    long: Literal["cut", "drop"] = "cut"
    """What becomes of a comparison longer than the context: its prompt loses the earliest turns and then the front of
    the question, down to half of the context, then its answers their tails; or it is left out."""
    prompts: PositiveInt = 32
    """Prompts of a batch, each with all its answers."""
    val_share: ShareBelow1 = 0.1
    """Share of each file's records that is validated on and never trained on (at most 500 prompts a file), nor is
    their prompt in another file."""
    val_pairs: NonNegativeInt = 600
    """Pairs of the embedded world validated on."""
    adapter: AdapterFlags = field(default_factory=AdapterFlags)
    reading: Reading = field(default_factory=Reading)


class HeldOut(NamedTuple):
    """What is validated on: rankings, and the kind of each: the fault in a pair of the world, or the file's name."""

    rankings: list[Ranked]
    kinds: list[str]
    records: list[dict[str, Any]]
    """The files' part of it, for val.jsonl."""

    def add(self, rankings: list[Ranking], ranked: list[Ranked], kind: str) -> None:
        self.rankings.extend(ranked)
        self.kinds.extend([kind] * len(ranked))
        for messages, (best, *others) in ((each.messages, each.answers) for each in rankings):
            pair = {"chosen": best, "rejected": others[0]}
            self.records.append({"prompt": messages, **(pair if len(others) == 1 else {"ranking": [best, *others]})})

    @property
    def pair_kinds(self) -> list[str]:
        """A kind for each pair of answers, in the order of the batches' pairs."""
        counts = (len(ranked.answers) for ranked in self.rankings)
        return [kind for kind, count in zip(self.kinds, counts) for _ in range(count * (count - 1) // 2)]

    def batches(self, context: int, prompts: int) -> list[ComparisonBatch]:
        return list(comparison_batches(self.rankings, context, prompts))


def comparisons(config: ComparisonConfig, tokenizer: Tokenizer, context: int) -> tuple[RankedSource, HeldOut]:
    """What to train on and what to hold out of --data; says what was read, dropped and cut, and how much it is."""
    require_weights(config.data, config.weights)
    files = config.reading.files(config.data)
    read = _read(files, config)
    held = {key for part in read for key in held_out_keys(map(_key, part), config.val_share)}
    validation_source = WorldPreferences("val", tokenizer, context)
    world_pairs = range(config.val_pairs) if "world" in config.data else ()
    left_out = held.union(prompt_key(validation_source.pair(i).messages) for i in world_pairs)
    held_out, trained = HeldOut([], [], []), list[list[Ranking]]()
    for file, part in zip(files, read):
        chosen = [ranking for ranking in part if _key(ranking) in held]
        trained.append([ranking for ranking in part if _key(ranking) not in left_out])
        held_out.add(chosen, tokenized_all(chosen, tokenizer, context, config.long)[0], Path(file.path).name)
    sources: list[Any] = []
    if files:
        if config.val_share and not held:
            raise UserError("one prompt cannot be split into training and validation; set --val-share 0", files[0].path)
        say_split("comparisons", config.out, sum(map(len, read)), sum(map(len, trained)), len(held_out.records))
    for group in groups(config.data, config.weights):
        if group == ["world"]:
            sources.append(WorldPreferences("train", tokenizer, context, config.seed, held))
            held_out.rankings.extend(validation_source[i] for i in world_pairs)
            held_out.kinds.extend(world.preference("val", i).fault for i in world_pairs)
            continue
        ranked, what_was_cut = tokenized_all(of_group(group, files, trained), tokenizer, context, config.long)
        if what_was_cut:
            print(f"  {what_was_cut}", flush=True)
        sources.append(Rankings(ranked, config.seed))
    return mixed(sources, config.weights, config.seed), held_out


def _key(ranking: Ranking) -> str:
    return prompt_key(ranking.messages)


def _read(files: list[DataFile], config: ComparisonConfig) -> list[list[Ranking]]:
    """What is usable of each file; of exact duplicates, in whichever file, the first is kept."""
    found, seen = [], set[int]()
    for file in files:
        account = Account(file.path, seen)
        found.append(list(read_rankings([file], account, config.reading.strict, unique=True)))
        print(account.report(), flush=True)
    return found


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
