"""The Gaussian error linear unit (Hendrycks & Gimpel 2016, section 2), exact or in the tanh form of GPT-2.

    y = x · P,   P = Φ(x) = (1 + erf(x/√2))/2,   or its approximation

    P = (1 + tanh u)/2 = σ(2u),   u = sqrt(2/π) · (x + 0.044715·x³)

Gradient:

    dx = dy · (P + x · P'),   P' = exp(-x²/2)/√(2π),   or   σ(2u) · (1 - σ(2u)) · 2·sqrt(2/π) · (1 + 3·0.044715·x²)

The forward saves x. It moves 2 elements for each of x's; the backward moves 3. The kernels use the logistic form: for
x far below zero, 1 + tanh u is a difference of numbers near 1, which σ(2u) is not, and it needs no tanh.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.elementwise import as_rows, tile_of, tiles_launch
from kernels.launch import custom_op, jit, once_per_signature, require, tl

if TYPE_CHECKING:
    from kernels.lab import Spec

FORMS = ("tanh", "none")


def gelu_reference(x: Tensor, approximate: str = "tanh") -> Tensor:
    """x of any shape -> the same shape and dtype; `approximate` is "tanh" or, for the exact form, "none"."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if approximate == "none":
        return (0.5 * wide * (1 + torch.erf(wide / math.sqrt(2)))).to(x.dtype)
    inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
    return (0.5 * wide * (1 + torch.tanh(inner))).to(x.dtype)


@jit
def _logit(x):
    """2u"""
    return 1.5957691216057308 * (x + 0.044715 * x * x * x)  # 2·sqrt(2/π)


@jit
def _probability(x, TANH: tl.constexpr):
    """P: how much of x passes."""
    if TANH:
        return tl.sigmoid(_logit(x))
    else:
        return 0.5 + 0.5 * tl.math.erf(x * 0.7071067811865476)  # 1/√2


@jit
def _density(x, p, TANH: tl.constexpr):
    """P', given P."""
    if TANH:
        rest = tl.sigmoid(-_logit(x))  # 1 - p would keep few of its digits where p is near 1
        return p * rest * 1.5957691216057308 * (1 + 0.134145 * x * x)  # 3·0.044715
    else:
        return tl.exp(-0.5 * x * x) * 0.3989422804014327  # 1/√(2π)


@jit
def gelu_forward_kernel(x, y, x_stride, rows, columns, TANH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, column, exists = tile_of(rows, columns, ROWS, COLUMNS)
    value = tl.load(x + row * x_stride + column, mask=exists).to(tl.float32)  # (ROWS, COLUMNS)
    tl.store(y + row * columns + column, value * _probability(value, TANH), mask=exists)


@jit
def gelu_backward_kernel(
    dy, x, dx, dy_stride, x_stride, rows, columns, TANH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    row, column, exists = tile_of(rows, columns, ROWS, COLUMNS)
    g = tl.load(dy + row * dy_stride + column, mask=exists).to(tl.float32)  # (ROWS, COLUMNS)
    value = tl.load(x + row * x_stride + column, mask=exists).to(tl.float32)
    p = _probability(value, TANH)
    tl.store(dx + row * columns + column, g * (p + value * _density(value, p, TANH)), mask=exists)


@custom_op("kernels::gelu_forward")
def gelu_forward(x: Tensor, approximate: str) -> Tensor:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    (x,), strides, size = as_rows(x)
    launch, grid = tiles_launch("gelu_forward", *size, x.dtype, x.device)
    gelu_forward_kernel[grid](x, y, *strides, *size, approximate == "tanh", **launch.options)
    return y


@custom_op("kernels::gelu_backward")
def gelu_backward(dy: Tensor, x: Tensor, approximate: str) -> Tensor:
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    (dy, x), strides, size = as_rows(dy, x)
    launch, grid = tiles_launch("gelu_backward", *size, x.dtype, x.device)
    gelu_backward_kernel[grid](dy, x, dx, *strides, *size, approximate == "tanh", **launch.options)
    return dx


@gelu_forward.register_fake
def _(x: Tensor, approximate: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@gelu_backward.register_fake
def _(dy: Tensor, x: Tensor, approximate: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def save_inputs(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
    x, ctx.approximate = inputs
    ctx.save_for_backward(x)


def differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
    return gelu_backward(dy, *ctx.saved_tensors, ctx.approximate), None


gelu_forward.register_autograd(differentiate, setup_context=save_inputs)


def gelu(x: Tensor, approximate: str = "tanh") -> Tensor:
    """x (..., N), float32, float16 or bfloat16 -> y, of that shape and dtype, contiguous.

    `approximate`: "tanh", or "none" for the exact form. Errors: TypeError for a dtype, ValueError for a device or an
    unknown form.
    """
    check(x, approximate)
    return gelu_forward(x, approximate)


@once_per_signature
def check(x: Tensor, approximate: str) -> None:
    require("gelu", {"x": x})
    if approximate not in FORMS:
        raise ValueError(f'gelu: approximate is "{approximate}"; it must be "tanh" or "none"')


def spec() -> Spec:
    from hypothesis import strategies as st

    from kernels.lab import Inputs, Mutant, Spec, Work

    def inputs(generator: torch.Generator, rows: int, columns: int, approximate: str, scale: float = 1.0) -> Inputs:
        x = scale * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        return Inputs({"x": x}, {"approximate": approximate}, gradients=("x",))

    def work(element_size: int, rows: int, columns: int, **_: object) -> tuple[Work, Work]:
        n = rows * columns
        return Work(2 * n * element_size, 10 * n), Work(3 * n * element_size, 18 * n)

    return Spec(
        name="gelu",
        op=gelu,
        reference=gelu_reference,
        cases=st.fixed_dictionaries(
            {
                "rows": st.integers(0, 5),
                "columns": st.integers(1, 150),
                "approximate": st.sampled_from(FORMS),
                "scale": st.sampled_from((0.1, 1.0, 30.0)),
            }
        ),
        inputs=inputs,
        builds=(
            *({"rows": 64, "columns": 4096, "approximate": form} for form in FORMS),
            {"rows": 64, "columns": 4096, "approximate": "tanh", "dtype": "float32"},
            {"rows": 3, "columns": 1001, "approximate": "tanh"},
        ),
        benchmarks=tuple({"rows": 8192, "columns": n, "approximate": form} for n in (3072, 16384) for form in FORMS),
        work=work,
        peers=lambda: {"torch": lambda x, approximate: F.gelu(x, approximate=approximate)},
        mutants=(
            Mutant("square for cube", "0.044715 * x * x * x", "0.044715 * x * x"),
            Mutant("erf of x", "x * 0.7071067811865476", "x"),
            Mutant("derivative of the cube without its 3", "0.134145 * x * x", "0.044715 * x * x"),
            Mutant("derivative of tanh for that of the logistic", "p * rest", "(1 - p * p)"),
            Mutant("density without its half", "tl.exp(-0.5 * x * x)", "tl.exp(-x * x)"),
            Mutant("x missing before the density", "p + value * _density", "p + _density"),
            Mutant("dy read as if contiguous", "dy + row * dy_stride", "dy + row * columns"),
            Mutant("y stored without its mask", "_probability(value, TANH), mask=exists", "_probability(value, TANH)"),
            Mutant(
                "one form for both", '(x, y, *strides, *size, approximate == "tanh"', "(x, y, *strides, *size, True"
            ),
        ),
    )
