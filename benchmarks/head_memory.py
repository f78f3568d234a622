"""Head and loss on a CPU, plain beside chunked: `python -m benchmarks.head_memory`.

Each measurement is a process of its own, whose peak resident memory counts from when the inputs are there. Forward and
backward together; the medians of alternating repetitions are compared.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.machine import describe, publish
from benchmarks.workers import Figures, Measure, Prepared, alone, middle
from instructgpt.flags import parse, run_main
from instructgpt.runtime import peak_memory
from instructgpt.settings import FilePath, PositiveInt, Settings
from kernels import linear_cross_entropy_chunked


@dataclass(frozen=True)
class HeadMemoryConfig(Settings):
    """Measures time and peak memory of head and loss, plain and in chunks."""

    json: FilePath = "benchmarks/results/cpu-head-memory.json"
    """The file to write; empty for none."""
    rows: PositiveInt = 2048
    """Tokens with a target."""
    rounds: PositiveInt = 3
    """Measurements of each, which take turns; the median is shown."""


CPU = torch.device("cpu")

CASES = ((256, 8192), (256, 50304), (768, 50304))
"""(width, vocabulary): the tiny preset, the same with GPT-2's vocabulary, GPT-2."""


def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.linear(hidden, weight), targets, reduction="none")


VERSIONS = {"plain": plain, "chunked": linear_cross_entropy_chunked}


def prepare(version: str, rows: int, width: int, vocabulary: int) -> Measure:
    """A function that measures once: a process's peak can only be passed once."""
    torch.manual_seed(0)
    small = torch.randn(8, width, requires_grad=True), torch.randn(64, width, requires_grad=True)
    VERSIONS[version](*small, torch.randint(64, (8,))).sum().backward()  # load what is loaded lazily
    hidden = torch.randn(rows, width, requires_grad=True)
    weight = torch.randn(vocabulary, width).div_(width**0.5).requires_grad_()  # no temporary that counts as a peak
    targets = torch.randint(vocabulary, (rows,))

    def measure() -> Figures:
        before, start = peak_memory(CPU), time.perf_counter()
        VERSIONS[version](hidden, weight, targets).sum().backward()
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "peak_megabytes": (peak_memory(CPU) - before) / 1e6}

    return measure


def measure(config: HeadMemoryConfig) -> int:
    results = []
    for width, vocabulary in CASES:
        runs: dict[str, list[Figures]] = {version: [] for version in VERSIONS}
        for _ in range(config.rounds):
            for version in VERSIONS:
                runs[version].append(alone(Prepared(prepare, (version, config.rows, width, vocabulary))))
        found = {version: middle(figures) for version, figures in runs.items()}
        row: dict[str, Any] = {"rows": config.rows, "width": width, "vocabulary": vocabulary, **found}
        row["logits_megabytes"] = 4e-6 * config.rows * vocabulary
        row["time_ratio"] = found["chunked"]["seconds"] / found["plain"]["seconds"]
        row["memory_ratio"] = found["chunked"]["peak_megabytes"] / found["plain"]["peak_megabytes"]
        results.append(row)
        print(
            f"{config.rows} rows, width {width}, vocabulary {vocabulary}: "
            + ", ".join(f"{v} {m['seconds']:.2f} s and {m['peak_megabytes']:.0f} MB" for v, m in found.items())
            + f"; chunked takes {row['time_ratio']:.2f} of the time and {row['memory_ratio']:.2f} of the memory",
            flush=True,
        )
    publish({**describe(CPU), "dtype": "float32", "cases": results}, config.json)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: measure(parse(HeadMemoryConfig, sys.argv[1:], "benchmarks.head_memory"))))
