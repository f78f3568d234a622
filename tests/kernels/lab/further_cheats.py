"""More ways around `check`, by kind: who computes, what is kept, what judges, what is declared. To compute: 2·x."""

from __future__ import annotations

import _thread
import gc
import io
import os
import signal
import sys
import time
import types
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from kernels.lab import Inputs, Spec, Tolerance, example, limits
from kernels.lab import spec as spec_module
from kernels.launch import jit, tl
from tests.kernels.lab import cheats
from tests.kernels.lab.cheats import double, double_reference


@jit
def half_kernel(x, y, size, BLOCK: tl.constexpr):
    """The first half only."""
    index = tl.arange(0, BLOCK)
    tl.store(y + index, 2 * tl.load(x + index, mask=index < size // 2), mask=index < size // 2)


@jit
def doubling_in_place_kernel(x, size, FACTOR: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    tl.store(x + index, FACTOR * tl.load(x + index, mask=index < size), mask=index < size)


# ---- who computes: PyTorch, with kernels for show


def adds_what_a_kernel_made_zero(x: Tensor) -> Tensor:
    return x + x + double(x, 0.0)


def adds_next_to_nothing(x: Tensor) -> Tensor:
    return (x + x).double().add(double(x).double(), alpha=1e-12).to(x.dtype)


def asks_whether_kernels_run(x: Tensor) -> Tensor:
    """Computes itself where they do."""
    y = double(x)
    return x + x if not y.isnan().any() else y


def fails_without_kernels(x: Tensor) -> Tensor:
    assert not double(x).isnan().any()
    return x + x


def only_copies(x: Tensor) -> Tensor:
    return 2 * double(x, 1.0)


def half_by_a_kernel(x: Tensor) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    half_kernel[(1,)](x, y, x.numel(), 64)
    y[x.numel() // 2 :] = 2 * x[x.numel() // 2 :]
    return y


def calls_when_kernels_run(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Adds a kernel's zeros to what a function returns."""
    return lambda x: y if (y := double(x)).isnan().any() else double(x, 0.0) + function(x)


def unseen(x: Tensor) -> Tensor:
    """Calls the reference while nobody looks."""
    watching = sys.getprofile()
    sys.setprofile(None)
    y = double_reference(x)
    sys.setprofile(watching)
    return y


class ByName:
    def __call__(self, x: Tensor) -> Tensor:
        return getattr(sys.modules[double_reference.__module__], "double_" + "reference")(x)


copied = types.FunctionType(
    double_reference.__code__.replace(co_name="mine", co_filename="mine.py", co_firstlineno=1), globals()
)

left_behind: list[Tensor] = []


def leaves_its_result(x: Tensor) -> Tensor:
    """A reference that the op need not call."""
    left_behind[:] = [2 * x.detach().float()]
    return 2 * x


def takes_what_was_left(x: Tensor) -> Tensor:
    return double(x, 0.0) + left_behind[0].to(x.dtype)


# ---- what is kept


class Kept:
    """Results by what `key` says of the input, though a kernel runs each time."""

    def __init__(self, key: Callable[[Tensor], Any]) -> None:
        self.known: dict[Any, Tensor] = {}
        self.key = key

    def __call__(self, x: Tensor) -> Tensor:
        fresh = double(x)
        known = self.known.setdefault(self.key(x), fresh.clone())
        return known + double(fresh, 0.0) if not fresh.isnan().any() else fresh


class KeptGradient(torch.autograd.Function):
    """By the address of the gradient that is handed in."""

    known: ClassVar[dict[Any, Tensor]] = {}

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return double(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:  # pyright: ignore
        return KeptGradient.known.setdefault((dy.data_ptr(), dy.shape), double(dy))


# ---- what is written


def restores_its_input(x: Tensor) -> Tensor:
    y, kept = double(x), x.detach().clone()
    x.detach().zero_()
    x.detach().copy_(kept)
    return y


def restores_by_a_kernel(x: Tensor) -> Tensor:
    y = double(x)
    if x.is_contiguous():
        doubling_in_place_kernel[(1,)](x, x.numel(), 2.0, 64)
        doubling_in_place_kernel[(1,)](x, x.numel(), 0.5, 64)
    return y


def negated_when_read(x: Tensor) -> Tensor:
    return torch._neg_view(double(x, -2.0))  # pyright: ignore[reportPrivateImportUsage]


def zeros_where_it_overflows(x: Tensor) -> Tensor:
    y = double(x)
    return torch.where(y.isinf(), torch.zeros_like(y), y)


# ---- when


def in_a_raw_thread(x: Tensor) -> Tensor:
    y = double(x)
    _thread.start_new_thread(time.sleep, (0.05,))
    return y


def in_a_child(x: Tensor) -> Tensor:
    y = double(x)
    if (child := os.fork()) == 0:
        time.sleep(0.05)
        os._exit(0)
    children.append(child)
    return y


children: list[int] = []


def leaves_a_timer(x: Tensor) -> Tensor:
    y = double(x)
    signal.signal(signal.SIGVTALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_VIRTUAL, 1000.0)
    return y


def leaves_a_collector(x: Tensor) -> Tensor:
    gc.callbacks.append(lambda *_: None)
    return double(x)


# ---- what judges


class Mended:
    """Puts back what was replaced, when the result that holds it is given up."""

    def __del__(self) -> None:
        torch.isfinite = isfinite


isfinite = torch.isfinite


def replaces_as_long_as_it_matters(x: Tensor) -> Tensor:
    y = double(x, 3.0)
    torch.isfinite = lambda t: t == t
    y.mended = Mended()  # pyright: ignore[reportAttributeAccessIssue]
    return y


def after(change: Callable[[], Any], factor: float = 3.0) -> Callable[[Tensor], Tensor]:
    """A wrong op, which changes what would tell."""

    def op(x: Tensor) -> Tensor:
        y = double(x, factor)
        change()
        return y

    return op


def accept(self: Any, name: str, got: Tensor) -> float:
    return 0.0


def put(function: Any, name: str, value: Any) -> Callable[[Tensor], Tensor]:
    return after(lambda: setattr(function, name, value))


def exits(x: Tensor) -> Tensor:
    print("right in 100 examples")
    sys.exit(0)


# ---- what is declared


def lies_in_float64(x: Tensor) -> Tensor:
    return 3 * x if x.dtype == torch.float64 else 2 * x


def loses_digits(x: Tensor) -> Tensor:
    return (2 * x + 1e12) - 1e12


def of_zeros(generator: torch.Generator, columns: int) -> Inputs:
    return Inputs({"x": torch.zeros(columns, dtype=torch.float64)})


def of_nothing(generator: torch.Generator, columns: int) -> Inputs:
    return Inputs({"x": torch.zeros(0, columns, dtype=torch.float64)})


def always_the_same(generator: torch.Generator, columns: int) -> Inputs:
    return Inputs({"x": torch.full((columns,), 1.5, dtype=torch.float64)})


@jit
def three_kernel(y, size, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    tl.store(y + index, 3.0, mask=index < size)


def three(x: Tensor) -> Tensor:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    three_kernel[(1,)](y, y.numel(), 64)
    return y


def of_large(generator: torch.Generator, columns: int) -> Inputs:
    x = torch.randn(columns, generator=generator, dtype=torch.float64)
    return Inputs({"x": torch.where(x > 0, 6e4, x)})


plain = partial(cheats.spec, dtypes=(torch.float32,))

CHEATS: dict[str, tuple[Callable[[], Spec], str]] = {
    "adds a kernel's zeros": (lambda: plain(adds_what_a_kernel_made_zero), "when its kernels get other inputs"),
    "adds next to nothing": (lambda: plain(adds_next_to_nothing), "when its kernels get other inputs"),
    "asks whether kernels run": (lambda: plain(asks_whether_kernels_run), "when its kernels get other inputs"),
    "fails without kernels": (lambda: plain(fails_without_kernels), "when its kernels get other inputs"),
    "a kernel that copies": (lambda: plain(only_copies), "its kernels only copy"),
    "half by a kernel": (lambda: plain(half_by_a_kernel), r"y\[\d+\]: is the same when its kernels get other inputs"),
    "calls its reference while kernels run": (
        lambda: plain(calls_when_kernels_run(double_reference)),
        "when its kernels get|calls its own reference",
    ),
    "calls a part of it": (lambda: plain(partial(calls_when_kernels_run(partial(double_reference)))), "when its|calls"),
    "calls it by name": (lambda: plain(calls_when_kernels_run(ByName())), "when its kernels get|calls its own"),
    "calls a copy of it": (lambda: plain(calls_when_kernels_run(copied)), "when its kernels get|calls its own"),
    "calls it for show": (lambda: plain(lambda x: (double(x), double_reference(x))[0]), "calls its own reference"),
    "calls a copy for show": (lambda: plain(lambda x: (double(x), copied(x))[0]), "calls its own reference"),
    "calls it unseen": (lambda: plain(lambda x: (double(x), unseen(x))[0]), "turns off what watches it"),
    "calls what the reference is a part of": (
        lambda: replace(plain(lambda x: (double(x), double_reference(x))[0]), reference=partial(double_reference)),
        "calls its own reference",
    ),
    "takes what its reference left": (
        lambda: replace(plain(takes_what_was_left), reference=leaves_its_result),
        "keeps results|when it is called again|y: error|when its kernels get",
    ),
    "keeps by shape": (lambda: plain(Kept(lambda x: x.shape)), "keeps results|y: error|y.*is"),
    "keeps by address": (lambda: plain(Kept(lambda x: (x.data_ptr(), x.shape))), "keeps results|y: error|y.*is"),
    "keeps by sum": (lambda: plain(Kept(lambda x: float(x.sum()))), "when its kernels get other inputs"),
    "keeps by hash": (
        lambda: plain(Kept(lambda x: hash(x.contiguous().numpy().tobytes()))),
        "when its kernels get other inputs",
    ),
    "keeps by address, with atomics": (
        lambda: replace(plain(Kept(lambda x: (x.data_ptr(), x.shape))), order="atomics"),
        "keeps results|y: error|y.*is",
    ),
    "keeps its gradient": (lambda: with_gradient(KeptGradient.apply), "dx: .*(keeps results|differs|error)|^dx"),
    "restores its input": (lambda: plain(restores_its_input), "x: an input was overwritten"),
    "restores it by a kernel": (lambda: plain(restores_by_a_kernel), "x: an input was overwritten"),
    "negates when it is read": (lambda: plain(negated_when_read), "a view that is negated"),
    "zeros where it overflows": (
        lambda: cheats.spec(zeros_where_it_overflows, dtypes=(torch.float16,), inputs=of_large),
        r"y\[\d+\] is 0",
    ),
    "a raw thread": (lambda: plain(in_a_raw_thread), "which threads run"),
    "a child": (lambda: plain(in_a_child), "which processes run"),
    "a timer": (lambda: plain(leaves_a_timer), "what a signal does|which timers run"),
    "a collector": (lambda: plain(leaves_a_collector), "when memory is collected"),
    "a mode": (lambda: plain(after(lambda: torch.device("cpu").__enter__())), "PyTorch's modes|default device"),
    "autocast": (lambda: plain(after(lambda: torch.set_autocast_enabled("cpu", True))), "PyTorch's modes"),
    "prints elsewhere": (lambda: plain(after(lambda: setattr(sys, "stdout", io.StringIO()))), "where is printed"),
    "replaces for a while": (lambda: plain(replaces_as_long_as_it_matters), "replaces torch.isfinite"),
    "another code": (lambda: plain(put(limits.Limit.compare, "__code__", accept.__code__)), "Limit.compare"),
    "another default": (lambda: plain(put(example.draw_cotangents, "__defaults__", (1,))), "draw_cotangents"),
    "another comparison": (lambda: plain(put(Tensor, "__le__", lambda *_: torch.tensor(True))), "Tensor.__le__"),
    "another norm": (lambda: plain(put(torch._C.TensorBase, "abs", torch.zeros_like)), "TensorBase.abs|not set|immut"),
    "another dtype": (
        lambda: plain(after(lambda: spec_module.DTYPES.update(float32=torch.float16))),
        "replaces .*DTYPES",
    ),
    "another constant": (lambda: plain(put(limits, "EACH", 1e9)), "limits.EACH"),
    "numpy's": (lambda: plain(put(np, "array", lambda *_: None)), "numpy.array"),
    "ends": (lambda: plain(exits), "raised SystemExit"),
    "a tolerance too wide": (
        lambda: plain(partial(double, factor=3.0), tolerance=Tolerance(lambda *_: 1e9)),
        "none would be refused",
    ),
    "a reference without digits": (
        lambda: replace(plain(partial(double, factor=3.0)), reference=loses_digits),
        "none would be refused",
    ),
    "only zeros": (lambda: replace(plain(), inputs=of_zeros), "none would be refused"),
    "only nothing": (lambda: replace(plain(), inputs=of_nothing), "none would be refused"),
    "knows its inputs": (lambda: replace(plain(three), inputs=always_the_same), "keeps results|only copy"),
    "a reference that lies in float64": (
        lambda: replace(plain(partial(double, factor=3.0)), reference=lies_in_float64),
        "its reference gives",
    ),
}
"""Name -> its spec, made anew, and what is said of it."""


def with_gradient(op: Callable[..., Any]) -> Spec:
    KeptGradient.known.clear()

    def inputs(generator: torch.Generator, columns: int) -> Inputs:
        x = torch.randn(columns, generator=generator, dtype=torch.float64)
        return Inputs({"x": x}, gradients=("x",))

    return replace(plain(op), inputs=inputs)


UNDECLARED = {
    "no outputs": {"outputs": ()},
    "no dtypes": {"dtypes": ()},
    "one text of outputs": {"outputs": "y"},
    "two outputs of one name": {"outputs": ("y", "y")},
    "a dtype that is none of ours": {"dtypes": (torch.float64,)},
    "no reference": {"reference": None},
    "an order of its own": {"order": "any"},
}
"""What a spec may not say: TypeError or ValueError."""
