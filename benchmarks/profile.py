"""Where the time of a training step goes, by operator and by our line: `python -m benchmarks.profile`.

A few steps of the real loop under PyTorch's profiler. An operator's time is its own, without that of the operators it
calls; a line is the innermost one of ours that was waiting for it, and what the backward does counts for the line whose
forward it undoes. The profiler itself slows Python down: shares tell more than milliseconds. `--trace FILE` leaves the
whole, for chrome://tracing or ui.perfetto.dev.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from torch._C._profiler import _EventType, _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import describe, publish, results_file
from benchmarks.steps import StepCase, prepare
from instructgpt.flags import parse, run_main
from instructgpt.runtime import resolve_device
from instructgpt.settings import FilePath, NonNegativeInt, PositiveInt, Settings
from instructgpt.training.compiling import CompileMode

_OURS = ("instructgpt/", "kernels/")
_BACKWARD = "autograd::engine::evaluate_function: "


@dataclass(frozen=True)
class ProfileConfig(Settings):
    """Shows where a training step's time goes."""

    shape: str = ""
    """The model: 12m, a preset, or minute; gpt2 on CUDA and tiny elsewhere by default."""
    rows: NonNegativeInt = 0
    """Rows of a batch; 16 by default, 6 for tiny."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: str = "auto"
    """As in training."""
    backend: str = "auto"
    """As in training."""
    compile: CompileMode = "off"
    """As in training."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """As in training."""
    steps: PositiveInt = 3
    """Steps under the profiler."""
    top: PositiveInt = 20
    """Rows of each table."""
    trace: FilePath = ""
    """A file for the trace, as JSON of Chrome's format."""
    json: FilePath = "auto"
    """The file to write; auto is benchmarks/results/DEVICE-profile.json, empty is none."""


@dataclass
class Spent:
    """Seconds of an operator or a line, over all profiled steps."""

    calls: int = 0
    host: float = 0.0
    """Of the processor."""
    device: float = 0.0
    """Of the GPU, in kernels launched from here."""
    backward: float = 0.0
    """Of both together, what was spent in the backward."""

    def add(self, host: float, device: float, is_backward: bool) -> None:
        self.calls += 1
        self.host += host
        self.device += device
        self.backward += (host + device) * is_backward


@dataclass
class Profile:
    """What was found."""

    operators: dict[str, Spent] = field(default_factory=dict)
    lines: dict[str, Spent] = field(default_factory=dict)
    busy: float = 0.0
    """Seconds in which at least one kernel ran."""


def attribute(roots: Iterable[Any], device_seconds: dict[int, float]) -> Profile:
    """Adds the profiler's tree up. device_seconds: by the operators' correlation numbers."""
    found, forward_lines = Profile(), {}
    for node, line, is_backward in _walk(sorted(roots, key=lambda root: root.start_time_ns), forward_lines):
        own = (node.duration_time_ns - sum(each.duration_time_ns for each in _operators_below(node))) / 1e9
        spent = (max(own, 0.0), device_seconds.get(node.correlation_id, 0.0), is_backward)
        found.operators.setdefault(node.name.removeprefix(_BACKWARD), Spent()).add(*spent)
        found.lines.setdefault(line, Spent()).add(*spent)
    return found


def _walk(roots: Iterable[Any], forward_lines: dict[int, str]) -> Iterator[tuple[Any, str, bool]]:
    """Every operator with our line above it, and whether the backward called it."""
    for root in roots:
        waiting = [(root, "elsewhere", False)]
        while waiting:
            node, line, is_backward = waiting.pop()
            line = _our_line(node) or line
            if _is_operator(node):
                number = node.extra_fields.sequence_number
                if node.name.startswith(_BACKWARD):
                    is_backward, line = True, forward_lines.get(number, line)
                elif not is_backward and number >= 0:
                    forward_lines[number] = line
                yield node, line, is_backward
            waiting += [(child, line, is_backward) for child in reversed(node.children)]


def _is_operator(node: Any) -> bool:
    return node.tag == _EventType.TorchOp


def _operators_below(node: Any) -> Iterator[Any]:
    """The nearest operators under a node, through the Python between them."""
    for child in node.children:
        if _is_operator(child):
            yield child
        else:
            yield from _operators_below(child)


def _our_line(node: Any) -> str:
    """Where a Python call was made, or the function it is, if that is in our files; else empty."""
    fields = node.extra_fields
    for place in (getattr(fields, "callsite", None), getattr(fields, "caller", None)):
        if place is not None and place.file_name.startswith(_OURS):
            return f"{place.file_name}:{place.line_number} {place.function_name}"
    return ""


def busy_seconds(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of (start, end)."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def take(config: ProfileConfig) -> tuple[Profile, float, float]:
    """The profile, seconds of a step without the profiler and with it."""
    device = resolve_device(config.device)
    shape = config.shape or ("gpt2" if device.type == "cuda" else "tiny")
    case = StepCase(
        shape, config.rows or (6 if shape == "tiny" else 16), str(device), config.dtype, backend=config.backend,
        compile=config.compile, optimizer=config.optimizer, steps=config.steps,
    )  # fmt: skip
    measure = prepare(case)
    plain = measure()["seconds"]
    on_gpu = [ProfilerActivity.CUDA] if device.type == "cuda" else []
    verbose = _ExperimentalConfig(verbose=True)
    with profile(activities=[ProfilerActivity.CPU, *on_gpu], with_stack=True, experimental_config=verbose) as profiler:
        started = time.perf_counter()
        measure()
        seconds = (time.perf_counter() - started) / (config.steps + 1)  # the loop takes one that is not counted
    if config.trace:
        profiler.export_chrome_trace(config.trace)
    events = profiler.events() or []
    device_seconds: dict[int, float] = {}
    kernels: list[tuple[float, float]] = []
    for event in events:
        if event.device_type.name == "CUDA":
            kernels.append((event.time_range.start / 1e6, event.time_range.end / 1e6))
        elif event.self_device_time_total:
            device_seconds[event.id] = event.self_device_time_total / 1e6
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    found = attribute(profiler.profiler.kineto_results.experimental_event_tree(), device_seconds)
    found.busy = busy_seconds(kernels)
    return found, plain, seconds


def table(
    title: str, spent: dict[str, Spent], steps: int, whole: float, top: int, is_gpu: bool
) -> list[dict[str, Any]]:
    """Prints the dearest ones, in milliseconds a step and as a share of `whole` seconds; returns them."""
    ordered = sorted(spent.items(), key=lambda item: item[1].device if is_gpu else item[1].host, reverse=True)[:top]
    gpu = f" {'GPU ms':>8}" if is_gpu else ""
    print(f"\n{'share':>6}{gpu} {'CPU ms':>8} {'backward':>8} {'calls':>6}  {title}")
    rows = []
    for name, each in ordered:
        share = (each.device if is_gpu else each.host) / whole if whole else 0.0
        backward = each.backward / max(each.host + each.device, 1e-12)
        row = {
            "name": name, "share": share, "cpu_ms": 1e3 * each.host / steps, "gpu_ms": 1e3 * each.device / steps,
            "backward": backward, "calls": each.calls / steps,
        }  # fmt: skip
        gpu = f" {row['gpu_ms']:>8.3f}" if is_gpu else ""
        print(f"{share:>6.1%}{gpu} {row['cpu_ms']:>8.3f} {backward:>8.0%} {row['calls']:>6.0f}  {name}")
        rows.append(row)
    return rows


def measure(config: ProfileConfig) -> int:
    device = resolve_device(config.device)
    is_gpu, steps = device.type == "cuda", config.steps + 1
    found, plain, seconds = take(config)
    host = sum(each.host for each in found.operators.values()) / steps
    summary: dict[str, Any] = {
        "seconds_a_step": plain, "seconds_a_step_profiled": seconds, "operators_seconds": host,
        "gpu_busy": found.busy / steps / plain if is_gpu else None,
    }  # fmt: skip
    print(f"a step takes {1e3 * plain:.1f} ms, under the profiler {1e3 * seconds:.1f}, {1e3 * host:.1f} in operators")
    if is_gpu:
        print(f"the GPU is busy for {1e3 * found.busy / steps:.1f} ms of a step: {summary['gpu_busy']:.0%}")
    # On a GPU a share is of the time in kernels; on a CPU, of the step under the profiler.
    whole = sum(each.device for each in found.operators.values()) if is_gpu else seconds * steps
    operators = table("operator", found.operators, steps, whole, config.top, is_gpu)
    lines = table("our line", found.lines, steps, whole, config.top, is_gpu)
    document = {**describe(device), "settings": vars(config), **summary, "operators": operators, "lines": lines}
    publish(document, results_file(config.json, device, "profile"))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: measure(parse(ProfileConfig, sys.argv[1:], "benchmarks.profile"))))
