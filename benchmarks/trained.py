"""What `make train` came to, as a file beside the other results: `python -m benchmarks.trained --run runs/tiny`.

The pipeline leaves everything in eval.json of its run; this keeps what the documents' tables show, with the machine
and the commit it was measured on.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe, publish, results_file
from instructgpt.errors import UserError
from instructgpt.flags import parse, run_main
from instructgpt.settings import FilePath, NonNegative, Settings

_OF_TRAINING = ("answer_loss", "text_bits_per_byte", "steps", "tokens", "minutes", "tokens_per_second")


@dataclass(frozen=True)
class TrainedConfig(Settings):
    """Keeps what `make train` measured."""

    run: FilePath = "runs/tiny"
    """Where `make train` left its models."""
    minutes: NonNegative = 0.0
    """What the whole command took, set-up excluded; 0 does not say."""
    evals: tuple[FilePath, ...] = ()
    """Files of `eval --json`, of more examples a family."""
    others: tuple[FilePath, ...] = ()
    """Runs of `make train` with other seeds."""
    json: FilePath = "auto"
    """The file to write; `auto` is benchmarks/results/DEVICE-train.json."""


def read(file: Path) -> dict[str, Any]:
    """A JSON file. UserError where there is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"no JSON can be read: {error}", file) from None


def score(report: dict[str, Any]) -> dict[str, Any]:
    """Of a report of one split: mean, interval, number of examples."""
    return {"score": report["macro_average"], "interval": report["interval"], "examples": report["examples"]}


def models(run: Path) -> dict[str, Any]:
    """`base` and `tuned`: scores by split, and what training took."""
    return {
        name: {
            "scores": {split: score(report) for split, report in found["scores"].items()},
            **{field: found[field] for field in _OF_TRAINING},
        }
        for name, found in read(run / "eval.json").items()
    }


def of_families(files: tuple[str, ...]) -> dict[str, Any]:
    """By split of the world: mean, interval, and every family's score."""
    found: dict[str, Any] = {}
    for file in files:
        for name, report in read(Path(file))["results"].items():
            families = {family: values["score"] for family, values in report["families"].items()}
            found[name.removeprefix("world, ")] = {**score(report), "families": families}
    return found


def measure(config: TrainedConfig) -> int:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    document = {
        **describe(device),
        "command": "make train",
        "seed": read(Path(config.run) / "pipeline.json").get("seed", 0),
        "minutes": config.minutes or None,
        "models": models(Path(config.run)),
        "more_examples": of_families(config.evals),
        "other_seeds": {
            str(read(Path(run) / "pipeline.json").get("seed", 0)): models(Path(run))["tuned"] for run in config.others
        },
    }
    publish(document, results_file(config.json, device, "train"))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: measure(parse(TrainedConfig, sys.argv[1:], "benchmarks.trained"))))
