"""What measuring needs of a device. The code that measures takes it as an argument: a stand-in serves in tests."""

from __future__ import annotations

import itertools
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from kernels.lab.limits import Wrong

STANDARD_ERROR = 0.005
"""Share of a time that the standard error of its median may be: then it is measured no longer."""
LONGEST = 3.0
"""Seconds after which it is measured no longer, either."""
FEWEST = 10
"""Runs."""
COMPARED = 2**26
"""Elements of a result, at most: more would need memory that the case may fill."""


@dataclass(frozen=True)
class Timing:
    """How long something takes: milliseconds."""

    median: float
    standard_error: float
    """Of the median."""
    runs: int

    @staticmethod
    def of(times: Sequence[float]) -> Timing:
        """From runs, whose spread is told by their median distance to the median: what others on the machine do makes
        some of them long, and should not count."""
        middle = median(times)
        deviation = 1.4826 * median(abs(time - middle) for time in times)  # of normal noise, its standard deviation
        return Timing(middle, math.sqrt(math.pi / 2) * deviation / math.sqrt(len(times)), len(times))

    def __sub__(self, other: Timing) -> Timing:
        error = math.hypot(self.standard_error, other.standard_error)
        return Timing(self.median - other.median, error, min(self.runs, other.runs))

    @property
    def is_steady(self) -> bool:
        return self.runs >= FEWEST and self.standard_error <= STANDARD_ERROR * self.median


def until_steady(sample: Callable[[], Sequence[float]], now: Callable[[], float] = time.perf_counter) -> Timing:
    """Samples, some milliseconds at a time, until the median's standard error is small or time is up."""
    times: list[float] = []
    end = now() + LONGEST
    while True:
        times += sample()
        timing = Timing.of(times)
        if timing.is_steady or now() >= end:
            return timing


@dataclass(frozen=True)
class Instruments:
    device: torch.device
    name: str
    timing: Callable[[Callable[[], Any]], Timing]
    """How long a call keeps the device busy. Raises Wrong where it gives other results when it is replayed."""
    call_timing: Callable[[Callable[[], Any]], Timing]
    """How long a call takes from Python, whose launches may take longer than what they launch."""
    unseen_milliseconds: Callable[[Callable[[], Any]], float]
    """How long the device goes on when all is done that a call queued on its own stream."""
    peak_bytes: Callable[[Callable[[], Any]], int]
    """How much memory a call holds at most, besides what was there before."""
    cache_bytes: int
    """The device's last cache: what is measured is read from memory, past it."""
    stream: torch.cuda.Stream | None = None
    """Where calls are to run: a backward runs on its forward's stream, and the default stream cannot be captured."""


@dataclass(frozen=True)
class Ceilings:
    """What the device reaches at best, measured in the run that they are compared with."""

    bytes_per_second: float
    """Of a large copy, reads and writes counted."""
    flops_per_second: float
    """Of a large bfloat16 matrix product."""

    def milliseconds(self, bytes: float, flops: float) -> float:
        """The roofline: what this work takes at least (Williams et al. 2009)."""
        return 1000 * max(bytes / self.bytes_per_second, flops / self.flops_per_second)


def cuda_instruments() -> Instruments | None:
    """Of the current CUDA device; None where there is none."""
    if not torch.cuda.is_available():
        return None
    from triton.testing import do_bench

    stream = torch.cuda.Stream()

    def call_timing(call: Callable[[], Any]) -> Timing:
        # By CUDA events, some at a time, each after the cache was flushed.
        return until_steady(lambda: do_bench(call, return_mode="all"))  # pyright: ignore[reportReturnType, reportArgumentType]

    def timing(call: Callable[[], Any]) -> Timing:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            try:
                return replayed_timing(call)
            except RuntimeError:  # it waits for the device in between, and cannot be captured
                torch.cuda.synchronize()
                return call_timing(call)

    def unseen_milliseconds(call: Callable[[], Any]) -> float:
        return min(unseen_seconds(call) for _ in range(5)) * 1000

    def peak_bytes(call: Callable[[], Any]) -> int:
        call()  # what is allocated once and kept, such as workspaces, is not counted
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    properties = torch.cuda.get_device_properties()
    device = torch.device("cuda", torch.cuda.current_device())
    return Instruments(
        device, properties.name, timing, call_timing, unseen_milliseconds, peak_bytes, properties.L2_cache_size, stream
    )


def unseen_seconds(call: Callable[[], Any]) -> float:
    """From the moment when the current stream is done with a call, until the whole device is: microseconds, unless the
    call left work on another stream, which events do not wait for."""
    torch.cuda.synchronize()
    call()
    done = torch.cuda.Event()
    done.record()
    done.synchronize()
    seen = time.perf_counter()
    torch.cuda.synchronize()
    return time.perf_counter() - seen


def replayed_timing(call: Callable[[], Any]) -> Timing:
    """Of a call that is captured in a CUDA graph, some 10 ms of it, and replayed: kernels follow each other at once. On
    a stream that is not the default one. RuntimeError where the call cannot be captured; Wrong where what is replayed
    gives other results than the call by itself, which then is not what was timed."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def timed(run: Callable[[], Any]) -> float:
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)

    alone = call()
    torch.cuda.synchronize()
    # The first call is all launches, so that short ones are counted too few times; 200 of 10 µs are enough.
    count = max(1, min(200, int(10 / max(timed(call), 1e-3))))
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin()
    try:
        for _ in range(count):
            replayed = call()
    finally:
        graph.capture_end()
    graph.replay()
    found = until_steady(lambda: [timed(graph.replay) / count for _ in range(FEWEST if count > 1 else 4)])
    if not have_same_values(replayed, alone):
        raise Wrong("gives other results when it is captured in a CUDA graph and replayed")
    return found


def have_same_values(got: Any, expected: Any) -> bool:
    """Whether two calls with the same values computed the same, but for the order of their additions."""
    one, other = ([t] if isinstance(t, Tensor) else list(t or ()) for t in (got, expected))
    return len(one) == len(other) and all(map(is_same, one, other))


def is_same(got: Tensor, expected: Tensor) -> bool:
    """The same values, NaN being equal to itself, but for the order of additions."""
    if got.shape != expected.shape or not expected.is_floating_point():
        return torch.equal(got, expected)
    got, expected = got.detach().reshape(-1)[:COMPARED], expected.detach().reshape(-1)[:COMPARED]
    if not torch.equal(got.isfinite(), expected.isfinite()):
        return False
    eps = torch.finfo(got.dtype).eps
    got, expected = (t.double().nan_to_num(0, 0, 0) for t in (got, expected))
    return bool((got - expected).norm() <= 4 * max(eps, 1e-5) * expected.norm())


def measure_ceilings(instruments: Instruments, copied: int = 2**30, width: int = 8192) -> Ceilings:
    """Copies `copied` bytes, and multiplies two `width` × `width` matrices."""
    source = torch.empty(copied, dtype=torch.uint8, device=instruments.device)
    target = torch.empty_like(source)
    seconds = instruments.timing(lambda: target.copy_(source)).median / 1000
    a, b = torch.randn(2, width, width, device=instruments.device).bfloat16()
    return Ceilings(2 * copied / seconds, 2 * width**3 / (instruments.timing(lambda: a @ b).median / 1000))


def in_turn(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    """One call at a time, the next one each time, so that each finds its inputs out of the cache."""
    turn = itertools.cycle(calls)
    return lambda: next(turn)()


def versions() -> dict[str, str | None]:
    import triton

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
    }
