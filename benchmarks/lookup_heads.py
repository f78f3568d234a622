"""Which heads look things up, and what becomes of answers without them: `python -m benchmarks.lookup_heads --run RUN`.

Of a model of the instruction world, on questions like "How many geese does Lily have?" about a small table. Heads are
found by where they look, on validation instances: from where the number is to be said, much more at the number in the
right row than at those in other rows. Then they are left out, and greedy answers to test instances are scored by exact
match; as a control, as many other heads are left out, all choices of them or some drawn at random. The world's other
families tell whether the heads are good for anything else.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch

from benchmarks.machine import describe, publish, results_file
from instructgpt import world
from instructgpt.errors import UserError
from instructgpt.evaluation.instructions import evaluate_examples
from instructgpt.evaluation.scores import Interval, mean_interval
from instructgpt.flags import parse, run_main
from instructgpt.inside.lookup import HeadLooks, is_lookup, looks, lookup
from instructgpt.inside.parts import head, left_out
from instructgpt.inside.trace import readable
from instructgpt.settings import FilePath, NonNegativeInt, PositiveInt, Settings, Share
from instructgpt.training.checkpoint import load
from instructgpt.world.core import Example

Head = tuple[int, int]
"""Layer, and number in it."""


@dataclass(frozen=True)
class LookupHeadsConfig(Settings):
    """Finds look-up heads, and leaves them out."""

    run: FilePath = "runs/tiny/sft"
    """A run directory that answers the instruction world."""
    found_on: PositiveInt = 64
    """Questions of the validation split that heads are found on."""
    n: PositiveInt = 300
    """Questions of the test split that answers are scored on."""
    others: NonNegativeInt = 8
    """Examples of each other family, scored with and without the heads; 0 asks for none."""
    least: Share = 0.15
    """A head looks things up where its attention on the right number is so much more than on a wrong one; at most half
    of all heads are taken, those that look hardest, so that there are as many others."""
    controls: PositiveInt = 8
    """Most choices of as many other heads."""
    seed: NonNegativeInt = 0
    json: str = ""
    """A file for the figures; `auto` is benchmarks/results/cpu-lookup-heads.json."""


def questions(split: str, n: int, seed: int = 0) -> list[Example]:
    """n look-up questions; of the table family's, a third are."""
    found: list[Example] = []
    for length in (4 * n, 16 * n, 64 * n):
        found = [each for each in world.sample(split, length, seed, families=["table"]) if is_lookup(each)]
        if len(found) >= n:
            break
    return found[:n]


def chosen(found: HeadLooks, least: float) -> list[Head]:
    """The heads that look at the right number, those that look hardest first: at most half of all."""
    margin = found.right - found.wrong
    order = margin.flatten().argsort(descending=True)[: margin.numel() // 2].tolist()
    H = margin.size(1)
    return [(n // H, n % H) for n in order if float(margin.flatten()[n]) >= least]


def controls(config: LookupHeadsConfig, count: int, those: Sequence[Head], shape: tuple[int, int]) -> list[list[Head]]:
    """Choices of `count` heads that are not among those."""
    rest = [each for n in range(shape[0] * shape[1]) if (each := (n // shape[1], n % shape[1])) not in those]
    if math.comb(len(rest), count) <= config.controls:
        return [list(each) for each in combinations(rest, count)]
    rng = random.Random(config.seed)
    return [sorted(rng.sample(rest, count)) for _ in range(config.controls)]


def written(interval: Interval) -> dict[str, Any]:
    return {"score": interval.mean, "interval": [interval.low, interval.high], "n": interval.n}


def measure(config: LookupHeadsConfig) -> int:
    device = torch.device("cpu")
    model, tokenizer = load(config.run, device)
    shape = readable(model).config

    def scores(examples: Sequence[Example], without: Sequence[Head] = ()) -> list[float]:
        with left_out(model, [head(shape, *each) for each in without]):
            outcomes = evaluate_examples(model, tokenizer, examples).outcomes
        return [outcome.score or 0.0 for outcome in outcomes]

    found = looks(model, [lookup(each, tokenizer) for each in questions("val", config.found_on, config.seed)])
    those = chosen(found, config.least)
    if not those:
        raise UserError(f"no head looks at the right number by {config.least} more than at a wrong one; lower --least")
    asked = questions("test", config.n, config.seed)
    others = controls(config, len(those), those, (shape.layers, shape.heads))
    trials = [scores(asked, each) for each in others]
    table = {
        "all heads": mean_interval(scores(asked)),
        "without the look-up heads": mean_interval(scores(asked, those)),
        "without as many others": mean_interval([sum(each) / len(each) for each in zip(*trials)]),
    }
    if config.others:
        families = [name for name in world.FAMILIES if name != "table"]
        rest = world.sample("test", config.others * len(families), config.seed, families=families)
        table["other families, all heads"] = mean_interval(scores(rest))
        table["other families, without the look-up heads"] = mean_interval(scores(rest, those))
    for layer, number in those:
        print(
            f"layer {layer}, head {number}: {found.right[layer, number]:.2f} of its attention on the right number, "
            f"{found.wrong[layer, number]:.2f} on a wrong one; {found.effect[layer, number]:+.2f} nats"
        )
    for name, interval in table.items():
        print(f"{name:<42} {interval.mean:.3f}  {interval.low:.3f} to {interval.high:.3f}  of {interval.n}", flush=True)
    heads = [
        {"layer": layer, "head": number}
        | {name: float(values[layer, number]) for name, values in found._asdict().items()}
        for layer, number in those
    ]
    worst = min(range(len(trials)), key=lambda n: sum(trials[n]))
    document = {
        **describe(device), "layers": shape.layers, "heads_a_layer": shape.heads, "found_on": config.found_on,
        "lookup_heads": heads, "scores": {name: written(each) for name, each in table.items()},
        "controls": len(others), "worst_control": {"heads": others[worst], **written(mean_interval(trials[worst]))},
    }  # fmt: skip
    publish(document, results_file(config.json, device, "lookup-heads"))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: measure(parse(LookupHeadsConfig, sys.argv[1:], "benchmarks.lookup_heads"))))
