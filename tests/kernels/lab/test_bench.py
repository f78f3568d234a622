"""The measuring code, on the CPU with a stand-in timer: what it calls, how often, and what it makes of the times."""

from __future__ import annotations

import itertools
import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.lab import Inputs, Spec, Work, bench
from kernels.lab.find import Kernel, op_name, package_kernels
from kernels.lab.instruments import Ceilings, Instruments, cuda_instruments, in_turn, measure_ceilings

pytest.importorskip("triton")

CEILINGS = Ceilings(bytes_per_second=1e9, flops_per_second=1e12)
CASE = {"rows": 4, "columns": 8, "dtype": "float32"}


def scaled_reference(x: Tensor, weight: Tensor) -> Tensor:
    return x * weight


def declare(op: Callable[..., Tensor], peers: dict[str, Callable[..., Tensor]] | None = None) -> Spec:
    def inputs(generator: torch.Generator, rows: int, columns: int) -> Inputs:
        x = torch.randn(rows, 2 * columns, generator=generator, dtype=torch.float64)[:, :columns]
        return Inputs({"x": x, "weight": torch.rand(columns, dtype=torch.float64)}, gradients=("x", "weight"))

    def work(element_size: int, rows: int, columns: int) -> tuple[Work, Work]:
        return Work(bytes=2e6, flops=1.0), Work(bytes=0.0, flops=3e9)

    return Spec(
        name="scaled", op=op, reference=scaled_reference, cases=None, inputs=inputs, benchmarks=(CASE,), work=work,
        peers=lambda: peers or {},
    )  # fmt: skip


def instruments(milliseconds: Callable[[Callable[[], Any]], float], cache_bytes: int = 0) -> Instruments:
    def peak_bytes(call: Callable[[], Any]) -> int:
        call()
        return 3 * 2**20

    return Instruments(torch.device("cpu"), "stand-in", milliseconds, lambda call: 5.0, peak_bytes, cache_bytes)


def four_milliseconds(call: Callable[[], Any]) -> float:
    for _ in range(3):
        call()
    return 4.0


@pytest.fixture(autouse=True)
def no_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def test_times_become_percentages_of_the_roofline() -> None:
    case = bench.measure_case(declare(scaled_reference), CASE, instruments(four_milliseconds), CEILINGS)
    # The forward moves 2 MB at 1 GB/s; the backward computes 3 GFLOP at 1 TFLOP/s.
    assert case["least_ms"] == pytest.approx({"forward": 2.0, "backward": 3.0, "both": 5.0})
    assert list(case["implementations"]) == ["scaled", "eager", "compile"]
    for found in case["implementations"].values():
        assert found["ms"] == {"forward": 4.0, "backward": 4.0, "both": 4.0}
        assert found["roofline_percent"] == pytest.approx({"forward": 50.0, "backward": 75.0, "both": 125.0})
        assert found["call_ms"] == 5.0
        assert found["peak_bytes"] == 3 * 2**20


def test_inputs_are_rotated_past_the_cache() -> None:
    seen: list[int] = []

    def op(x: Tensor, weight: Tensor) -> Tensor:
        assert x.stride() == (16, 1)  # as the spec laid it out
        seen.append(x.data_ptr())
        return x * weight

    def ten_calls(call: Callable[[], Any]) -> float:
        seen.clear()
        for _ in range(10):
            call()
        return 1.0

    input_bytes = (4 * 8 + 8) * 4
    call = bench.prepare(declare(op), CASE, torch.device("cpu"))
    bench._times(op, call, [], instruments(ten_calls, cache_bytes=2 * input_bytes), least={})
    timed = seen[:10]  # memory is measured after that
    assert len(set(timed)) == 4  # twice the cache
    assert all(a != b for a, b in itertools.pairwise(timed))


def test_the_backward_is_timed_alone() -> None:
    forwards: list[int] = []
    counts: list[int] = []

    def op(x: Tensor, weight: Tensor) -> Tensor:
        forwards.append(1)
        return x * weight

    def counting(call: Callable[[], Any]) -> float:
        before = len(forwards)
        call()
        call()
        counts.append(len(forwards) - before)
        return 1.0

    spec = declare(op)
    call = bench.prepare(spec, CASE, torch.device("cpu"))
    times = bench._times(op, call, [torch.ones(4, 8)], instruments(counting), {})
    assert list(times["ms"]) == ["forward", "both", "backward"]
    assert counts == [2, 2, 0]


def test_a_graph_that_can_be_run_backward_once_is_timed_by_difference() -> None:
    spec = next(kernel.spec for kernel in package_kernels() if op_name(kernel) == "cross_entropy")
    case = {"rows": 4, "vocabulary": 8, "dtype": "float32"}
    took = iter([1.0, 3.0])
    call = bench.prepare(spec, case, torch.device("cpu"))
    times = bench._times(spec.op, call, [torch.ones(4)], instruments(lambda call: call() and next(took)), {})
    assert times["ms"] == {"forward": 1.0, "both": 3.0, "backward": 2.0}


def test_errors_are_told_over_the_eager_version() -> None:
    def wrong(x: Tensor, weight: Tensor) -> Tensor:
        return 1.001 * x * weight

    spec = declare(scaled_reference, {"wrong": wrong})
    case = bench.measure_case(spec, CASE, instruments(four_milliseconds), CEILINGS)
    found = case["implementations"]
    assert found["scaled"]["error_over_naive"] == found["eager"]["error_over_naive"] <= 1.5
    assert found["wrong"]["error_over_naive"] > 1000


def test_a_peer_may_fail_but_the_op_may_not() -> None:
    def fails(x: Tensor, weight: Tensor) -> Tensor:
        raise RuntimeError("takes no rows of 8\nand more lines")

    spec = declare(scaled_reference, {"peer": fails})
    case = bench.measure_case(spec, CASE, instruments(four_milliseconds), CEILINGS)
    assert case["implementations"]["peer"] == {"failed": "RuntimeError: takes no rows of 8"}
    with pytest.raises(RuntimeError, match="takes no rows"):
        bench.measure_case(declare(fails), CASE, instruments(four_milliseconds), CEILINGS)


def test_report_and_plot_read_the_json_alone(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")

    def fails(x: Tensor, weight: Tensor) -> Tensor:
        raise RuntimeError("no")

    spec = declare(scaled_reference, {"peer": fails})
    measured = json.loads(json.dumps(bench.measure([spec], instruments(four_milliseconds), CEILINGS)))
    text = bench.report(measured)
    assert "stand-in: copies 0.00 TB/s" in text and "scaled: rows=4 columns=8 float32" in text
    row = next(line.split() for line in text.splitlines() if line.startswith("eager"))
    assert row[1:9] == ["4.0000", "50", "4.0000", "75", "4.0000", "125", "5.0000", "3.0"]
    bench.plot(measured, tmp_path / "sub" / "plot.png")
    assert (tmp_path / "sub" / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_ceilings_are_rates() -> None:
    measured = measure_ceilings(instruments(four_milliseconds), copied=1000, width=16)
    assert measured.bytes_per_second == pytest.approx(2 * 1000 / 0.004)
    assert measured.flops_per_second == pytest.approx(2 * 16**3 / 0.004)


def test_calls_come_in_turn() -> None:
    call = in_turn([lambda n=n: n for n in range(3)])
    assert [call() for _ in range(5)] == [0, 1, 2, 0, 1]


def test_without_a_device_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    json_file, plot_file = tmp_path / "a.json", tmp_path / "a.png"
    assert bench.run(Namespace(kernel="swiglu", json=json_file, plot=plot_file)) == 0
    assert capsys.readouterr().out == "no CUDA device here: nothing measured, nothing written\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kernel", [pytest.param(kernel, id=op_name(kernel)) for kernel in package_kernels()])
def test_peers_compute_the_same(kernel: Kernel) -> None:
    """As far as they run on a CPU."""
    spec = kernel.spec
    if spec.peers is None or spec.needs_tensor_cores:
        pytest.skip("no peers that run on a CPU in a moment")
    call = bench.prepare(spec, {**spec.builds[0], "dtype": "float32"}, torch.device("cpu"))
    for peer in spec.peers().values():
        for got, expected in zip(call.forward(peer), call.forward(spec.reference)):
            torch.testing.assert_close(got, expected)


@pytest.mark.gpu
def test_a_replay_is_faster_than_its_launches() -> None:
    found = cuda_instruments()
    if found is None:
        pytest.skip("no CUDA device here")
    x = torch.ones(1000, device=found.device)
    assert found.milliseconds(lambda: x + 1) < found.call_milliseconds(lambda: x + 1)
    # What waits for the device cannot be captured, and is timed as it is called.
    assert found.milliseconds(lambda: (x + 1).sum().item()) > 0


@pytest.mark.gpu
def test_on_a_device(tmp_path: Path) -> None:
    found = cuda_instruments()
    if found is None:
        pytest.skip("no CUDA device here")
    from kernels.swiglu import spec

    small = replace(spec(), benchmarks=({"rows": 1024, "columns": 4096},))
    measured = bench.measure([small], found, measure_ceilings(found, copied=2**26, width=2048))
    (case,) = measured["cases"]
    assert 0 < case["implementations"]["swiglu"]["roofline_percent"]["forward"] < 200
    assert {kernel["kernel"] for kernel in case["kernels"]} == {"swiglu_forward_kernel", "swiglu_backward_kernel"}
