"""JSON that is written is JSON everywhere: no NaN, no Infinity, whatever was measured."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from instructgpt import figures, strict_json
from instructgpt.evaluation.overoptimisation import write_overoptimisation
from instructgpt.stages.best_of_n import BestOfNConfig
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.checkpoint import RunDirectory, load_tensors, save_tensors
from instructgpt.training.metrics import JsonLines
from kernels.lab import output

ROOT = Path(__file__).parents[2]
HOSTILE = {
    "nan": math.nan,
    "list": [math.inf, (-math.inf, 1.0)],
    "deep": {"x": {"y": math.nan}},
    "text": "红 \x00 \u2028",
}
# Texts that are no file: answers and data of the world, keys that are compared or hashed, a command that is printed.
NO_FILES = {
    "instructgpt/world/formatting.py", "instructgpt/data/templates.py", "instructgpt/data/fields.py",
    "instructgpt/stages/assess.py", "kernels/lab/check.py",
}  # fmt: skip
WRITERS = {"instructgpt/strict_json.py", "kernels/lab/output.py"}


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=refuse)


def calls_of_json(path: Path) -> list[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "json"
        and node.func.attr in ("dump", "dumps")
    ]


def test_nobody_else_writes_json() -> None:
    """A `json.dumps` whose text lands in a file is one more place that could write NaN."""
    files = [path for folder in ("instructgpt", "kernels", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    callers = {str(path.relative_to(ROOT)) for path in files if calls_of_json(path)}
    writing = {
        file
        for file in callers - NO_FILES - WRITERS
        if any("write" in line or "print" in line for call in calls_of_json(ROOT / file)
               for line in [(ROOT / file).read_text().splitlines()[call.lineno - 1]])
    }  # fmt: skip
    assert not writing, f"{writing}: use instructgpt.strict_json"


def _lines(path: Path) -> None:
    lines = JsonLines(path)
    for value in (math.nan, math.inf, 1.0):
        lines.write({"step": 1, "loss": value})
    lines.close()
    JsonLines(path, from_step=1).close()  # as a resumed run writes it anew


def _config(path: Path) -> None:
    tokenizer = Tokenizer.train(["the cat sees a red bird"] * 20, 280)
    run = RunDirectory.open(path.parent / "run")
    run.write_config("best_of_n", None, tokenizer, BestOfNConfig(), inputs={"a": "b"})
    assert strict(run.config_file.read_text())["settings"]["min_reward"] is None, "-inf by default"
    path.write_bytes(run.config_file.read_bytes())


def _state(path: Path) -> None:
    save_tensors(path.with_suffix(".safetensors"), {"a": torch.ones(1)}, HOSTILE)
    data = path.with_suffix(".safetensors").read_bytes()
    header = strict(data[8 : 8 + int.from_bytes(data[:8], "little")].decode())
    path.write_text(header["__metadata__"]["values"])
    assert load_tensors(path.with_suffix(".safetensors"))[1]["nan"] is None


WAYS: dict[str, Callable[[Path], Any]] = {
    "strict_json.write_json": lambda path: strict_json.write_json(path, HOSTILE),
    "strict_json.write_json_lines": lambda path: strict_json.write_json_lines(path, [HOSTILE, math.nan]),
    "figures.write_json": lambda path: figures.write_json(path, HOSTILE),
    "the lab": lambda path: output.write_json(path, {**HOSTILE, "path": Path("x"), 3: math.nan}),
    "metrics.jsonl": _lines,
    "config.json": _config,
    "state": _state,
    "overoptimisation.json": lambda path: write_overoptimisation({}, path.parent),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_takes_hostile_values(way: str, tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    WAYS[way](file)
    written = list(tmp_path.glob("*.json"))
    assert written
    for path in written:
        text = path.read_text(encoding="utf-8")
        try:
            strict(text)
        except json.JSONDecodeError:  # a value a line
            assert [strict(line) for line in text.strip().split("\n")]
