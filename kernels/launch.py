"""What every kernel file starts from: Triton where it is installed, what an op accepts, how kernels are launched.

`from kernels.launch import jit, tl` works without Triton too: the references are then all that can be called.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache, wraps
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl

except ImportError:  # no Triton for this platform
    triton: Any = None
    tl: Any = None

AVAILABLE = triton is not None
"""Triton is installed."""

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


def custom_op(name: str, mutates_args: Sequence[str] = ()) -> Callable[[Callable[..., Any]], Any]:
    """`torch.library.custom_op`, whose kernels are launched on the device of the tensors.

    Triton launches on the current device, and what lies on another GPU is out of a kernel's reach.
    """

    def register(function: Callable[..., Any]) -> Any:
        return torch.library.custom_op(name, mutates_args=mutates_args)(on_device_of_tensors(function))

    return register


def on_device_of_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, the device of its first tensor being the current one inside; where it is already, at no cost
    but the question."""

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        device = next(x.device for x in chain(args, kwargs.values()) if isinstance(x, Tensor))
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            return function(*args, **kwargs)
        with torch.cuda.device(device):
            return function(*args, **kwargs)

    return guarded


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


Chooser = Callable[[str, str, Launch, Sequence[Launch]], Launch]
"""(op, key, default, others) -> the launch to use."""

_choosers: list[Chooser] = []
"""The last one is asked. No ContextVar: on a GPU, autograd runs the backward in a thread of its own."""


@contextmanager
def choosing(chooser: Chooser) -> Iterator[None]:
    """`tuned` asks `chooser` inside: this is how launches are tried."""
    _choosers.append(chooser)
    try:
        yield
    finally:
        _choosers.pop()


def tuned(
    op: str, key: str, default: Launch, others: Sequence[Launch] = (), device: torch.device | None = None
) -> Launch:
    """The launch that `python -m kernels.lab tune` found fastest on such a device, or `default` where it never ran.

    `key` holds the dtype and sizes that decide, coarsely, since each key is measured by itself; `others` are the
    launches that are tried besides `default`; `device` is that of the tensors, by default the current one.
    """
    if _choosers:
        return _choosers[-1](op, key, default, others)
    if _generation.get() is not None or INTERPRETED or not (measured := read_tuned(tuned_file())):
        return default
    found = measured.get(torch.cuda.get_device_name(device), {}).get(op, {}).get(key)
    # A kernel whose parameters were renamed since is launched as if it had not been tuned.
    return Launch(**found) if found and found["blocks"].keys() == default.blocks.keys() else default


def tuned_file() -> str:
    """Where tuned launches are kept: KERNELS_TUNED, or tuned.json in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.environ.get("KERNELS_TUNED") or os.path.join(cache, "kernels", "tuned.json")


@lru_cache
def read_tuned(file: str) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Launches as dictionaries, by device's name, op and key; read once a process. Empty where there is no file."""
    try:
        return json.loads(Path(file).read_text())
    except FileNotFoundError:
        return {}
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: tuned launches cannot be read: {error}; delete it, or tune again") from error
