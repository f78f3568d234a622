"""What every kernel file starts from: Triton where it is installed, what an op accepts, how kernels are launched.

`from kernels.launch import jit, tl` works without Triton too: the references are then all that can be called.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl

except ImportError:  # no Triton for this platform
    triton: Any = None
    tl: Any = None

jit: Any = triton.jit if triton is not None else lambda function: function


def cdiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n >= 1: the width of a block that holds n elements."""
    return 1 << (n - 1).bit_length()


FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""What the kernels compute on; everything is accumulated in float32."""

INTERPRETED = triton is not None and triton.knobs.runtime.interpret
"""Kernels run on the CPU, in Triton's interpreter (TRITON_INTERPRET=1 when this module was imported): slow, exact."""

_generation: ContextVar[int | None] = ContextVar("generation", default=None)


@contextmanager
def building_for(generation: int) -> Iterator[None]:
    """Ops called inside choose their launches for this compute capability (80, 90, 100), whatever device is here, and
    take tensors of any device: for a caller that intercepts the launches."""
    token = _generation.set(generation)
    try:
        yield
    finally:
        _generation.reset(token)


def generation(device: torch.device) -> int:
    """The compute capability to choose a launch for: 80 (A100), 90 (H100, H200), 100 (B200); 0 in the interpreter."""
    if (forced := _generation.get()) is not None:
        return forced
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def require(op: str, tensors: dict[str, Tensor], dtypes: Sequence[torch.dtype] = FLOATS) -> None:
    """Refuses what the kernels of `op` cannot compute: ValueError for a device, TypeError for a dtype, naming it."""
    if triton is None:
        raise ValueError(f"{op}: Triton is not installed here; use {op}_reference")
    first = next(iter(tensors.values()))
    for name, tensor in tensors.items():
        if tensor.dtype not in dtypes:
            allowed = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
            raise TypeError(f"{op}: {name} is {str(tensor.dtype).removeprefix('torch.')}; it must be one of {allowed}")
        if tensor.device != first.device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, not on {first.device} like the others")
    if first.device.type != "cuda" and not INTERPRETED and _generation.get() is None:
        raise ValueError(
            f"{op}: tensors are on {first.device.type}, and Triton's kernels need a CUDA device; use {op}_reference, "
            "or set TRITON_INTERPRET=1 to run the kernels in Triton's interpreter"
        )


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched: block sizes by the names of the kernel's parameters, and Triton's two settings."""

    blocks: dict[str, int] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2

    @property
    def options(self) -> dict[str, int]:
        """Keyword arguments for `kernel[grid](..., **launch.options)`."""
        return {**self.blocks, "num_warps": self.num_warps, "num_stages": self.num_stages}
