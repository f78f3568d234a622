"""Each way around `check` is seen and named; who is honest passes, and it is said what it launches."""

from __future__ import annotations

import _thread
import gc
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.lab import launches, surroundings, trial
from kernels.lab.check import Report, check, check_builds, check_case
from kernels.lab.spec import DTYPES
from kernels.lab.surroundings import Names
from kernels.launch import INTERPRETED
from tests.kernels.lab import cheats, further_cheats, unusual

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="the cheats are written for the CPU")


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    """So that one cheat does not outlive its test."""
    names, dtypes, printing, collecting = Names(), dict(DTYPES), sys.stdout, list(gc.callbacks)
    environment, random_state = dict(os.environ), torch.get_rng_state()
    handler, threads = signal.getsignal(signal.SIGVTALRM), _thread._count()
    yield
    while _thread._count() > threads:
        time.sleep(0.01)
    put_back(names)
    sys.stdout, gc.callbacks[:] = printing, collecting
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, handler)
    DTYPES.update(dtypes)
    os.environ.clear()
    os.environ.update(environment)
    while torch._C._len_torch_function_stack():
        torch._C._pop_torch_function_stack()
    torch.set_autocast_enabled("cpu", False)
    torch.set_rng_state(random_state)
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    while further_cheats.children:
        os.waitpid(further_cheats.children.pop(), 0)


def put_back(names: Names) -> None:
    for owner, before in names.names.items():
        for name in surroundings.replaced(owner, before):
            setattr(owner, name, before[name]) if name in before else delattr(owner, name)
    for (_, value), inside in zip(names.insides, names.inside):
        if isinstance(value, FunctionType):
            value.__code__, value.__defaults__ = inside[:2]


@pytest.mark.parametrize("name", cheats.CHEATS)
def test_a_cheat_is_seen(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cheats, "stream", 0)
    for module in (launches, surroundings, trial):
        monkeypatch.setattr(module, "current_stream", lambda: cheats.stream)
    make, said = cheats.CHEATS[name]
    report = check(cheats.spec(make()), examples=6, dtypes=["float32"], layouts=["contiguous"], shrink=False)
    assert report.failure is not None and re.search(said, report.failure.what), str(report)


@pytest.mark.parametrize("name", further_cheats.CHEATS)
def test_a_further_cheat_is_seen(name: str):
    make, said = further_cheats.CHEATS[name]
    report = check(make(), examples=6, layouts=["contiguous"], shrink=False)
    assert report.failure is not None and re.search(said, report.failure.what), str(report)


@pytest.mark.parametrize("fields", further_cheats.UNDECLARED.values(), ids=further_cheats.UNDECLARED)
def test_a_spec_that_asks_for_nothing_is_refused(fields: dict[str, Any]):
    with pytest.raises((TypeError, ValueError), match=r"Spec's \w+ (is|are) .*; (it|they) must be"):
        replace(cheats.spec(), **fields)


def test_a_reference_that_is_a_kernel_is_refused():
    with pytest.raises(ValueError, match="the reference launches double_kernel"):
        check(replace(cheats.spec(), reference=cheats.double), examples=1)


@pytest.mark.parametrize("name", unusual.SPECS)
def test_what_is_unusual_and_right_passes(name: str):
    report = check(unusual.SPECS[name](), examples=6, dtypes=["float32"])
    assert report.failure is None, str(report)


def test_what_does_not_end_is_told_with_its_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trial, "LONGEST", 0.3)

    def endless(x: Tensor) -> Tensor:
        while x is not None:
            cheats.double(x)
        return x

    report = check(cheats.spec(endless), examples=6)
    assert report.failure is not None and "does a loop run for ever?" in report.failure.what


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
