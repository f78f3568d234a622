"""Reward model and DPO on real pairs: `python -m benchmarks.real_preferences --data DIR --init RUN`.

DIR holds public sets, wherever below it: raschka-instruction, dpo-demo (llamafactory-demo) and HH-RLHF's harmlessness
pairs, whose content is offensive. A set that is not there is passed over, and said to be. RUN is a small model trained
elsewhere, and the runs last a minute or so: the figures show that each file goes the whole way and what is dropped of
it, not how good a reward model can be. Beside each accuracy stands that of always preferring the longer answer, or the
shorter one where that is better: what a model must beat to have learnt more than length.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.workers import chosen
from instructgpt.errors import UserError
from instructgpt.flags import parse, run_main
from instructgpt.settings import FilePath, Settings
from instructgpt.strict_json import write_json

ROOT = Path(__file__).parents[1]
SETS = {
    "raschka-instruction": "instruction-data-with-preference.json",
    "llamafactory-demo": "dpo_en_demo.json",
    "hh-rlhf": "harmless-base/test.jsonl.gz",
}


@dataclass(frozen=True)
class RealPreferencesConfig(Settings):
    """Trains and scores on real pairs."""

    data: FilePath = "data"
    """The directory with the public sets."""
    init: FilePath = ""
    """The run directory to start from, such as runs/tiny/sft."""
    out: FilePath = "runs/real-preferences"
    """Where the runs go."""
    minutes: float = 1.0
    """Most training time of each run."""
    max_steps: int = 100
    """Most updates of each run."""
    json: FilePath = ""
    """A file to write all figures to."""
    only: tuple[str, ...] = ()
    """Names of sets; all by default."""


def call(*words: object) -> str:
    """Runs a stage, showing it and what it prints; returns what it printed."""
    command = [sys.executable, "train.py", *map(str, words)]
    print("$", *command[1:], flush=True)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout, flush=True)
    return done.stdout


def account(printed: str) -> dict[str, Any]:
    """What a stage said of its file: records read and kept, what was dropped, noted and cut."""
    read, kept, dropped = (
        int(n.replace(",", "")) for n in re.findall(r"([\d,]+) (?:records read|kept|dropped)", printed)[:3]
    )
    reasons = re.findall(r"^  (dropped|noted) ([\d,]+): (.*?)(?: \(first at .*)?$", printed, re.MULTILINE)
    cut = re.findall(r"^  (of \d+ comparisons, .*)$", printed, re.MULTILINE)
    return {
        "read": read, "kept": kept, "dropped": dropped,
        "reasons": {f"{verb}: {reason}": int(n.replace(",", "")) for verb, n, reason in reasons}, "cut": cut,
    }  # fmt: skip


def length_baseline(pairs: dict[str, Any]) -> float:
    """Accuracy of always preferring the longer answer, or the shorter one where that is better; ties are halves."""
    longer, shorter = (pairs["lengths"].get(f"the better is {side}", {}).get("n", 0) for side in ("longer", "shorter"))
    return (max(longer, shorter) + (pairs["n"] - longer - shorter) / 2) / pairs["n"]


def measure(config: RealPreferencesConfig) -> int:
    if not config.init:
        raise UserError("--init is missing: name the run directory to start from, such as runs/tiny/sft")
    results: dict[str, Any] = {"machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s)"}
    for name, pattern in chosen(SETS, config.only).items():
        files = sorted(Path(config.data).rglob(pattern))
        if not files:
            print(f"{name}: {pattern} is not below {config.data}, passed over", flush=True)
            continue
        found: dict[str, Any] = {}
        for stage in ("reward", "dpo"):
            out = Path(config.out) / name / stage
            printed = call(
                stage, "--data", files[0], "--init", config.init, "--out", out, "--overwrite", "--max-minutes",
                config.minutes, "--max-steps", config.max_steps, "--prompts", 8, "--device", "cpu",
            )  # fmt: skip
            found["account"] = account(printed)
            evaluated = json.loads((out / "eval.json").read_text())
            found[stage] = evaluated
            if stage == "reward":
                found["length_baseline"] = length_baseline(evaluated["pairs"])
        print(
            f"{name}: held-out accuracy {found['reward']['pairs']['accuracy']:.3f} of the reward model, "
            f"{found['dpo']['val_accuracy']:.3f} of DPO, {found['length_baseline']:.3f} of the length alone",
            flush=True,
        )
        results[name] = found
        if config.json:
            write_json(config.json, results)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: measure(parse(RealPreferencesConfig, sys.argv[1:], "benchmarks.real_preferences"))))
