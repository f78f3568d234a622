"""Ops that look right and are not what they say: each is a way around `check`, which must be seen. All compute 2·x."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from kernels.lab import Inputs, Spec
from kernels.launch import jit, tl


def double_reference(x: Tensor) -> Tensor:
    return 2 * x


@jit
def double_kernel(x, y, size, FACTOR: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    for start in range(0, size, BLOCK):
        value = tl.load(x + start + index, mask=start + index < size)
        tl.store(y + start + index, (FACTOR * value).to(y.dtype.element_ty), mask=start + index < size)


@jit
def idle_kernel(x, BLOCK: tl.constexpr):
    tl.load(x + tl.arange(0, BLOCK))


def double(x: Tensor, factor: float = 2.0) -> Tensor:
    """Honest."""
    x = x.contiguous()
    y = torch.empty_like(x)
    double_kernel[(1,)](x, y, x.numel(), factor, 64)
    return y


def without_a_kernel(x: Tensor) -> Tensor:
    return x + x


def by_its_reference(x: Tensor) -> Tensor:
    double(x)
    return double_reference(x)


def beside_an_idle_kernel(x: Tensor) -> Tensor:
    idle_kernel[(1,)](x.contiguous(), 1)
    return x + x


class Caches:
    """By value: the same numbers are not computed again."""

    def __init__(self) -> None:
        self.known: dict[bytes, Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        key = x.contiguous().view(torch.uint8).numpy().tobytes()
        if key not in self.known:
            self.known[key] = double(x)
        return self.known[key].clone()


class CachesByAddress(Caches):
    """By where its input lies, keeping up appearances with a launch."""

    def __call__(self, x: Tensor) -> Tensor:
        key = (x.data_ptr(), tuple(x.shape), tuple(x.stride()), x.dtype)
        fresh = double(x)
        return self.known.setdefault(key, fresh).clone()  # pyright: ignore


class Reuses:
    """One buffer for all calls."""

    def __init__(self) -> None:
        self.buffer = torch.empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        y = double(x)
        if self.buffer.shape != y.shape or self.buffer.dtype != y.dtype:
            self.buffer = y
        return self.buffer.copy_(y)


def a_view(x: Tensor) -> Tensor:
    double(x)
    return x


class Lazy(Tensor):
    """Computed when it is looked at."""


def lazily(x: Tensor) -> Tensor:
    return double(x).as_subclass(Lazy)


class Promised:
    """Has a tensor once it is asked."""

    def __init__(self, x: Tensor):
        self.x = x

    def __getattr__(self, name: str) -> Any:
        return getattr(double(self.x), name)


class LazyGradient(torch.autograd.Function):
    """Honest forward; the gradient is computed when it is looked at."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return double(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:  # pyright: ignore
        return double(dy).as_subclass(Lazy)


def in_a_thread(x: Tensor) -> Tensor:
    """Returns at once; the numbers come later."""
    x = x.contiguous()
    y = torch.empty_like(x)

    def later() -> None:
        time.sleep(0.2)
        with torch.no_grad():
            y.copy_(2 * x)

    double(x)
    threading.Thread(target=later, daemon=True).start()
    return y


stream = 0
"""What stands for CUDA's current stream, see the test."""


def elsewhere(x: Tensor) -> Tensor:
    """Its kernel is queued on another stream, which a timer on this one does not wait for."""
    global stream
    stream = 7
    y = double(x)
    stream = 0
    return y


def leaves_for_elsewhere(x: Tensor) -> Tensor:
    global stream
    y = double(x)
    stream = 7
    return y


def zeroing_beside(x: Tensor) -> Tensor:
    """Writes what lies behind its input's end."""
    y = double(x)
    if x.is_contiguous() and x.untyped_storage().nbytes() > (x.storage_offset() + x.numel()) * x.element_size():
        x.detach().as_strided((x.numel() + 1,), (1,))[-1] = 0
    return y


def for_small_sizes_only(x: Tensor) -> Tensor:
    return double(x, 2.0 if x.numel() < 1000 else 3.0)


class Tires:
    """Right twice, then no more."""

    def __init__(self, calls: int = 2) -> None:
        self.left: dict[int, int] = {}
        self.calls = calls
        self.kept: list[Tensor] = []  # so that no other input comes to lie where one was

    def __call__(self, x: Tensor) -> Tensor:
        self.kept.append(x.detach())
        self.left[x.data_ptr()] = self.left.get(x.data_ptr(), self.calls) - 1
        return double(x, 2.0 if self.left[x.data_ptr()] >= 0 else 3.0)


def setting(change: Callable[[], Any]) -> Callable[[Tensor], Tensor]:
    def op(x: Tensor) -> Tensor:
        y = double(x)
        change()
        return y

    return op


def patching(target: Any, name: str, value: Any) -> Callable[[Tensor], Tensor]:
    return setting(lambda: setattr(target, name, value))


def zeros_where_tiny(x: Tensor) -> Tensor:
    y = double(x)
    return double(torch.where(x.abs() < 1e-6, torch.zeros_like(x), x)) if y.numel() else y


def overwriting(x: Tensor) -> Tensor:
    y = double(x)
    x.detach().zero_()
    return y


def spec(op: Callable[..., Any] = double, **changes: Any) -> Spec:
    is_differentiable = op == LazyGradient.apply

    def inputs(generator: torch.Generator, columns: int) -> Inputs:
        x = torch.randn(columns, generator=generator, dtype=torch.float64)
        x[::3] *= 1e-7
        return Inputs({"x": x}, gradients=("x",) if is_differentiable else ())

    return Spec(
        name="double",
        op=op,
        cases=st.fixed_dictionaries({"columns": st.integers(2, 40)}),
        builds=({"columns": 4096},),
        **{"reference": double_reference, "inputs": inputs, **changes},
    )


CHEATS: dict[str, tuple[Callable[[], Callable[..., Any]], str]] = {
    "launches no kernel": (lambda: without_a_kernel, "launches no kernel"),
    "calls its reference": (lambda: by_its_reference, "calls its own reference"),
    "launches a kernel for show": (lambda: beside_an_idle_kernel, "when its kernels are left out"),
    "caches by value": (Caches, "it keeps results"),
    "caches by address": (CachesByAddress, "it keeps results of earlier calls|when its kernels are left out"),
    "returns one buffer": (Reuses, "was overwritten by a later call"),
    "returns its input": (lambda: a_view, "lies in the memory of the input x"),
    "computes lazily": (lambda: lazily, "is of type Lazy"),
    "promises": (lambda: Promised, "is of type Promised"),
    "computes its gradient lazily": (lambda: LazyGradient.apply, "dx: is of type Lazy"),
    "computes in a thread": (lambda: in_a_thread, "it changes which threads run"),
    "launches on another stream": (lambda: elsewhere, "launches double_kernel on another stream"),
    "changes the stream": (lambda: leaves_for_elsewhere, "PyTorch's current stream"),
    "writes beside its input": (lambda: zeroing_beside, "x: an input was overwritten, or memory beside it"),
    "right twice": (Tires, "differs when it is called again"),
    "right four times": (lambda: Tires(4), "differs when|keeps results"),
    "writes its input": (lambda: overwriting, "x: an input was overwritten"),
    "zeros where it is tiny": (lambda: zeros_where_tiny, "y: error"),
    "sets the default dtype": (lambda: setting(lambda: torch.set_default_dtype(torch.float64)), "default dtype"),
    "seeds PyTorch": (lambda: setting(lambda: torch.manual_seed(random.getrandbits(30))), "random state"),
    "draws random numbers": (lambda: setting(random.random), "Python's random state"),
    "sets a variable": (lambda: setting(lambda: os.environ.update(CHEAT=str(len(os.environ)))), "the environment"),
    "turns gradients off": (lambda: setting(lambda: torch.set_grad_enabled(False)), "whether gradients are recorded"),
    "patches isfinite": (lambda: patching(torch, "isfinite", lambda t: t == t), "replaces torch.isfinite"),
    "patches a method": (lambda: patching(Tensor, "norm", lambda *_: torch.zeros(())), "replaces Tensor.norm"),
    "patches allclose": (lambda: patching(torch, "allclose", lambda *_, **__: True), "replaces torch.allclose"),
    "patches the clock": (lambda: patching(time, "perf_counter", lambda: 0.0), "replaces time.perf_counter"),
    "patches an event": (
        lambda: patching(torch.cuda.Event, "elapsed_time", lambda *_: 1e-3),
        "replaces Event.elapsed_time",
    ),
    "patches synchronize": (lambda: patching(torch.cuda, "synchronize", lambda *_: None), "torch.cuda.synchronize"),
}
"""Name -> the op, made anew, and what is said of it: one of two things where that depends on which memory calls get."""
