"""What does one call cost, and how much of it is Python? An op by every way of calling it: `bench --calls`.

On a CPU the launches are left out, so that the Python around them is measured alone: what a call costs more after a
change is seen without a GPU. Then the reference's time is that of its arithmetic too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch

from kernels.lab.calls import cotangents_for, describe, prepare
from kernels.lab.check import elements_of
from kernels.lab.find import UsageError
from kernels.lab.instruments import Instruments, versions
from kernels.lab.output import table
from kernels.lab.spec import Case, Spec
from kernels.launch import Operator, building_for, once_per_signature

PHASES = {"forward": "forward", "both": "forward and backward"}
"""With a gradient to be computed, both."""
ROUNDS = 7
GENERATION = 90
"""Whose launches are chosen where none is run."""


def measure(specs: Sequence[Spec], instruments: Instruments | None, case: Case | None = None) -> dict[str, Any]:
    """The ladders of some ops at `case`, or at the smallest of their builds; without instruments, on a CPU."""
    ladders = []
    for spec in specs:
        chosen = case if case is not None else smallest_case(spec)
        with no_launches() if instruments is None else torch.cuda.stream(instruments.stream):
            ladders.append(measure_case(spec, chosen, instruments))
    name = "CPU, launches left out" if instruments is None else instruments.name
    return {"device": name, "versions": versions(), "ladders": ladders}


def smallest_case(spec: Spec) -> Case:
    if not spec.builds:
        raise UsageError(f"{spec.name}: its spec names no builds to take a case from; give one with --case")
    return min(spec.builds, key=lambda case: elements_of(spec, case))


def measure_case(spec: Spec, case: Case, instruments: Instruments | None) -> dict[str, Any]:
    """Microseconds by way of calling and phase: on the host, and on the device if there is one."""
    torch.manual_seed(0)
    torch.compiler.reset()
    call = prepare(spec, case, torch.device("cpu") if instruments is None else instruments.device)
    cotangents = cotangents_for(call.forward(spec.reference))
    compiled = torch.compile(spec.op, dynamic=False)
    ways: dict[str, tuple[Callable[..., Any], Any]] = {
        "reference, eager": (spec.reference, nullcontext),
        "bare launch": (spec.op, bare_operators),
        "ours": (spec.op, nullcontext),
        "ours, compiled": (compiled, nullcontext),
    }
    rungs: dict[str, dict[str, Any]] = {name: {} for name in ways}
    for phase in PHASES if cotangents else ("forward",):

        def called(function: Callable[..., Any], phase: str = phase) -> Callable[[], Any]:
            if phase == "forward":
                return lambda: call.forward(function)
            return lambda: call.backward(call.forward(function), cotangents)

        calls = {name: called(function) for name, (function, _) in ways.items()}
        if instruments is not None:
            try:
                calls["graph replay"] = captured(calls["ours"])
            except RuntimeError as error:  # it waits for the device in between
                rungs.setdefault("graph replay", {})[phase] = failure(error)
        for name, found in host_microseconds(calls, {name: way[1] for name, way in ways.items()}, instruments).items():
            rungs.setdefault(name, {})[phase] = found
            if instruments is not None and "failed" not in found and name != "graph replay":
                timing = instruments.timing(calls[name])
                found |= {"device_us": 1000 * timing.median, "device_us_error": 1000 * timing.standard_error}
    return {"op": spec.name, "case": case, "rungs": rungs}


def host_microseconds(
    calls: dict[str, Callable[[], Any]], within: dict[str, Any], instruments: Instruments | None
) -> dict[str, dict[str, Any]]:
    """What each call takes of the host, the least of some rounds, in which they take turns; or why it failed.

    On a CPU it is the process's own time, which others on the machine do not lengthen. On a device only so many calls
    are issued at once that its queue never makes the host wait.
    """
    now, most, wait = time.process_time, 2000, lambda: None
    if instruments is not None:
        now, most, wait = time.perf_counter, 25, torch.cuda.synchronize

    def seconds(call: Callable[[], Any], count: int) -> float:
        wait()
        start = now()
        for _ in range(count):
            call()
        return (now() - start) / count

    found: dict[str, dict[str, Any]] = {}
    counts: dict[str, int] = {}
    for name, call in calls.items():
        with within.get(name, nullcontext)():
            try:
                seconds(call, 2)  # compiles
                counts[name] = max(1, min(most, int(0.02 / max(seconds(call, 2), 1e-6))))
                found[name] = {"host_us": math.inf}
            except Exception as error:
                found[name] = failure(error)
    for _ in range(ROUNDS):
        for name, count in counts.items():
            with within.get(name, nullcontext)():
                found[name]["host_us"] = min(found[name]["host_us"], 1e6 * seconds(calls[name], count))
    return found


def failure(error: Exception) -> dict[str, Any]:
    return {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """Replays the call from a CUDA graph."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


@contextmanager
def no_launches() -> Iterator[None]:
    """Inside, kernels are launched for a GPU that is not there: all is done but the launch."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    def run(*_: Any, **__: Any) -> None: ...

    with (
        building_for(GENERATION),
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(InterpretedFunction, "run", run),
    ):
        yield


@contextmanager
def bare_operators() -> Iterator[None]:
    """Inside, an op is no more than an `autograd.Function` around its launch: nothing is checked, and nobody is asked
    who might want to see an operator."""

    def call(operator: Operator, *arguments: Any) -> Any:
        differentiable = operator.differentiable if torch.is_grad_enabled() else None
        return (differentiable or operator.function)(*arguments)

    def accept(*_: Any) -> None: ...

    with mock.patch.object(Operator, "__call__", call), mock.patch.object(once_per_signature, "__call__", accept):
        yield


def report(measured: dict[str, Any]) -> str:
    """The ladders as tables."""
    lines = [measured["device"]]
    for ladder in measured["ladders"]:
        rungs = ladder["rungs"]
        phases = [phase for phase in PHASES if phase in rungs["ours"]]
        times = ["host_us", "device_us"] if "device_us" in rungs["ours"][phases[0]] else ["host_us"]
        units = {"host_us": "µs", "device_us": "µs on device"}
        heads = ["", *(f"{PHASES[phase]} {units[time]}" for phase in phases for time in times), "over bare launch"]
        rows = []
        for name, found in rungs.items():
            failed = next((found[phase]["failed"] for phase in phases if "failed" in found.get(phase, {})), None)
            if failed is not None:
                rows.append([name, failed, *[""] * (len(heads) - 2)])
                continue
            cells = [found[phase].get(time) for phase in phases for time in times]
            ratio = found["forward"]["host_us"] / rungs["bare launch"]["forward"].get("host_us", math.nan)
            rows.append([name, *("" if cell is None else f"{cell:.1f}" for cell in cells), f"{ratio:.2f}"])
        lines += ["", f"{ladder['op']}: {describe(ladder['case'])}", table(heads, rows)]
    return "\n".join(lines)
