"""From the naive model to the fastest, a trick a row: `python -m benchmarks.ladder`.

Instruction tuning on the embedded world, in the product's own loop. Each row keeps the tricks of the rows above it;
tokens are those of conversations, padding not counted. A row says what the trick costs in lines of code, and where to
read it. Every row is a process of its own, and they take turns.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import kernels
from benchmarks.machine import ROOT, describe, publish, results_file
from benchmarks.steps import StepCase, prepare
from benchmarks.workers import Prepared, in_turn, middle
from instructgpt.data import packing
from instructgpt.flags import parse, run_main
from instructgpt.model import backend, cpu_ops
from instructgpt.objectives import lm
from instructgpt.runtime import Precision, resolve_device, resolve_precision
from instructgpt.settings import FilePath, NonNegativeInt, PositiveInt, Settings
from instructgpt.training import compiling


@dataclass(frozen=True)
class LadderConfig(Settings):
    """Measures a training step as one trick after the other is added."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    shape: str = ""
    """The model; gpt2 on CUDA and tiny elsewhere by default."""
    rows: NonNegativeInt = 0
    """Rows of a batch; 16 on CUDA and 6 elsewhere by default."""
    steps: PositiveInt = 5
    """Steps of a measurement."""
    rounds: PositiveInt = 3
    """Measurements of each row, which take turns; the median is shown."""
    json: FilePath = "auto"
    """The file to write; auto is benchmarks/results/DEVICE-ladder.json, empty is none."""


Code = Callable[..., Any] | type | ModuleType


@dataclass(frozen=True)
class Rung:
    """A row of the table."""

    name: str
    changes: dict[str, Any]
    """What differs from the row above, as fields of StepCase."""
    code: tuple[Code, ...]
    """What the trick consists of."""

    @property
    def lines(self) -> int:
        """Lines that are not blank, as they stand in the files."""
        return sum(sum(bool(line.strip()) for line in inspect.getsource(each).splitlines()) for each in self.code)

    @property
    def file(self) -> str:
        return str(Path(inspect.getsourcefile(self.code[0]) or "").relative_to(ROOT))


def rungs(device: torch.device) -> list[Rung]:
    """The ladder for a device, from the bottom."""
    is_gpu = device.type == "cuda"
    half = resolve_precision("auto", device).autocast is not None
    kernel_code = tuple(
        sys.modules[f"kernels.{name}"]
        for name in ("attention", "attention_forward", "attention_backward", "rms_norm", "layer_norm", "rope", "swiglu",
                     "gelu", "linear_cross_entropy")
    )  # fmt: skip
    assert kernels.__file__
    found = [
        Rung("textbook: naive operators, float32, one conversation a row", {}, (backend.naive,)),
        Rung("conversations packed into rows", {"data": "packed"}, (packing,)),
        Rung("logits after targets alone", {"head": "targets"}, (lm.next_token_loss,)),
        Rung("PyTorch's fused operators", {"backend": "sdpa"}, (backend.sdpa, *([] if is_gpu else [cpu_ops]))),
    ]
    if half:
        found.append(Rung("bfloat16 products (autocast)", {"dtype": "bfloat16"}, (Precision,)))
    if is_gpu:
        found.append(Rung("our kernels", {"backend": "triton"}, kernel_code))
    return [
        *found,
        Rung("a block compiled, for all of them", {"compile": "blocks"}, (compiling,)),
        Rung("the whole step compiled", {"compile": "step"}, (compiling,)),
    ]


def measure(config: LadderConfig) -> int:
    device = resolve_device(config.device)
    is_gpu = device.type == "cuda"
    shape, rows = config.shape or ("gpt2" if is_gpu else "tiny"), config.rows or (16 if is_gpu else 6)
    case = StepCase(
        shape, rows, str(device), "float32", backend="naive", optimizer="muon" if shape == "tiny" else "adamw",
        steps=config.steps, data="padded", head="all",
    )  # fmt: skip
    ladder = rungs(device)
    works: dict[str, Prepared] = {}
    for rung in ladder:
        case = replace(case, **rung.changes)
        works[rung.name] = Prepared(prepare, (case,))
    found = in_turn(works, config.rounds, prepared_at_once=4 if is_gpu else 1)
    print(f"{'':<58} {'tokens/s':>10} {'ratio':>6} {'peak MB':>8} {'lines':>6}  where")
    results, above = [], 0.0
    for rung in ladder:
        figures = found[rung.name]
        row: dict[str, Any] = {"name": rung.name, "lines": rung.lines, "file": rung.file}
        if isinstance(figures, str):
            print(f"{rung.name:<58} {figures}")
            results.append({**row, "failed": figures})
            continue
        mean = middle(figures)
        ratio = mean["tokens_per_second"] / above if above else 1.0
        above = mean["tokens_per_second"]
        told = f"{above:>10,.0f} {ratio:>6.2f} {mean['peak_megabytes']:>8,.0f} {rung.lines:>6}"
        print(f"{rung.name:<58} {told}  {rung.file}", flush=True)
        results.append({**row, **mean, "ratio": ratio})
    document = {**describe(device), "shape": shape, "rows": rows, "rungs": results}
    publish(document, results_file(config.json, device, "ladder"))
    return int(all("failed" in row for row in results))


if __name__ == "__main__":
    sys.exit(run_main(lambda: measure(parse(LadderConfig, sys.argv[1:], "benchmarks.ladder"))))
