"""What measuring needs of a device. The code that measures takes it as an argument: a stand-in serves in tests."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch


@dataclass(frozen=True)
class Instruments:
    device: torch.device
    name: str
    milliseconds: Callable[[Callable[[], Any]], float]
    """How long a call keeps the device busy: the median of many."""
    call_milliseconds: Callable[[Callable[[], Any]], float]
    """How long a call takes from Python, whose launches may take longer than what they launch."""
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

    def call_milliseconds(call: Callable[[], Any]) -> float:
        # By CUDA events. The mean, which is the default, would count the machine's other work.
        return do_bench(call, return_mode="median")  # pyright: ignore[reportReturnType]

    def milliseconds(call: Callable[[], Any]) -> float:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            try:
                return replayed_milliseconds(call)
            except RuntimeError:  # it waits for the device in between, and cannot be captured
                torch.cuda.synchronize()
                return call_milliseconds(call)

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
        device, properties.name, milliseconds, call_milliseconds, peak_bytes, properties.L2_cache_size, stream
    )


def replayed_milliseconds(call: Callable[[], Any]) -> float:
    """Median time of a call that is captured in a CUDA graph, some 10 ms of it, and replayed: kernels follow each other
    at once. On a stream that is not the default one. RuntimeError where the call cannot be captured."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def timed(run: Callable[[], Any]) -> float:
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)

    call()
    torch.cuda.synchronize()
    # The first call is all launches, so that short ones are counted too few times; 200 of 10 µs are enough.
    count = max(1, min(200, int(10 / max(timed(call), 1e-3))))
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin()
    try:
        for _ in range(count):
            call()
    finally:
        graph.capture_end()
    graph.replay()
    return median(timed(graph.replay) / count for _ in range(10 if count > 1 else 4))


def measure_ceilings(instruments: Instruments, copied: int = 2**30, width: int = 8192) -> Ceilings:
    """Copies `copied` bytes, and multiplies two `width` × `width` matrices."""
    source = torch.empty(copied, dtype=torch.uint8, device=instruments.device)
    target = torch.empty_like(source)
    seconds = instruments.milliseconds(lambda: target.copy_(source)) / 1000
    a, b = torch.randn(2, width, width, device=instruments.device).bfloat16()
    return Ceilings(2 * copied / seconds, 2 * width**3 / (instruments.milliseconds(lambda: a @ b) / 1000))


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
