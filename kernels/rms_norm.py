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

from kernels.launch import cdiv, jit, require, tl
from kernels.rows import backward_launch, forward_launch, long_launch, longest_block, persistent_programs, rows_of

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
def _forward_kernel(
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
def _long_forward_kernel(x, residual, weight, y, total, r, N, eps, stride_x, stride_residual, BLOCK: tl.constexpr):
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
def _backward_kernel(
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
def _long_mean_kernel(dy, x, weight, r, means, N, stride_dy, stride_x, BLOCK: tl.constexpr):
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
def _long_backward_kernel(
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


def _launch_forward(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """y, the sum (x itself without a residual) and r, for any shape of x."""
    N, shape = x.shape[-1], x.shape
    rows = rows_of(x)  # (R, N)
    added = None if residual is None else rows_of(residual)
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    y, r = x.new_empty(shape, dtype=dtype), x.new_empty(len(rows), dtype=torch.float32)
    total = None if residual is None else x.new_empty(shape, dtype=dtype)
    strides = (rows.stride(0), 0 if added is None else added.stride(0))
    if N <= longest_block(x.device):
        launch = forward_launch(N, x.device)
        grid = (cdiv(len(rows), launch.blocks["ROWS"]),)
        _forward_kernel[grid](rows, added, weight, y, total, r, len(rows), N, eps, *strides, **launch.options)
    else:
        grid = (len(rows),)
        launch = long_launch(x.device)
        _long_forward_kernel[grid](rows, added, weight, y, total, r, N, eps, *strides, **launch.options)
    return y, x if total is None else total, r


@torch.library.custom_op("instructgpt::rms_norm", mutates_args=())
def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y and r."""
    y, _, r = _launch_forward(x, None, weight, eps)
    return y, r


@_rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1].numel(), dtype=torch.float32)


@torch.library.custom_op("instructgpt::add_rms_norm", mutates_args=())
def _add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """y, the sum and r."""
    return _launch_forward(x, residual, weight, eps)


@_add_rms_norm.register_fake
def _(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    y = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, residual.dtype))
    return y, torch.empty_like(y), x.new_empty(x.shape[:-1].numel(), dtype=torch.float32)


@torch.library.custom_op("instructgpt::rms_norm_backward", mutates_args=())
def _backward(dy: Tensor, x: Tensor, weight: Tensor, r: Tensor, dtotal: Tensor | None) -> tuple[Tensor, Tensor]:
    """dx and dw; `dtotal` is added to dx."""
    N, device = x.shape[-1], x.device
    rows, grads, added = rows_of(x), rows_of(dy), None if dtotal is None else rows_of(dtotal)
    dx = x.new_empty(x.shape)
    strides = (grads.stride(0), rows.stride(0), 0 if added is None else added.stride(0))
    if N <= longest_block(device):
        operands = 2 if added is None else 3
        launch = backward_launch(N, operands * x.element_size(), device)
        programs = persistent_programs(device, cdiv(len(rows), launch.blocks["ROWS"]))
        partials = x.new_empty((programs, N), dtype=torch.float32)
        _backward_kernel[(programs,)](
            grads, rows, weight, r, added, dx, partials, len(rows), N, *strides, **launch.options
        )
        return dx, partials.sum(0).to(weight.dtype)
    launch = long_launch(device)
    columns, programs = cdiv(N, launch.blocks["BLOCK"]), persistent_programs(device, len(rows))
    partials, means = x.new_empty((programs, N), dtype=torch.float32), torch.empty_like(r)
    _long_mean_kernel[(len(rows),)](grads, rows, weight, r, means, N, *strides[:2], **launch.options)
    _long_backward_kernel[(columns, programs)](
        grads, rows, weight, r, means, added, dx, partials, len(rows), N, *strides, **launch.options
    )
    return dx, partials.sum(0).to(weight.dtype)


@_backward.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, r: Tensor, dtotal: Tensor | None) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, Tensor | None, None]:
    if dy is None:
        return None, None, None
    return *_backward(dy, *ctx.saved_tensors, None), None


def _save_added(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, residual, weight, _ = inputs
    _, total, r = output
    ctx.save_for_backward(total, weight, r)
    ctx.dtypes = x.dtype, residual.dtype
    ctx.mark_non_differentiable(r)
    ctx.set_materialize_grads(False)


def _differentiate_added(
    ctx: Any, dy: Tensor | None, dtotal: Tensor | None, _: None
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    ds, dw = (dtotal, None) if dy is None else _backward(dy, *ctx.saved_tensors, dtotal)
    if ds is None:
        return None, None, None, None
    return ds.to(ctx.dtypes[0]), ds.to(ctx.dtypes[1]), dw, None


_rms_norm.register_autograd(_differentiate, setup_context=_save)
_add_rms_norm.register_autograd(_differentiate_added, setup_context=_save_added)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., N), weight (N,) -> the shape and dtype of x; computed in float32, rounded once.

    x may be strided as long as its rows are whole and at one distance from each other; otherwise it is copied first.
    Errors: ValueError for a shape or device, TypeError for a dtype.
    """
    _check("rms_norm", x, weight)
    return _rms_norm(x, weight, eps)[0]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x and residual (..., N), weight (N,) -> the norm of x + residual, and x + residual itself.

    Both have the shape of x, and the dtype that torch gives x + residual; the norm is that of the rounded sum, as if
    the two operations were done one after the other. Strides and errors as in `rms_norm`.
    """
    _check("add_rms_norm", x, weight, residual=residual)
    if residual.shape != x.shape:
        raise ValueError(f"add_rms_norm: x is {tuple(x.shape)}, residual {tuple(residual.shape)}; they must be equal")
    return _add_rms_norm(x, residual, weight, eps)[:2]


def _check(op: str, x: Tensor, weight: Tensor, **others: Tensor) -> None:
    require(op, {"x": x, "weight": weight, **others})
    if x.dim() == 0 or x.shape[-1] == 0 or weight.shape != x.shape[-1:]:
        raise ValueError(f"{op}: x is {tuple(x.shape)}, weight {tuple(weight.shape)}; x must be (..., N), weight (N,)")
