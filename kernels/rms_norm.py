"""Root-mean-square normalisation (Zhang & Sennrich 2019, eq. 4), alone and with the residual addition before it.

    y_i = x_i · r · w_i,   r = 1 / sqrt(mean_j x_j² + ε)

Gradient, with x̂ = x·r and g = dy·w:

    dx = r · (g - x̂ · mean_j(g_j·x̂_j)),   dw = Σ_rows dy·x̂

The forward saves x and r (one float32 a row). It moves 2·N elements a row; the backward moves 3·N.

`add_rms_norm` normalises s = x + residual and returns s too, the residual stream of the next block. It moves 4·N
elements a row where an addition and a norm would move 5·N. Gradient: ds' = ds + (dx above, at s) for both of them.

A row that fits a block is read once. A longer one is read twice: for its mean, then to be scaled; the second reading of
the forward finds it in the cache. The backward of long rows cuts them into columns, so that each program can sum its
part of dw in registers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kernels.launch import cdiv, custom_op, jit, tl
from kernels.rows import norm_backward_launch, norm_forward_launch, require_rows, results_like, rows_of

if TYPE_CHECKING:
    from kernels.lab.spec import Spec


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., N), weight (N,) -> the shape and dtype of x."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    rms = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)  # (..., 1)
    return (wide * rms * weight).to(x.dtype)


def add_rms_norm_reference(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x and residual (..., N), weight (N,) -> the norm of x + residual, and x + residual."""
    total = x + residual
    return rms_norm_reference(total, weight, eps), total


@jit
def rms_norm_forward_kernel(
    x, residual, weight, y, total, r, rows, N, eps, stride_x, stride_residual, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """ROWS rows that fit a block. `residual` and `total` are None where nothing is added."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS).to(tl.int64)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < N)
    value = tl.load(x + row * stride_x + column, inside, 0.0).to(tl.float32)
    if residual is not None:
        value += tl.load(residual + row * stride_residual + column, inside, 0.0).to(tl.float32)
        rounded = value.to(total.dtype.element_ty)  # the backward sees no more of the sum than this
        tl.store(total + row * N + column, rounded, inside)
        value = rounded.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value, 1)[:, None] / N + eps)
    tl.store(r + row, inverse, row < rows)
    w = tl.load(weight + column, column < N, 0.0).to(tl.float32)
    tl.store(y + row * N + column, value * inverse * w, inside)


@jit
def rms_norm_long_forward_kernel(
    x, residual, weight, y, total, r, N, eps, stride_x, stride_residual, BLOCK: tl.constexpr
):
    """One row in blocks, read twice. The sum is added again, not read back: threads do not see each other's stores."""
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, N, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * stride_x + column, column < N, 0.0).to(tl.float32)
        if residual is not None:
            value += tl.load(residual + row * stride_residual + column, column < N, 0.0).to(tl.float32)
            value = value.to(total.dtype.element_ty).to(tl.float32)
        squares += value * value
    inverse = tl.rsqrt(tl.sum(squares, 0) / N + eps)
    tl.store(r + row, inverse)
    for start in range(0, N, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * stride_x + column, column < N, 0.0).to(tl.float32)
        if residual is not None:
            value += tl.load(residual + row * stride_residual + column, column < N, 0.0).to(tl.float32)
            rounded = value.to(total.dtype.element_ty)
            tl.store(total + row * N + column, rounded, column < N)
            value = rounded.to(tl.float32)
        w = tl.load(weight + column, column < N, 0.0).to(tl.float32)
        tl.store(y + row * N + column, value * inverse * w, column < N)


@jit
def rms_norm_backward_kernel(
    dy, x, weight, r, dtotal, dx, partials, rows, N, stride_dy, stride_x, stride_dtotal,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Every num_programs-th tile of ROWS rows; the sum of their dy·x̂ is this program's row of `partials`."""
    column = tl.arange(0, BLOCK)[None, :]
    w = tl.load(weight + column, column < N, 0.0).to(tl.float32)
    dw = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=STAGES):
        row = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)[:, None]
        inside = (row < rows) & (column < N)
        inverse = tl.load(r + row, row < rows, 0.0)
        normed = tl.load(x + row * stride_x + column, inside, 0.0).to(tl.float32) * inverse
        grad = tl.load(dy + row * stride_dy + column, inside, 0.0).to(tl.float32)
        dw += grad * normed
        grad *= w
        mean = tl.sum(grad * normed, 1)[:, None] / N
        result = inverse * (grad - normed * mean)
        if dtotal is not None:
            result += tl.load(dtotal + row * stride_dtotal + column, inside, 0.0).to(tl.float32)
        tl.store(dx + row * N + column, result, inside)
    tl.store(partials + tl.program_id(0).to(tl.int64) * N + column, tl.sum(dw, 0)[None, :], column < N)


@jit
def rms_norm_long_mean_kernel(dy, x, weight, r, means, N, stride_dy, stride_x, BLOCK: tl.constexpr):
    """mean_j(g_j·x̂_j) of one row, in blocks."""
    row = tl.program_id(0).to(tl.int64)
    inverse = tl.load(r + row)
    products = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, N, BLOCK):
        column = start + tl.arange(0, BLOCK)
        normed = tl.load(x + row * stride_x + column, column < N, 0.0).to(tl.float32) * inverse
        grad = tl.load(dy + row * stride_dy + column, column < N, 0.0).to(tl.float32)
        products += grad * normed * tl.load(weight + column, column < N, 0.0).to(tl.float32)
    tl.store(means + row, tl.sum(products, 0) / N)


@jit
def rms_norm_long_backward_kernel(
    dy, x, weight, r, means, dtotal, dx, partials, rows, N, stride_dy, stride_x, stride_dtotal, BLOCK: tl.constexpr
):
    """Columns program_id(0) of every num_programs(1)-th row, whose dy·x̂ is summed in `partials`."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < N
    w = tl.load(weight + column, inside, 0.0).to(tl.float32)
    dw = tl.zeros((BLOCK,), tl.float32)
    for index in range(tl.program_id(1), rows, tl.num_programs(1)):
        row = tl.cast(index, tl.int64)
        inverse, mean = tl.load(r + row), tl.load(means + row)
        normed = tl.load(x + row * stride_x + column, inside, 0.0).to(tl.float32) * inverse
        grad = tl.load(dy + row * stride_dy + column, inside, 0.0).to(tl.float32)
        dw += grad * normed
        result = inverse * (grad * w - normed * mean)
        if dtotal is not None:
            result += tl.load(dtotal + row * stride_dtotal + column, inside, 0.0).to(tl.float32)
        tl.store(dx + row * N + column, result, inside)
    tl.store(partials + tl.program_id(1).to(tl.int64) * N + column, dw, inside)


@custom_op("kernels::rms_norm_forward")
def rms_norm_forward(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """y, the sum (empty without a residual) and r."""
    rows, added = rows_of(x), None if residual is None else rows_of(residual)  # (R, N)
    R, N = rows.shape
    y, total = results_like(x, residual)
    r = x.new_empty(R, dtype=torch.float32)
    operands = (rows, added, weight.contiguous(), y, None if residual is None else total, r)
    strides = (rows.stride(0), 0 if added is None else added.stride(0))
    launch, grid, fits = norm_forward_launch(R, N, x.device)
    if fits:
        rms_norm_forward_kernel[grid](*operands, R, N, eps, *strides, **launch.options)
    else:
        rms_norm_long_forward_kernel[grid](*operands, N, eps, *strides, **launch.options)
    return y, total, r


@custom_op("kernels::rms_norm_backward")
def rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, r: Tensor, dtotal: Tensor | None) -> tuple[Tensor, Tensor]:
    """dx and dw; `dtotal` is added to dx."""
    rows, grads, added = rows_of(x), rows_of(dy), None if dtotal is None else rows_of(dtotal)
    R, N = rows.shape
    strides = (grads.stride(0), rows.stride(0), 0 if added is None else added.stride(0))
    loaded = 2 if added is None else 3
    launch, programs, fits = norm_backward_launch(R, N, x.dtype, weight.dtype, loaded, x.device)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    partials = x.new_empty((programs, N), dtype=torch.float32)
    saved, outputs = (grads, rows, weight.contiguous(), r), (added, dx, partials, R, N)
    if fits:
        rms_norm_backward_kernel[(programs,)](*saved, *outputs, *strides, **launch.options)
    else:
        means = torch.empty_like(r)
        rms_norm_long_mean_kernel[(R,)](*saved, means, N, *strides[:2], **launch.options)
        grid = (cdiv(N, launch.blocks["BLOCK"]), programs)
        rms_norm_long_backward_kernel[grid](*saved, means, *outputs, *strides, **launch.options)
    return dx, partials.sum(0).to(weight.dtype)


@rms_norm_forward.register_fake
def _(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return *results_like(x, residual), x.new_empty(x.shape[:-1].numel(), dtype=torch.float32)


@rms_norm_backward.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, r: Tensor, dtotal: Tensor | None) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, residual, weight, _ = inputs
    _, total, r = output
    ctx.save_for_backward(x if residual is None else total, weight, r)
    ctx.dtypes = x.dtype, None if residual is None else residual.dtype
    ctx.mark_non_differentiable(r, *([total] if residual is None else []))
    ctx.set_materialize_grads(False)


def differentiate(ctx: Any, dy: Tensor | None, dtotal: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    ds, dw = (dtotal, None) if dy is None else rms_norm_backward(dy, *ctx.saved_tensors, dtotal)
    dx, dresidual = (None if ds is None or dtype is None else ds.to(dtype) for dtype in ctx.dtypes)
    return dx, dresidual, dw, None


rms_norm_forward.register_autograd(differentiate, setup_context=save)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., N), weight (N,) -> the shape and dtype of x; computed in float32, rounded once.

    x may be strided as long as its rows are whole and at one distance from each other; otherwise it is copied first.
    Errors: ValueError for a shape or device, TypeError for a dtype.
    """
    require_rows("rms_norm", x, None, weight)
    return rms_norm_forward(x, None, weight, eps)[0]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x and residual (..., N), weight (N,) -> the norm of x + residual, and x + residual itself.

    Both have the shape of x, and the dtype that torch gives x + residual; the norm is that of the rounded sum, as if
    the two operations were done one after the other. Strides and errors as in `rms_norm`.
    """
    require_rows("add_rms_norm", x, residual, weight)
    return rms_norm_forward(x, residual, weight, eps)[:2]


def rms_norm_spec() -> Spec:
    """What the lab checks, compiles and measures."""
    from kernels.norms_lab import describe_rms_norm

    return describe_rms_norm(rms_norm, rms_norm_reference)


def add_rms_norm_spec() -> Spec:
    from kernels.norms_lab import describe_add_rms_norm

    return describe_add_rms_norm(add_rms_norm, add_rms_norm_reference)
