from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from instructgpt.errors import UserError
from instructgpt.flags import run_main


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_is_one_line(capsys):
    assert run_main(lambda: gpu.main([])) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: there is no CUDA device here") and said.count("\n") == 1


def test_an_unknown_part_is_one_line():
    with pytest.raises(UserError, match="part calm is unknown: it must be one of tests, train_step"):
        gpu.main(["--stand-in", "--parts", "calm"])


def passing(order: gpu.Order) -> int:
    return 0


def sleeping(order: gpu.Order) -> int:
    time.sleep(60)
    return 0


def test_every_part_is_accounted_for_at_once(tmp_path: Path, monkeypatch):
    """One that takes too long is cut off, one that lacks a package or time is left out; all of it is in the JSON."""
    part = tmp_path / "part.py"
    part.write_text(
        "import sys, time\nname = sys.argv[sys.argv.index('--one') + 1]\n"
        "time.sleep(60 * (name == 'long'))\nsys.exit(3 * (name == 'failing'))\n"
    )
    monkeypatch.setattr(gpu, "_COMMAND", (sys.executable, str(part)))
    parts = {
        "short": gpu.Part(passing, 30),
        "failing": gpu.Part(passing, 30),
        "lacking": gpu.Part(passing, 30, ("json", "no_such_package")),
        "long": gpu.Part(sleeping, 1.0),
    }
    monkeypatch.setattr(gpu, "PARTS", parts)
    started = time.monotonic()
    assert gpu.main(["--stand-in", "--results", str(tmp_path), "--out", str(tmp_path / "runs")]) == 1
    assert time.monotonic() - started < 20
    document = json.loads((tmp_path / "cpu-gpu.json").read_text())
    became = {name: each["result"] for name, each in document["parts"].items()}
    assert became == {
        "short": "done",
        "failing": "failed with code 3",
        "lacking": "left out: no_such_package is not installed",
        "long": "cut off at its limit",
    }
    gpu.main(["--stand-in", "--minutes", "0.1", "--parts", "short", "--results", str(tmp_path)])
    assert (
        json.loads((tmp_path / "cpu-gpu.json").read_text())["parts"]["short"]["result"] == "left out: no time is left"
    )


@pytest.mark.slow
def test_the_list_can_be_tried_on_a_cpu(tmp_path: Path):
    """Every part runs, with sizes of no worth."""
    code = gpu.main(["--stand-in", "--results", str(tmp_path), "--out", str(tmp_path / "runs")])
    became = json.loads((tmp_path / "cpu-gpu.json").read_text())["parts"]
    assert code == 0 and {each["result"] for each in became.values()} == {"done"}, became
