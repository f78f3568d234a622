from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.profile import ProfileConfig, busy_seconds, measure


@pytest.mark.parametrize(
    ("intervals", "seconds"),
    [([], 0.0), ([(1, 2)], 1.0), ([(3, 5), (1, 2)], 3.0), ([(1, 4), (2, 3)], 3.0), ([(1, 3), (2, 4), (4, 5)], 4.0)],
)
def test_time_in_which_anything_ran(intervals: list[tuple[float, float]], seconds: float) -> None:
    assert busy_seconds(intervals) == seconds


def profiled(device: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    config = ProfileConfig(
        shape="minute", rows=2, device=device, steps=1, json=str(folder / "profile.json"), trace=str(folder / "t.json")
    )
    assert measure(config) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((folder / "profile.json").read_text()) == document
    assert json.loads((folder / "t.json").read_text())["traceEvents"]
    return document


def test_operators_and_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = profiled("cpu", tmp_path, capsys)
    assert any(row["name"].startswith("aten::") for row in document["operators"])
    lines = {row["name"].rpartition(" ")[2]: row for row in document["lines"]}
    assert all(row["name"].startswith(("instructgpt/", "kernels/", "elsewhere")) for row in document["lines"])
    head = next(row for name, row in lines.items() if name == "logits_then_losses")
    assert 0 < head["backward"] < 1, "what the backward does counts for the line that was gone forward"
    assert 0 < document["operators_seconds"] < document["seconds_a_step_profiled"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpus_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = profiled("cuda", tmp_path, capsys)
    assert 0 < document["gpu_busy"] < 1
    assert sum(row["share"] for row in document["lines"]) > 0.5
    assert document["lines"][0]["gpu_ms"] > 0
