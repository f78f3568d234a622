"""Each way around `check` is seen and named; who is honest passes, and it is said what it launches."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels.lab import launches, surroundings, trial
from kernels.lab.check import Report, check, check_builds, check_case
from kernels.lab.find import load
from kernels.lab.surroundings import Names
from kernels.launch import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="the cheats are written for the CPU")
cheats = load(Path(__file__).with_name("cheats.py"))


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    """So that one cheat does not outlive its test."""
    kept = [(owner, name, getattr(owner, name)) for owner, name in
            ((torch, "isfinite"), (torch, "allclose"), (Tensor, "norm"), (time, "perf_counter"),
             (torch.cuda.Event, "elapsed_time"), (torch.cuda, "synchronize"))]  # fmt: skip
    environment, random_state = dict(os.environ), torch.get_rng_state()
    yield
    for owner, name, value in kept:
        setattr(owner, name, value)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_rng_state(random_state)
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)


@pytest.mark.parametrize("name", cheats.CHEATS)
def test_a_cheat_is_seen(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cheats, "stream", 0)
    for module in (launches, surroundings, trial):
        monkeypatch.setattr(module, "current_stream", lambda: cheats.stream)
    make, said = cheats.CHEATS[name]
    report = check(cheats.spec(make()), examples=6, dtypes=["float32"], layouts=["contiguous"], shrink=False)
    assert report.failure is not None and re.search(said, report.failure.what), str(report)


def test_honest_work_passes_and_is_described():
    report = check(cheats.spec(), examples=6)
    assert report.failure is None, str(report)
    assert "Kernels: forward double_kernel" in str(report)


def test_realistic_sizes_are_run_too():
    for op, is_right in ((cheats.double, True), (cheats.for_small_sizes_only, False)):
        spec = cheats.spec(op)
        report = check(spec, examples=4)
        assert report.failure is None
        check_builds(spec, report, Names())
        assert (report.failure is None) == is_right
        if is_right:
            assert "Builds that it is right at: columns=4096 bfloat16" in str(report)
            assert "Not looked at: " in str(report)


def test_what_is_too_large_is_said_not_to_have_been_run():
    spec = cheats.spec()
    report = Report("double")
    check_builds(replace(spec, builds=({"columns": 2**20},)), report, Names())
    assert "too large here" in str(report)


def test_a_single_case_is_examined_as_well():
    report = check_case(cheats.spec(cheats.by_its_reference), {"columns": 5}, ["float32"], ["contiguous"])
    assert report.failure is not None and "its own reference" in report.failure.what


def test_the_documents_tell_what_is_told():
    root = Path(__file__).parents[3]
    _, _, section = (root / "docs/kernels.md").read_text().partition("## What is refused\n")
    told = re.findall(r"^\| [^|]+ \| `([^`]+)` \|$", section.partition("\n## ")[0], re.MULTILINE)
    source = " ".join(path.read_text() for path in (root / "kernels/lab").glob("*.py"))
    source = re.sub(r'"\s+f?"', "", source)  # texts that are continued on the next line
    assert len(told) >= 10
    for sentence in told:
        for part in sentence.split("…"):
            assert part.strip() in source, part
