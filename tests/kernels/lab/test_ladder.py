"""The ladder of calls, on the CPU: what it calls, what it leaves out, and what it prints."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import kernels
from kernels.lab import Inputs, Spec, bench, ladder
from kernels.lab.find import UsageError, find
from kernels.lab.instruments import Instruments, Timing, cuda_instruments
from kernels.lab.launches import leave_it_out, watched_launches
from kernels.launch import Operator, once_per_signature

pytest.importorskip("triton")

CASE = {"rows": 4, "columns": 8, "dtype": "float32"}


@pytest.fixture(autouse=True)
def no_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(ladder, "ROUNDS", 1)


def declare(op: Callable[..., Tensor], gradients: tuple[str, ...] = ("x",), **fields: Any) -> Spec:
    def inputs(generator: torch.Generator, rows: int, columns: int) -> Inputs:
        return Inputs({"x": torch.randn(rows, columns, generator=generator, dtype=torch.float64)}, gradients=gradients)

    return Spec(name="plain", op=op, reference=torch.relu, cases=None, inputs=inputs, **fields)  # pyright: ignore


@pytest.fixture
def calls_are_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A clock that calls of functions move on, and nothing else: the same on a busy machine."""
    now = 0

    def count(*_: Any) -> None:
        nonlocal now
        now += 1

    monkeypatch.setattr(ladder, "time", SimpleNamespace(process_time=lambda: now * 1e-5))
    sys.setprofile(count)
    yield
    sys.setprofile(None)


@pytest.mark.usefixtures("calls_are_time")
def test_each_way_of_calling_has_its_time_forward_and_both() -> None:
    measured = ladder.measure([declare(lambda x: x * 2, builds=({**CASE, "rows": 9}, CASE))], None)
    (found,) = measured["ladders"]
    assert found["case"] == CASE  # the smallest
    assert list(found["rungs"]) == ["reference, eager", "bare launch", "ours", "ours, compiled"]
    for rung in found["rungs"].values():
        assert list(rung) == ["forward", "both"]
        assert 0 < rung["forward"]["host_us"] < rung["both"]["host_us"] < float("inf")
    text = ladder.report(measured)
    assert "plain: rows=4 columns=8 float32" in text and "forward and backward µs" in text
    assert "CPU, launches left out" in text and all(name in text for name in found["rungs"])


def test_an_op_without_a_gradient_has_no_backward() -> None:
    measured = ladder.measure([declare(lambda x: x * 2, ())], None, CASE)
    assert all(list(rung) == ["forward"] for rung in measured["ladders"][0]["rungs"].values())
    assert "backward" not in ladder.report(measured)


def test_a_way_that_fails_says_why_and_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(function: Callable[..., Tensor], **_: Any) -> Callable[..., Tensor]:
        def failing(**_: Tensor) -> Tensor:
            raise RuntimeError("no compiler here\nsecond line")

        return failing

    monkeypatch.setattr(torch, "compile", fail)
    measured = ladder.measure([declare(lambda x: x * 2)], None, CASE)
    assert measured["ladders"][0]["rungs"]["ours, compiled"]["forward"] == {"failed": "RuntimeError: no compiler here"}
    assert "RuntimeError: no compiler here" in ladder.report(measured)


@pytest.mark.parametrize("can_be_captured", [True, False])
def test_on_a_device_its_own_time_and_the_replay_of_a_graph_stand_beside(
    can_be_captured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def captured(call: Callable[[], Any]) -> Callable[[], Any]:
        if not can_be_captured:
            raise RuntimeError("operation not permitted when stream is capturing")
        return call

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(ladder, "captured", captured)
    device = torch.device("cpu")
    timing = Timing(0.004, 0.0001, 10)
    stand_in = Instruments(device, "stand-in", lambda _: timing, lambda _: timing, lambda _: 0.0, lambda _: 0, 0)
    measured = ladder.measure([declare(lambda x: x * 2)], stand_in, CASE)
    rungs = measured["ladders"][0]["rungs"]
    assert all(rungs["ours"][phase]["device_us_error"] == pytest.approx(0.1) for phase in ("forward", "both"))
    assert all(rungs["ours"][phase]["device_us"] == 4.0 for phase in ("forward", "both"))
    replayed = rungs["graph replay"]["both"]
    assert ("host_us" in replayed, "failed" in replayed) == (can_be_captured, not can_be_captured)
    text = ladder.report(measured)
    assert text.startswith("stand-in") and "forward µs on device" in text
    assert ("not permitted" in text) is not can_be_captured


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["rms_norm", "gelu", "cross_entropy", "attention"])
def test_calls_natively(name: str) -> None:
    """Each way of calling an op has its time on the host, the replay of its graph too."""
    instruments = cuda_instruments()
    assert instruments is not None
    measured = ladder.measure([find(name)[0].spec], instruments)
    for rung in measured["ladders"][0]["rungs"].values():
        assert rung["forward"]["host_us"] > 0 and rung["both"]["host_us"] > 0, rung
    assert measured["ladders"][0]["rungs"]["ours"]["both"]["device_us"] > 0


def test_bare_is_the_function_alone() -> None:
    """No check, no question who looks on; forward and backward launch what they always do."""
    x, y = torch.ones(2, 8, requires_grad=True), torch.ones(2, 4)
    with ladder.no_launches(), watched_launches(leave_it_out) as seen, ladder.bare_operators():
        z = kernels.swiglu(x, x)
        torch.autograd.grad(z.sum(), x)
        kernels.swiglu(x.detach(), y)  # refused otherwise
    assert [launch.kernel for launch in seen[:2]] == ["swiglu_forward_kernel", "swiglu_backward_kernel"]
    assert "ladder" not in Operator.__call__.__code__.co_filename
    with ladder.no_launches(), pytest.raises(ValueError, match="they must be of one shape"):
        kernels.swiglu(x.detach(), y)
    assert "ladder" not in once_per_signature.__call__.__code__.co_filename


def test_no_kernel_runs_while_launches_are_left_out() -> None:
    with ladder.no_launches():
        y = kernels.gelu(torch.full((2, 8), torch.nan))
    assert y.shape == (2, 8)  # of any values


def options(**given: Any) -> Namespace:
    return Namespace(**{"kernel": "gelu", "calls": True, "case": None, "json": None, "plot": None, **given})


def test_the_command_prints_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "cuda_instruments", lambda: None)
    case = {"rows": 2, "columns": 8, "approximate": "none", "dtype": "float16"}
    assert bench.run(options(json=tmp_path / "calls.json", case=json.dumps(case))) == 0
    assert "gelu: rows=2 columns=8 approximate=none float16" in capsys.readouterr().out
    written = json.loads((tmp_path / "calls.json").read_text())
    assert written["ladders"][0]["case"] == case and written["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"plot": Path("x.png")}, "--plot draws the roofline"),
        ({"case": "{"}, "--case is not JSON"),
        ({"case": '{"columns": 3}'}, "--case does not fit gelu"),
        ({"calls": False, "case": "{}"}, "--case is for --calls"),
    ],
)
def test_flags_that_do_not_fit_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bench.run(options(**given))


def test_a_spec_without_builds_needs_a_case() -> None:
    with pytest.raises(UsageError, match=r"plain: its spec names no builds.* --case"):
        ladder.measure([declare(lambda x: x)], None)
