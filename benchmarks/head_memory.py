"""Head and loss on a CPU, plain beside chunked: `python -m benchmarks.head_memory`.

Each measurement is a process of its own, whose peak resident memory counts from when the inputs are there. Forward and
backward together; the medians of alternating repetitions are compared.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F

from instructgpt.flags import parse, run_main
from instructgpt.settings import FilePath, Settings
from instructgpt.strict_json import to_json, write_json
from kernels import linear_cross_entropy_chunked


@dataclass(frozen=True)
class HeadMemoryConfig(Settings):
    """Measures time and peak memory of head and loss, plain and in chunks."""

    json: FilePath = "benchmarks/results/cpu-head-memory.json"
    """The file to write; empty for none."""
    rows: int = 2048
    """Tokens with a target."""
    repeats: int = 3
    """Processes for each figure."""
    one: str = ""
    """What a child process is asked for: VERSION,width,vocabulary."""


CASES = ((256, 8192), (256, 50304), (768, 50304))
"""(width, vocabulary): the tiny preset, the same with GPT-2's vocabulary, GPT-2."""


def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.linear(hidden, weight), targets, reduction="none")


VERSIONS = {"plain": plain, "chunked": linear_cross_entropy_chunked}


def peak() -> int:
    """Bytes; Linux counts kilobytes, macOS bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure_one(version: str, rows: int, width: int, vocabulary: int) -> dict[str, float]:
    torch.manual_seed(0)
    small = torch.randn(8, width, requires_grad=True), torch.randn(64, width, requires_grad=True)
    VERSIONS[version](*small, torch.randint(64, (8,))).sum().backward()  # load what is loaded lazily
    hidden = torch.randn(rows, width, requires_grad=True)
    weight = torch.randn(vocabulary, width).div_(width**0.5).requires_grad_()  # no temporary that counts as a peak
    targets = torch.randint(vocabulary, (rows,))
    before, start = peak(), time.perf_counter()
    VERSIONS[version](hidden, weight, targets).sum().backward()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_megabytes": (peak() - before) / 1e6}


def in_child(version: str, rows: int, width: int, vocabulary: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.head_memory", "--one", f"{version},{width},{vocabulary}"]
    done = subprocess.run([*command, "--rows", str(rows)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def measure(config: HeadMemoryConfig) -> int:
    if config.one:
        version, width, vocabulary = config.one.split(",")
        print(to_json(measure_one(version, config.rows, int(width), int(vocabulary))))
        return 0
    results = []
    for width, vocabulary in CASES:
        runs: dict[str, list[dict[str, float]]] = {version: [] for version in VERSIONS}
        for _ in range(config.repeats):
            for version in VERSIONS:
                runs[version].append(in_child(version, config.rows, width, vocabulary))
        row: dict[str, object] = {"rows": config.rows, "width": width, "vocabulary": vocabulary}
        middle = {v: {key: median(run[key] for run in runs[v]) for key in runs[v][0]} for v in VERSIONS}
        row |= middle
        row["logits_megabytes"] = 4e-6 * config.rows * vocabulary
        row["time_ratio"] = middle["chunked"]["seconds"] / middle["plain"]["seconds"]
        row["memory_ratio"] = middle["chunked"]["peak_megabytes"] / middle["plain"]["peak_megabytes"]
        results.append(row)
        print(
            f"{config.rows} rows, width {width}, vocabulary {vocabulary}: "
            + ", ".join(f"{v} {m['seconds']:.2f} s and {m['peak_megabytes']:.0f} MB" for v, m in middle.items())
            + f"; chunked takes {row['time_ratio']:.2f} of the time and {row['memory_ratio']:.2f} of the memory",
            flush=True,
        )
    if config.json:
        machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "dtype": "float32"}
        write_json(config.json, {**machine, "cases": results})
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: measure(parse(HeadMemoryConfig, sys.argv[1:], "benchmarks.head_memory"))))
