"""The squared ReLU (So et al. 2021, "Primer", section 4): a kernel file to start from, in the order that all have.

    y = max(x, 0)²

Gradient:

    dx = 2 · max(x, 0) · dy

The forward saves x. It moves 2 elements for each of x's; the backward moves 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kernels.launch import Launch, cdiv, chosen_once, custom_op, generation, jit, once_per_signature, require, tl

if TYPE_CHECKING:
    from kernels.lab import Spec


def squared_relu_reference(x: Tensor) -> Tensor:
    """x of any shape -> the same shape and dtype."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.relu(wide).square().to(x.dtype)


@jit
def squared_relu_forward_kernel(x, y, size, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + index, mask=index < size, other=0.0).to(tl.float32)
    positive = tl.maximum(value, 0.0)
    tl.store(y + index, (positive * positive).to(y.dtype.element_ty), mask=index < size)


@jit
def squared_relu_backward_kernel(dy, x, dx, size, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + index, mask=index < size, other=0.0).to(tl.float32)
    gradient = tl.load(dy + index, mask=index < size, other=0.0).to(tl.float32)
    result = 2 * tl.maximum(value, 0.0) * gradient
    tl.store(dx + index, result.to(dx.dtype.element_ty), mask=index < size)


@chosen_once
def squared_relu_launch(size: int, device: torch.device) -> tuple[Launch, tuple[int]]:
    """The launch and its grid. `generation` is 0 in the interpreter, where small tests should have several programs."""
    launch = Launch({"BLOCK": 32 if generation(device) == 0 else 2048}, num_warps=4)
    return launch, (cdiv(size, launch.blocks["BLOCK"]),)


@custom_op("my_kernels::squared_relu_forward")
def squared_relu_forward(x: Tensor) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    launch, grid = squared_relu_launch(x.numel(), x.device)
    squared_relu_forward_kernel[grid](x, y, x.numel(), **launch.options)
    return y


@custom_op("my_kernels::squared_relu_backward")
def squared_relu_backward(dy: Tensor, x: Tensor) -> Tensor:
    dy, x = dy.contiguous(), x.contiguous()
    dx = torch.empty_like(x)
    launch, grid = squared_relu_launch(x.numel(), x.device)
    squared_relu_backward_kernel[grid](dy, x, dx, x.numel(), **launch.options)
    return dx


# What torch.compile sees of the ops: results of the right shape, dtype and strides.
@squared_relu_forward.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@squared_relu_backward.register_fake
def _(dy: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def save_input(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def differentiate(ctx: Any, dy: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return squared_relu_backward(dy, x)


squared_relu_forward.register_autograd(differentiate, setup_context=save_input)


def squared_relu(x: Tensor) -> Tensor:
    """x of any shape and strides, float32, float16 or bfloat16 -> the same shape and dtype, contiguous."""
    check(x)
    return squared_relu_forward(x)


@once_per_signature
def check(x: Tensor) -> None:
    """Once for each dtype, shape, layout and device: a call should cost no more than its launch."""
    require("squared_relu", {"x": x})


def spec() -> Spec:
    """What the lab reads: `check` draws cases, `inputs` makes tensors of one, and the reference says what is right."""
    from hypothesis import strategies as st

    from kernels.lab import Inputs, Mutant, Spec, Work

    def inputs(generator: torch.Generator, rows: int, columns: int) -> Inputs:
        x = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        return Inputs({"x": x}, gradients=("x",))

    def work(element_size: int, rows: int, columns: int, **_: Any) -> tuple[Work, Work]:
        elements = rows * columns
        return Work(2 * elements * element_size, 2 * elements), Work(3 * elements * element_size, 3 * elements)

    return Spec(
        name="squared_relu",
        op=squared_relu,
        reference=squared_relu_reference,
        cases=st.fixed_dictionaries({"rows": st.integers(1, 5), "columns": st.integers(1, 70)}),
        inputs=inputs,
        builds=({"rows": 64, "columns": 4096},),
        benchmarks=({"rows": 8192, "columns": 4096},),
        work=work,
        mutants=(
            Mutant("store without mask", "(y.dtype.element_ty), mask=index < size)", "(y.dtype.element_ty))"),
            Mutant("half the gradient", "result = 2 * tl.maximum", "result = tl.maximum"),
        ),
    )
