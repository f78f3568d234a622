"""What measuring needs of a device. The code that measures takes it as an argument: a stand-in serves in tests."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Instruments:
    device: torch.device
    name: str
    milliseconds: Callable[[Callable[[], Any]], float]
    """How long a call takes: the median of many."""
    peak_bytes: Callable[[Callable[[], Any]], int]
    """How much memory a call holds at most, besides what was there before."""
    cache_bytes: int
    """The device's last cache: what is measured is read from memory, past it."""


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

    def milliseconds(call: Callable[[], Any]) -> float:
        # By CUDA events. The mean, which is the default, would count the machine's other work.
        return do_bench(call, return_mode="median")  # pyright: ignore[reportReturnType]

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
    return Instruments(device, properties.name, milliseconds, peak_bytes, properties.L2_cache_size)


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
