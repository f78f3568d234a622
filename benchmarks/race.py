"""Our records of the race: `python -m benchmarks.race`. Each takes five minutes of two quiet cores a seed.

What counts is FLOPs, so that a busy machine gives the same numbers, later. Records that are not named keep what they
have in the file; one that is named again, and of as many --minutes, is measured anew, with all of --seeds.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.machine import ROOT, describe
from instructgpt.course.race import board
from instructgpt.course.race.entry import RECORDS, Rules
from instructgpt.course.race.judge import race
from instructgpt.figures import write_json
from instructgpt.flags import parse, run_main
from instructgpt.settings import FilePath, Positive, PositiveInt, Settings

FOLDER = ROOT / "instructgpt/course/race/records"


@dataclass(frozen=True)
class RaceBenchmarkConfig(Settings):
    """Measures our records of the race."""

    records: tuple[str, ...] = RECORDS
    """Which."""
    seeds: PositiveInt = 2
    """Runs of each."""
    minutes: Positive = 5.0
    """Of the machine, as in `race run`: records are of 5."""
    json: FilePath = str(board.OURS)
    """The file to add to."""


def measure(config: RaceBenchmarkConfig) -> int:
    rules, path = Rules(minutes=config.minutes), Path(config.json)
    for name in config.records:
        print(name, flush=True)
        finishes = [race(FOLDER / f"{name}.py", rules, seed) for seed in range(config.seeds)]
        found = board.result(name, rules, finishes)
        print(f"{name}: {found['bits_per_byte']:.4f} bits per byte", flush=True)
        known = json.loads(path.read_text(encoding="utf-8"))["records"] if path.is_file() else []
        kept = [one for one in known if (one["entry"], one["minutes"]) != (name, config.minutes)] + [found]
        kept.sort(key=lambda one: (-one["minutes"], RECORDS.index(one["entry"])))
        write_json(path, {**describe(torch.device("cpu")), "records": kept})
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: measure(parse(RaceBenchmarkConfig, sys.argv[1:], "python -m benchmarks.race"))))
