"""A run that is killed at any moment and resumed ends with the very weights of an undisturbed run (on a CPU)."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from instructgpt.training.checkpoint import load, load_tensors

ROOT = Path(__file__).parents[2]
SMALL = (
    "--max-steps 40 --save-every 4 --rows 2 --context 64 --layers 2 --width 32 --heads 2 --dropout 0.1 --ema 0.9 "
    "--eval-every 16 --val-rows 8 --optimizer muon --device cpu --dtype float32"
).split()


def start(tokenizer: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "train.py"), "pretrain", "--text", "world", "--tokenizer", str(tokenizer)]
    return subprocess.Popen(
        [*command, "--out", str(out), *SMALL, *more], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer") / "t"
    command = [sys.executable, str(ROOT / "train.py"), "tokenizer", "--text", "world", "--vocab-size", "900"]
    subprocess.run([*command, "--out", str(out)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return out


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_and_resumed(tokenizer: Path, tmp_path: Path, kills: int) -> None:
    began = time.monotonic()
    finish(start(tokenizer, tmp_path / "undisturbed"))
    usual = time.monotonic() - began
    rng, killed = random.Random(0), 0
    while killed < kills:
        process = start(tokenizer, tmp_path / "killed", "--resume")
        try:
            # Anywhere from start-up to the last checkpoint, wherever the run stands by now.
            process.wait(timeout=rng.uniform(0.3, 1.0) * usual)
            assert process.returncode == 0
            break  # it got to its end between kills: all its steps were made in pieces
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        if (tmp_path / "killed" / "model.safetensors").exists():
            load(tmp_path / "killed", "cpu")  # what a kill leaves can be loaded
    assert killed >= 1
    finish(start(tokenizer, tmp_path / "killed", "--resume"))
    first, _ = load_tensors(tmp_path / "undisturbed" / "model.safetensors")
    second, _ = load_tensors(tmp_path / "killed" / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    steps = [line.split('"step": ')[1].split(",")[0] for line in (tmp_path / "killed" / "metrics.jsonl").open()]
    assert steps == [
        line.split('"step": ')[1].split(",")[0] for line in (tmp_path / "undisturbed" / "metrics.jsonl").open()
    ]
