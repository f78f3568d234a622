"""The gated linear unit of Llama's MLP (Shazeer 2020, eq. 6), after its two matrix products.

    y = silu(a) · b,   silu(a) = a · σ(a),   a the gate, b the up projection

Gradient:

    da = dy · b · σ(a) · (1 + a·(1 - σ(a))),   db = dy · silu(a)

The forward saves a and b and recomputes σ(a). It moves 3 elements for each of y's; the backward moves 5.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.elementwise import as_rows, tile_of, tiles_launch
from kernels.launch import generation, jit, require, tl


def swiglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    """gate and up of one shape -> that shape and dtype."""
    wide = gate.to(torch.promote_types(gate.dtype, torch.float32))
    return (wide * torch.sigmoid(wide) * up).to(gate.dtype)


@jit
def _forward(gate, up, y, gate_stride, up_stride, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, column, exists = tile_of(rows, columns, ROWS, COLUMNS)
    a = tl.load(gate + row * gate_stride + column, mask=exists).to(tl.float32)  # (ROWS, COLUMNS)
    b = tl.load(up + row * up_stride + column, mask=exists).to(tl.float32)
    tl.store(y + row * columns + column, a * tl.sigmoid(a) * b, mask=exists)


@jit
def _backward(
    dy, gate, up, dgate, dup, dy_stride, gate_stride, up_stride, rows, columns,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, column, exists = tile_of(rows, columns, ROWS, COLUMNS)
    g = tl.load(dy + row * dy_stride + column, mask=exists).to(tl.float32)  # (ROWS, COLUMNS)
    a = tl.load(gate + row * gate_stride + column, mask=exists).to(tl.float32)
    b = tl.load(up + row * up_stride + column, mask=exists).to(tl.float32)
    sigma = tl.sigmoid(a)
    tl.store(dgate + row * columns + column, g * b * sigma * (1 + a * (1 - sigma)), mask=exists)
    tl.store(dup + row * columns + column, g * a * sigma, mask=exists)


@torch.library.custom_op("kernels::swiglu", mutates_args=())
def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    y = torch.empty_like(gate, memory_format=torch.contiguous_format)
    gate, up = as_rows(gate, up)
    launch, grid = tiles_launch("swiglu", gate, generation(gate.device))
    _forward[grid](gate, up, y, gate.stride(0), up.stride(0), *gate.shape, **launch.options)
    return y


@torch.library.custom_op("kernels::swiglu_backward", mutates_args=())
def _swiglu_backward(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    dgate = torch.empty_like(gate, memory_format=torch.contiguous_format)
    dup = torch.empty_like(dgate)
    dy, gate, up = as_rows(dy, gate, up)
    launch, grid = tiles_launch("swiglu_backward", gate, generation(gate.device))
    strides = dy.stride(0), gate.stride(0), up.stride(0)
    _backward[grid](dy, gate, up, dgate, dup, *strides, *gate.shape, **launch.options)
    return dgate, dup


@_swiglu.register_fake
def _(gate: Tensor, up: Tensor) -> Tensor:
    return torch.empty_like(gate, memory_format=torch.contiguous_format)


@_swiglu_backward.register_fake
def _(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    dgate = torch.empty_like(gate, memory_format=torch.contiguous_format)
    return dgate, torch.empty_like(dgate)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    return _swiglu_backward(dy, *ctx.saved_tensors)


_swiglu.register_autograd(_differentiate, setup_context=_save)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """gate and up (..., N), of one shape and dtype (float32, float16 or bfloat16) -> y, the same, contiguous.

    The halves of one tensor, `x.chunk(2, dim=-1)`, are read where they lie. Gradients come contiguous. Errors: TypeError
    for dtypes, ValueError for shapes and devices.
    """
    require("swiglu", {"gate": gate, "up": up})
    if gate.shape != up.shape:
        raise ValueError(f"swiglu: gate is {tuple(gate.shape)} and up {tuple(up.shape)}; they must be of one shape")
    if gate.dtype != up.dtype:
        raise TypeError(f"swiglu: gate is {gate.dtype} and up {up.dtype}; they must be of one dtype")
    return _swiglu(gate, up)
