"""Ops that are right in ways that are not the usual ones: none may be refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kernels.lab import Inputs, Spec
from kernels.launch import jit, tl
from tests.kernels.lab import cheats
from tests.kernels.lab.cheats import double, double_kernel


@jit
def scale_kernel(scale):
    tl.store(scale, 2.0)


@jit
def scaled_kernel(x, scale, y, size, stride, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr):
    """Persistent: a few programs take one block after the other."""
    for start in range(tl.program_id(0) * BLOCK, size, PROGRAMS * BLOCK):
        index = start + tl.arange(0, BLOCK)
        value = tl.load(x + index, mask=index < size).to(tl.float32) * tl.load(scale)
        tl.store(y + index * stride, value.to(y.dtype.element_ty), mask=index < size)


@jit
def positive_kernel(x, at, size, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    tl.store(at + index, (tl.load(x + index, mask=index < size) > 0).to(tl.int32), mask=index < size)


def with_a_helper_into_strides(x: Tensor) -> Tensor:
    x, scale = x.contiguous(), torch.empty(1, device=x.device)
    y = torch.empty_strided(x.shape, (2,), dtype=x.dtype, device=x.device)
    scale_kernel[(1,)](scale)
    scaled_kernel[(2,)](x, scale, y, x.numel(), 2, 2, 8)
    return y


class KeepsAWorkspace:
    """Memory, and none of what was in it."""

    def __init__(self) -> None:
        self.workspace = torch.empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        if self.workspace.numel() < x.numel() or self.workspace.dtype != x.dtype:
            self.workspace = torch.empty(2 * x.numel(), dtype=x.dtype, device=x.device)
        double_kernel[(1,)](x, self.workspace, x.numel(), 4.0, 64)
        return double(self.workspace[: x.numel()], 0.5)


def in_place_on_a_copy(x: Tensor) -> Tensor:
    y = x.clone(memory_format=torch.contiguous_format)
    double_kernel[(1,)](y, y, y.numel(), 2.0, 64)
    return y


def finished_by_pytorch(x: Tensor) -> Tensor:
    return double(x, 1.5) + x / 2


def half_moved(x: Tensor) -> Tensor:
    """The first is doubled, the others pass as they are."""
    return torch.cat([double(x[:1]), x[1:]])


def half_moved_reference(x: Tensor) -> Tensor:
    return torch.cat([2 * x[:1], x[1:]])


def with_places(x: Tensor) -> tuple[Tensor, Tensor]:
    at = torch.empty(x.shape, dtype=torch.int32, device=x.device)
    positive_kernel[(1,)](x.contiguous(), at, x.numel(), 64)
    return double(x), at


def through(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Reference and op may be wrapped alike."""
    return lambda x: function(x)


class Second(torch.autograd.Function):
    """Keeps its output for the backward, and has no gradient of its second input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, unused: Tensor) -> Tensor:
        y = double(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return double(gradients[0]), None


def of_two(generator: torch.Generator, columns: int) -> Inputs:
    x, unused = torch.randn(2, columns, generator=generator, dtype=torch.float64)
    return Inputs({"x": x, "unused": unused}, gradients=("x", "unused"))


SPECS: dict[str, Callable[[], Spec]] = {
    "a helper, persistent, into strides": lambda: cheats.spec(with_a_helper_into_strides),
    "a workspace that is kept": lambda: cheats.spec(KeepsAWorkspace()),
    "in place on a copy": lambda: cheats.spec(in_place_on_a_copy),
    "finished by PyTorch": lambda: cheats.spec(finished_by_pytorch),
    "half is moved": lambda: replace(cheats.spec(half_moved), reference=half_moved_reference),
    "wrapped like its reference": lambda: cheats.spec(through(double), reference=through(cheats.double_reference)),
    "whole numbers": lambda: replace(
        cheats.spec(with_places), outputs=("y", "at"), reference=lambda x: (2 * x, (x > 0).int())
    ),
    "no gradient of an input": lambda: cheats.spec(
        lambda x, unused: Second.apply(x, unused), inputs=of_two, reference=lambda x, unused: 2 * x
    ),
}
