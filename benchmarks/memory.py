"""What saves memory, what it costs in time, and whether the planner is right: `python -m benchmarks.memory`.

Training steps of the real loop, each kind in a process of its own, taking turns. Memory is the most that tensors held
at once: on a CUDA device as its allocator counts, on a CPU as operators make them. Ratios are to the first row of a
shape, which saves nothing.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch

from benchmarks import steps
from benchmarks.machine import describe, publish, results_file
from benchmarks.steps import StepCase, shape_named
from benchmarks.workers import Figures, Measure, Prepared, in_turn, middle
from instructgpt.flags import parse, run_main
from instructgpt.model.backend import resolve_backend
from instructgpt.model.counts import count_parameters
from instructgpt.runtime import resolve_device, resolve_precision
from instructgpt.settings import FilePath, PositiveInt, Settings
from instructgpt.training.memory import Meter, Plan, step_memory
from instructgpt.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class MemoryConfig(Settings):
    """Measures checkpointing, optimizer states and the planner."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: str = "auto"
    """As in training."""
    shapes: tuple[str, ...] = ()
    """Models, each with its rows, as 12m:8; everything is measured for the first, the planner alone for the others. By
    default gpt2 and three others on CUDA, 12m and three small ones elsewhere."""
    steps: PositiveInt = 2
    """Steps of a measurement."""
    rounds: PositiveInt = 3
    """Measurements of each row, which take turns; the median is shown."""
    json: FilePath = "auto"
    """The file to write; auto is benchmarks/results/DEVICE-memory.json, empty is none."""


_ON_GPU = ("gpt2:16", "small:32", "llama-124m:16", "gpt2-medium:4")
_ON_CPU = ("12m:8", "tiny:6", "minute:64", "small:2")
_SAVINGS: dict[str, dict[str, Any]] = {
    "nothing saved": {},
    "--checkpointing selective": {"checkpointing": "selective"},
    "--checkpointing blocks": {"checkpointing": "blocks"},
    "--optimizer-state bfloat16": {"optimizer_state": "bfloat16"},
    "--optimizer-state int8": {"optimizer_state": "int8"},
}


def prepare(case: StepCase) -> Measure:
    """As `steps.prepare`, with the most bytes held at once."""
    measure_step = steps.prepare(case)
    parameters = 4 * count_parameters(shape_named(case.shape)).total

    def measure() -> Figures:
        figures = measure_step()
        if torch.device(case.device).type == "cuda":
            return figures | {"held": torch.cuda.max_memory_allocated()}
        with Meter() as meter:
            measure_step()
        return figures | {"held": parameters + meter.peak}

    return measure


def planned(case: StepCase) -> int:
    """What `train.py plan` would say of this step."""
    device, shape = torch.device(case.device), shape_named(case.shape)
    update = OptimizerConfig(optimizer=case.optimizer, optimizer_state=case.optimizer_state)
    backend = resolve_backend(case.backend, device)
    plan = Plan(
        shape.resolved(), case.rows, shape.context, update, resolve_precision(case.dtype, device), backend, device,
        case.checkpointing,
    )  # fmt: skip
    return step_memory(plan).peak


def measure(config: MemoryConfig) -> int:
    device = resolve_device(config.device)
    cases: dict[str, StepCase] = {}
    for index, named in enumerate(config.shapes or (_ON_GPU if device.type == "cuda" else _ON_CPU)):
        shape, _, rows = named.partition(":")
        first = StepCase(shape, int(rows or 8), str(device), config.dtype, steps=config.steps)
        for name, changes in _SAVINGS.items() if index == 0 else [("nothing saved", {})]:
            cases[f"{shape}, {first.rows} rows: {name}"] = replace(first, **changes)
    found = in_turn({name: Prepared(prepare, (case,)) for name, case in cases.items()}, config.rounds)
    print(f"{'':<46} {'ms a step':>10} {'ratio':>6} {'held MB':>9} {'ratio':>6} {'planned MB':>10} {'off by':>7}")
    results: list[dict[str, Any]] = []
    plain: list[Figures] = []
    for name, case in cases.items():
        figures = found[name]
        if isinstance(figures, str):
            print(f"{name:<46} {figures}")
            results.append({"name": name, "failed": figures})
            continue
        row = {"name": name, **middle(figures), "planned": planned(case)}
        if name.endswith("nothing saved"):
            plain = figures
        # Of each round, whose figures were measured one right after the other.
        for ratio, of in (("time_ratio", "seconds"), ("memory_ratio", "held")):
            row[ratio] = median(here[of] / there[of] for here, there in zip(figures, plain))
        row["planned_off_by"] = row["planned"] / row["held"] - 1
        results.append(row)
        print(
            f"{name:<46} {1e3 * row['seconds']:>10.1f} {row['time_ratio']:>6.2f} {row['held'] / 1e6:>9,.1f} "
            f"{row['memory_ratio']:>6.2f} {row['planned'] / 1e6:>10,.1f} {row['planned_off_by']:>+7.1%}",
            flush=True,
        )
    document = {**describe(device), "dtype": resolve_precision(config.dtype, device).name, "rows": results}
    publish(document, results_file(config.json, device, "memory"))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: measure(parse(MemoryConfig, sys.argv[1:], "benchmarks.memory"))))
