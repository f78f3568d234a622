"""The measuring code, on the CPU with a stand-in timer: what it calls, how often, and what it makes of the times."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels.lab import Inputs, Spec, Work, bench
from kernels.lab import instruments as instruments_module
from kernels.lab.calls import describe, dtype_of
from kernels.lab.find import Kernel, UsageError, op_name, package_kernels
from kernels.lab.instruments import (
    Ceilings,
    Instruments,
    Timing,
    cuda_instruments,
    have_same_values,
    in_turn,
    measure_ceilings,
    until_steady,
)
from kernels.lab.limits import Wrong
from kernels.lab.plausible import Expected, require_enough_declared

triton: Any = pytest.importorskip("triton")
pytest.importorskip("triton.testing")

CEILINGS = Ceilings(bytes_per_second=1e9, flops_per_second=1e12)
CASE = {"rows": 4, "columns": 8, "dtype": "float32"}


def scaled_reference(x: Tensor, weight: Tensor) -> Tensor:
    return x * weight


def declare(op: Callable[..., Tensor], peers: dict[str, Callable[..., Tensor]] | None = None) -> Spec:
    def inputs(generator: torch.Generator, rows: int, columns: int) -> Inputs:
        x = torch.randn(rows, 2 * columns, generator=generator, dtype=torch.float64)[:, :columns]
        return Inputs({"x": x, "weight": torch.rand(columns, dtype=torch.float64)}, gradients=("x", "weight"))

    def work(element_size: int, rows: int, columns: int) -> tuple[Work, Work]:
        return Work(bytes=2e6, flops=1.0), Work(bytes=1e3, flops=3e9)

    return Spec(
        name="scaled", op=op, reference=scaled_reference, cases=None, inputs=inputs, benchmarks=(CASE,), work=work,
        peers=lambda: peers or {},
    )  # fmt: skip


def instruments(
    milliseconds: Callable[[Callable[[], Any]], float], cache_bytes: int = 0, unseen: float = 0.0
) -> Instruments:
    def peak_bytes(call: Callable[[], Any]) -> int:
        call()
        return 3 * 2**20

    def timing(call: Callable[[], Any]) -> Timing:
        return Timing(milliseconds(call), 0.01, 10)

    return Instruments(
        torch.device("cpu"), "stand-in", timing, lambda call: Timing(5.0, 0.2, 12), lambda call: unseen, peak_bytes,
        cache_bytes,
    )  # fmt: skip


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
        assert found["call_ms"] == 5.0 and found["call_standard_error_ms"] == 0.2
        assert found["standard_error_ms"] == {"forward": 0.01, "backward": 0.01, "both": 0.01}
        assert found["runs"] == {"forward": 10, "backward": 10, "both": 10}
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
    assert row[1:10] == ["4.0000", "50", "4.0000", "75", "4.0000", "125", "0.2%", "5.0000", "3.0"]
    bench.plot(measured, tmp_path / "sub" / "plot.png")
    assert (tmp_path / "sub" / "plot.png").read_bytes().startswith(b"\x89PNG")


# ---- who cheats the timer


def refusal(op: Callable[..., Tensor], **with_instruments: Any) -> str:
    """What stands in the place of an op's times."""
    found = bench.measure([declare(op)], instruments(**with_instruments), CEILINGS)["cases"][0]["implementations"]
    assert found["scaled"].get("refused"), found["scaled"]
    return found["scaled"]["failed"]


@pytest.mark.parametrize("milliseconds", [0.0001, 0.5, 1.6])
def test_a_forward_below_the_roofline_is_refused(milliseconds: float) -> None:
    """2 ms at least; up to 120% may be the ceilings' fault."""
    told = refusal(scaled_reference, milliseconds=lambda call: milliseconds)
    assert f"refused: its forward takes {milliseconds:.4f} ms, " in told and "of what the device can do" in told


def test_a_backward_below_the_roofline_is_refused_where_its_forward_did_not_do_its_work() -> None:
    def found(forward: float, backward: float) -> dict[str, Any]:
        percent = {"forward": 100 * 2.0 / forward, "backward": 100 * 3.0 / backward}
        return {"ms": {"forward": forward, "backward": backward}, "roofline_percent": percent, "unseen_ms": 0.0}

    bench.require_possible(found(2.0, 3.0), True)
    bench.require_possible(found(4.0, 0.1), True)  # the gradient is computed by the forward
    with pytest.raises(Wrong, match=r"its backward takes 0\.1000 ms, 3000%"):
        bench.require_possible(found(2.0, 0.1), True)


def test_what_stays_in_the_cache_may_be_faster() -> None:
    found = {"ms": {"forward": 1.0}, "roofline_percent": {"forward": 200.0}, "unseen_ms": 0.0}
    bench.require_possible(found, False)
    with pytest.raises(Wrong):
        bench.require_possible(found, True)
    bench.require_possible({"ms": {"forward": 1e-6}, "roofline_percent": {}, "unseen_ms": 0.0}, True)  # no roofline


def test_work_on_another_stream_is_refused() -> None:
    told = refusal(scaled_reference, milliseconds=four_milliseconds, unseen=1.25)
    assert "refused: the device goes on for 1.25 ms when its stream is done" in told
    bench.measure_case(declare(scaled_reference), CASE, instruments(four_milliseconds, unseen=0.03), CEILINGS)


@pytest.mark.parametrize(
    "owner, name",
    [(time, "perf_counter"), (torch.cuda, "synchronize"), (torch.cuda.Event, "elapsed_time"),
     (torch.cuda.Event, "record"), (torch.cuda.CUDAGraph, "replay"), (triton.testing, "do_bench"),
     (instruments_module, "replayed_timing"), (bench, "_times"), (Timing, "of")],
    ids=lambda value: getattr(value, "__name__", value),
)  # fmt: skip
def test_a_patched_timer_is_refused(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = vars(owner)[name]

    def op(x: Tensor, weight: Tensor) -> Tensor:
        monkeypatch.setattr(owner, name, kept.__func__ if isinstance(kept, staticmethod) else lambda *_, **__: 0.0)
        return x * weight

    assert re.search(
        rf"refused: it replaces \S*\.{name}, which others rely on", refusal(op, milliseconds=lambda _: 4.0)
    )


def test_a_refusal_is_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = SimpleNamespace(spec=declare(scaled_reference), path=Path("x.py"))
    monkeypatch.setattr(bench, "find", lambda kernel: [found])
    monkeypatch.setattr(bench, "targets_of", lambda kernel: [kernel])
    monkeypatch.setattr(bench, "in_order", lambda job, calls: [job(*call) for call in calls])
    monkeypatch.setattr(bench, "is_available", lambda: True)
    monkeypatch.setattr(bench, "measure_ceilings", lambda _: CEILINGS)
    for unseen, code in ((0.0, 0), (3.0, 1)):
        here = instruments(four_milliseconds, unseen=unseen)
        monkeypatch.setattr(bench, "cuda_instruments", lambda here=here: here)
        assert bench.run(Namespace(kernel="x", json=tmp_path / "a.json", plot=None, calls=False, case=None)) == code
    assert "refused: the device goes on for 3.00 ms" in capsys.readouterr().out
    assert "refused" in (tmp_path / "a.json").read_text()


def test_what_is_wrong_in_the_runs_that_are_timed_is_refused() -> None:
    """Also by an op that is right when it is called first, or last."""

    def tiring(right: range) -> Callable[..., Tensor]:
        calls = itertools.count()
        return lambda x, weight: x * weight * (1.0 if next(calls) in right else 1.5)

    for right in (range(0), range(1), range(14, 1000)):
        told = refusal(tiring(right), milliseconds=four_milliseconds)
        assert "in the runs of forward that are timed its error is" in told


def test_no_number_and_fewer_results_than_there_are_are_refused() -> None:
    assert "is inf times" in refusal(lambda x, weight: x * weight * math.nan, milliseconds=lambda _: 4.0)
    x = torch.ones(3)
    right = Expected([x.double(), x.double()], [x, x], 2)
    assert right.error_over_naive([x, x]) == 0.0
    for got in ([x], [x, x[:1]], [x, x.half()], [x, torch.full((3,), math.nan)]):
        assert right.error_over_naive(got) == math.inf


class Keeps:
    """Right, and computed once for each place in memory."""

    def __init__(self) -> None:
        self.known: dict[int, Tensor] = {}

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.known.setdefault(x.data_ptr(), x * weight)


class KeepsGradient(torch.autograd.Function):
    known: ClassVar[dict[int, Tensor]] = {}

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (dy,), (x, weight) = gradients, ctx.saved_tensors
        dx = KeepsGradient.known.setdefault(dy.data_ptr(), dy * weight)
        return dx, (dy * x).sum(0)


def test_what_was_kept_is_refused_without_a_roofline_too() -> None:
    def without_gradients(*given: Any, **case: Any) -> Inputs:
        return replace(declare(scaled_reference).inputs(*given, **case), gradients=())

    for spec in (replace(declare(Keeps()), inputs=without_gradients), declare(KeepsGradient.apply)):
        spec = replace(spec, work=None)
        case = bench.measure_case(spec, CASE, instruments(four_milliseconds), CEILINGS)
        found = case["implementations"]
        assert "it keeps results of earlier calls" in found["scaled"]["failed"], found["scaled"]
        assert "failed" not in found["eager"]


def test_a_setting_that_is_changed_is_refused() -> None:
    def op(x: Tensor, weight: Tensor) -> Tensor:
        torch.set_num_threads(torch.get_num_threads() + 1)
        return x * weight

    threads = torch.get_num_threads()
    assert "it changes PyTorch's number of threads" in refusal(op, milliseconds=lambda _: 4.0)
    torch.set_num_threads(threads)


def test_a_roofline_that_everybody_is_below_is_refused() -> None:
    spec = replace(declare(scaled_reference), work=lambda *_, **__: (Work(1.0, 0.0), Work(1e3, 0.0)))
    with pytest.raises(UsageError, match="declares 1 bytes for the forward, whose results alone are 128"):
        bench.measure_case(spec, CASE, instruments(four_milliseconds), CEILINGS)


def test_eager_is_the_reference_whatever_is_said_of_it() -> None:
    def slow(x: Tensor, weight: Tensor) -> Tensor:
        raise AssertionError("eager, it says")

    case = bench.measure_case(
        declare(scaled_reference, {"eager": slow}), CASE, instruments(four_milliseconds), CEILINGS
    )
    assert list(case["implementations"]) == ["scaled", "eager", "compile"]
    assert "failed" not in case["implementations"]["eager"]


@pytest.mark.parametrize(
    "spec", [pytest.param(kernel.spec, id=op_name(kernel)) for kernel in package_kernels() if kernel.spec.work]
)
def test_every_spec_declares_what_its_results_take(spec: Spec) -> None:
    """At every size that is built or measured: shapes alone are computed."""
    assert spec.work is not None
    for case in (*spec.builds, *spec.benchmarks):
        with FakeTensorMode(allow_non_fake_inputs=True):
            call = bench.prepare(spec, case, torch.device("cpu"))
            outputs = call.forward(spec.reference)
            written = [sum(t.numel() * t.element_size() for t in results) for results in (outputs, call.leaves)]
            require_enough_declared(spec, case, outputs, call.leaves)
        sizes = {key: value for key, value in case.items() if key != "dtype"}
        declared = [work.bytes for work in spec.work(dtype_of(case).itemsize, **sizes)]
        assert written[0] > 0 and all(work >= least for work, least in zip(declared, written)), describe(case)


# ---- until when


def test_it_is_measured_until_the_standard_error_is_small() -> None:
    draw = random.Random(0)
    timing = until_steady(lambda: [draw.gauss(10, 0.5) for _ in range(10)])
    # 0.5% of 10 is 0.05 = 1.2533 · 0.5 / √n for n of 157.
    assert timing.is_steady and 100 <= timing.runs <= 240 and timing.median == pytest.approx(10, abs=0.15)
    assert until_steady(lambda: [1.0] * 10) == Timing(1.0, 0.0, 10)


def test_what_does_not_become_steady_is_given_up_and_said() -> None:
    clock = itertools.count()
    draw = random.Random(0)
    timing = until_steady(lambda: [draw.uniform(1, 9)], now=lambda: float(next(clock)))
    assert timing.runs == 3 and timing.standard_error > 0.5 and not timing.is_steady


def test_what_others_do_does_not_count() -> None:
    """One run of ten takes a hundred times as long."""
    draw = random.Random(0)
    timing = Timing.of([draw.gauss(10, 0.1) * (100 if n % 10 == 0 else 1) for n in range(200)])
    assert timing.median == pytest.approx(10, rel=0.01) and timing.standard_error == pytest.approx(0.01, rel=0.5)


def test_the_standard_error_is_that_of_the_median() -> None:
    draw = random.Random(0)
    timings = [Timing.of([draw.gauss(10, 1) for _ in range(60)]) for _ in range(400)]
    said = statistics.mean(timing.standard_error for timing in timings)
    assert said == pytest.approx(statistics.stdev(timing.median for timing in timings), rel=0.1)
    assert (timings[0] - timings[1]).standard_error == pytest.approx(1.41 * said, rel=0.4)


def test_what_is_replayed_must_be_what_is_computed() -> None:
    x = torch.tensor([1.0, math.nan, math.inf, -3.0])
    assert have_same_values([x, None or x], [x, x.clone()]) and have_same_values(x, x * (1 + 1e-6))
    assert have_same_values(None, None) and have_same_values(torch.arange(3), torch.arange(3))
    for other in (torch.zeros(4), x[:3], x.nan_to_num(0), x * 1.01, torch.tensor([1.0, math.nan, math.inf, 3.0])):
        assert not have_same_values(other, x)
    assert not have_same_values([x], [x, x])


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
    monkeypatch.setattr(bench, "is_available", lambda: False)
    json_file, plot_file = tmp_path / "a.json", tmp_path / "a.png"
    assert bench.run(Namespace(kernel="swiglu", json=json_file, plot=plot_file, calls=False, case=None)) == 0
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
    assert found.timing(lambda: x + 1).median < found.call_timing(lambda: x + 1).median
    # What waits for the device cannot be captured, and is timed as it is called.
    assert found.timing(lambda: (x + 1).sum().item()).median > 0


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


@pytest.mark.gpu
@pytest.mark.parametrize("returns_to", [False, True])
def test_another_stream_is_seen_on_a_device(returns_to: bool) -> None:
    found = cuda_instruments()
    if found is None:
        pytest.skip("no CUDA device here")
    elsewhere = torch.cuda.Stream()

    def op(x: Tensor, weight: Tensor) -> Tensor:
        elsewhere.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(elsewhere):
            y = x * weight
            for _ in range(40):
                y = y * 1.0
        if returns_to:
            torch.cuda.current_stream().wait_stream(elsewhere)
        return y

    case = {"rows": 4096, "columns": 4096, "dtype": "float32"}
    implementation = bench.measure_case(declare(op), case, found, CEILINGS)["implementations"]["scaled"]
    assert implementation.get("refused", False) is not returns_to
