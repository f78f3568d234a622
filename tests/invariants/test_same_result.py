"""A recipe is updates, not minutes: the same seed gives the same files, bit by bit, however busy the machine is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = "train.py pipeline --preset tiny --max-steps 40 --examples 1 --device cpu".split()


@contextmanager
def busy_cores() -> Iterator[None]:
    """Other people's processes, one for each core."""
    spin = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(spin) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


@pytest.mark.slow
def test_training_twice_once_under_load(tmp_path: Path) -> None:
    # Two threads, since it is these that wait for one another.
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}

    def train(out: Path) -> None:
        command = [sys.executable, *COMMAND, "--out", str(out)]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=900)

    train(tmp_path / "alone")
    with busy_cores():
        train(tmp_path / "beside others")
    for file in ("tokenizer/tokenizer.model", "pretrain/model.safetensors", "sft/model.safetensors", "samples.md"):
        assert (tmp_path / "alone" / file).read_bytes() == (tmp_path / "beside others" / file).read_bytes(), file
