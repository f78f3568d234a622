"""A kernel for the lab's tests: y = 2·x + bias, the bias shared by all rows."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from kernels.lab import Inputs, Mutant, Spec
from kernels.launch import jit, tl


def toy_reference(x: Tensor, bias: Tensor) -> Tensor:
    return 2 * x + bias


@jit
def forward_kernel(x, bias, y, stride, columns, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = column < columns
    value = 2 * tl.load(x + row * stride + column, mask=inside)
    tl.store(y + row * columns + column, value + tl.load(bias + column, mask=inside), mask=inside)


@torch.library.custom_op("lab_tests::toy", mutates_args=())
def toy_op(x: Tensor, bias: Tensor) -> Tensor:
    x = x if x.stride(-1) == 1 else x.contiguous()
    bias = bias.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    forward_kernel[(x.size(0),)](x, bias, y, x.stride(0), x.size(1), 16)
    return y


@toy_op.register_fake
def _(x: Tensor, bias: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    return 2 * dy, dy.sum(0)


toy_op.register_autograd(differentiate)


def toy(x: Tensor, bias: Tensor) -> Tensor:
    return toy_op(x, bias)


def spec() -> Spec:
    def inputs(generator: torch.Generator, rows: int, columns: int) -> Inputs:
        x = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        return Inputs({"x": x, "bias": x[0].clone()}, gradients=("x", "bias"))

    return Spec(
        name="toy",
        op=toy,
        reference=toy_reference,
        cases=st.fixed_dictionaries({"rows": st.integers(1, 4), "columns": st.integers(1, 16)}),
        inputs=inputs,
        mutants=(
            Mutant("bias forgotten", "value + tl.load(bias + column, mask=inside)", "value"),
            Mutant("no bug at all", "value = 2 * tl.load", "value = 2.0 * tl.load"),
        ),
    )
