"""The gated linear unit of Llama's MLP (Shazeer 2020, eq. 6), after its two matrix products.

    y = silu(a) · b,   silu(a) = a · σ(a),   a the gate, b the up projection

Gradient:

    da = dy · b · σ(a) · (1 + a·(1 - σ(a))),   db = dy · silu(a)

The forward saves a and b and recomputes σ(a). It moves 3 elements for each of y's; the backward moves 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.elementwise import as_rows, tile_of, tiles_launch
from kernels.launch import custom_op, jit, once_per_signature, require, tl

if TYPE_CHECKING:
    from kernels.lab import Spec


def swiglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    """gate and up of one shape -> that shape and dtype."""
    wide = gate.to(torch.promote_types(gate.dtype, torch.float32))
    return (wide * torch.sigmoid(wide) * up).to(gate.dtype)


@jit
def swiglu_forward_kernel(
    gate, up, y, gate_stride, up_stride, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    row, column, exists = tile_of(rows, columns, ROWS, COLUMNS)
    a = tl.load(gate + row * gate_stride + column, mask=exists).to(tl.float32)  # (ROWS, COLUMNS)
    b = tl.load(up + row * up_stride + column, mask=exists).to(tl.float32)
    tl.store(y + row * columns + column, a * tl.sigmoid(a) * b, mask=exists)


@jit
def swiglu_backward_kernel(
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


@custom_op("kernels::swiglu_forward")
def swiglu_forward(gate: Tensor, up: Tensor) -> Tensor:
    y = torch.empty_like(gate, memory_format=torch.contiguous_format)
    (gate, up), strides, size = as_rows(gate, up)
    launch, grid = tiles_launch("swiglu_forward", *size, gate.dtype, gate.device)
    swiglu_forward_kernel[grid](gate, up, y, *strides, *size, **launch.options)
    return y


@custom_op("kernels::swiglu_backward")
def swiglu_backward(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    dgate = torch.empty_like(gate, memory_format=torch.contiguous_format)
    dup = torch.empty_like(dgate)
    (dy, gate, up), strides, size = as_rows(dy, gate, up)
    launch, grid = tiles_launch("swiglu_backward", *size, gate.dtype, gate.device)
    swiglu_backward_kernel[grid](dy, gate, up, dgate, dup, *strides, *size, **launch.options)
    return dgate, dup


@swiglu_forward.register_fake
def _(gate: Tensor, up: Tensor) -> Tensor:
    return torch.empty_like(gate, memory_format=torch.contiguous_format)


@swiglu_backward.register_fake
def _(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    dgate = torch.empty_like(gate, memory_format=torch.contiguous_format)
    return dgate, torch.empty_like(dgate)


def save_inputs(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    return swiglu_backward(dy, *ctx.saved_tensors)


swiglu_forward.register_autograd(differentiate, setup_context=save_inputs)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """gate and up (..., N), of one shape and dtype (float32, float16 or bfloat16) -> y, the same, contiguous.

    The halves of one tensor, `x.chunk(2, dim=-1)`, are read where they lie. Gradients come contiguous. Errors:
    TypeError for dtypes, ValueError for shapes and devices.
    """
    check(gate, up)
    return swiglu_forward(gate, up)


@once_per_signature
def check(gate: Tensor, up: Tensor) -> None:
    require("swiglu", {"gate": gate, "up": up})
    if gate.shape != up.shape:
        raise ValueError(f"swiglu: gate is {tuple(gate.shape)} and up {tuple(up.shape)}; they must be of one shape")
    if gate.dtype != up.dtype:
        raise TypeError(f"swiglu: gate is {gate.dtype} and up {up.dtype}; they must be of one dtype")


def spec() -> Spec:
    from hypothesis import strategies as st

    from kernels.lab import Inputs, Mutant, Spec, Work

    def inputs(generator: torch.Generator, rows: int, columns: int, scale: float = 1.0, halves: bool = False) -> Inputs:
        both = torch.randn(rows, 2 * columns, generator=generator, dtype=torch.float64)
        gate, up = both.chunk(2, dim=-1)
        tensors = {"gate": scale * gate, "up": up.contiguous()}
        return Inputs({"gate": gate, "up": up} if halves else tensors, gradients=("gate", "up"))

    def work(element_size: int, rows: int, columns: int, **_: object) -> tuple[Work, Work]:
        n = rows * columns
        return Work(3 * n * element_size, 6 * n), Work(5 * n * element_size, 12 * n)

    def peers() -> dict[str, Any]:
        torch_own = {"torch": lambda gate, up: F.silu(gate) * up}
        try:
            from liger_kernel.ops.swiglu import LigerSiLUMulFunction  # pyright: ignore[reportMissingImports]
        except ImportError:
            return torch_own
        return {**torch_own, "liger": lambda gate, up: LigerSiLUMulFunction.apply(gate, up)}

    return Spec(
        name="swiglu",
        op=swiglu,
        reference=swiglu_reference,
        cases=st.fixed_dictionaries(
            {"rows": st.integers(0, 5), "columns": st.integers(1, 150), "scale": st.sampled_from((1.0, 30.0))}
        ),
        inputs=inputs,
        builds=(
            {"rows": 64, "columns": 11008},
            {"rows": 64, "columns": 11008, "halves": True},
            {"rows": 64, "columns": 11008, "dtype": "float32"},
            {"rows": 3, "columns": 1001},
        ),
        benchmarks=tuple({"rows": 8192, "columns": n, "halves": h} for n in (3072, 14336) for h in (False, True)),
        work=work,
        peers=peers,
        mutants=(
            Mutant("no factor a in silu", "a * tl.sigmoid(a) * b", "tl.sigmoid(a) * b"),
            Mutant(
                "up read with the gate's stride",
                "(gate, up, y, *strides",
                "(gate, up, y, strides[0], strides[0]",
            ),
            Mutant("dy read as if contiguous", "dy + row * dy_stride", "dy + row * columns"),
            Mutant("strides exchanged", "dup, *strides", "dup, strides[1], strides[0], strides[2]"),
            Mutant("wrong sign in dgate", "1 + a * (1 - sigma)", "1 - a * (1 - sigma)"),
            Mutant("dgate without a", "1 + a * (1 - sigma)", "1 + (1 - sigma)"),
            Mutant("dup without a", "g * a * sigma", "g * sigma"),
            Mutant("dup stored without its mask", "g * a * sigma, mask=exists", "g * a * sigma"),
            Mutant("dgate taken for dup", "return dgate, dup", "return dup, dgate"),
        ),
    )
