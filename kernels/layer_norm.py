"""Layer normalisation (Ba et al. 2016, eq. 3), alone and with the residual addition before it.

    y_i = (x_i - μ) · r · w_i + b_i,   μ = mean_j x_j,   r = 1 / sqrt(mean_j (x_j - μ)² + ε)

Gradient, with x̂ = (x - μ)·r and g = dy·w:

    dx = r · (g - mean_j g_j - x̂ · mean_j(g_j·x̂_j)),   dw = Σ_rows dy·x̂,   db = Σ_rows dy

The forward saves x, μ and r (two float32 a row). It moves 2·N elements a row; the backward moves 3·N.

`add_layer_norm` normalises s = x + residual and returns s too, as `add_rms_norm` does.

A row that fits a block is read once: its deviations are computed from its mean, in registers. A longer one is read in
blocks, whose means and squared deviations are merged (Chan et al. 1979, "Updating formulae", eq. 2.1), and then again
to be scaled: the difference of mean x² and μ² would lose everything where μ is large. The backward is arranged as that
of `rms_norm`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kernels.launch import cdiv, custom_op, jit, tl
from kernels.rows import norm_backward_launch, norm_forward_launch, require_rows, results_like, rows_of

if TYPE_CHECKING:
    from kernels.lab.spec import Spec


def layer_norm_reference(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """x (..., N), weight (N,), bias (N,) or None -> the shape and dtype of x."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(-1, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * weight
    return (normed if bias is None else normed + bias).to(x.dtype)


def add_layer_norm_reference(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """x and residual (..., N), weight (N,), bias (N,) or None -> the norm of x + residual, and x + residual."""
    total = x + residual
    return layer_norm_reference(total, weight, bias, eps), total


@jit
def layer_norm_forward_kernel(
    x, residual, weight, bias, y, total, mean, r, rows, N, eps, stride_x, stride_residual,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
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
    centre = tl.sum(value, 1)[:, None] / N
    centred = tl.where(column < N, value - centre, 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, 1)[:, None] / N + eps)
    tl.store(mean + row, centre, row < rows)
    tl.store(r + row, inverse, row < rows)
    result = centred * inverse * tl.load(weight + column, column < N, 0.0).to(tl.float32)
    if bias is not None:
        result += tl.load(bias + column, column < N, 0.0).to(tl.float32)
    tl.store(y + row * N + column, result, inside)


@jit
def layer_norm_long_forward_kernel(
    x, residual, weight, bias, y, total, mean, r, N, eps, stride_x, stride_residual, BLOCK: tl.constexpr
):
    """One row in blocks, read twice. The sum is added again, not read back: threads do not see each other's stores."""
    row = tl.program_id(0).to(tl.int64)
    centre, squares = 0.0, 0.0
    for start in range(0, N, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * stride_x + column, column < N, 0.0).to(tl.float32)
        if residual is not None:
            value += tl.load(residual + row * stride_residual + column, column < N, 0.0).to(tl.float32)
            value = value.to(total.dtype.element_ty).to(tl.float32)
        size = tl.minimum(BLOCK, N - start)
        block_centre = tl.sum(value, 0) / size
        centred = tl.where(column < N, value - block_centre, 0.0)
        # Chan et al.: n = start seen elements are merged with `size` new ones.
        share = size / (start + size).to(tl.float32)
        step = block_centre - centre
        squares += tl.sum(centred * centred, 0) + step * step * share * start
        centre += step * share
    inverse = tl.rsqrt(squares / N + eps)
    tl.store(mean + row, centre)
    tl.store(r + row, inverse)
    for start in range(0, N, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * stride_x + column, column < N, 0.0).to(tl.float32)
        if residual is not None:
            value += tl.load(residual + row * stride_residual + column, column < N, 0.0).to(tl.float32)
            rounded = value.to(total.dtype.element_ty)
            tl.store(total + row * N + column, rounded, column < N)
            value = rounded.to(tl.float32)
        result = (value - centre) * inverse * tl.load(weight + column, column < N, 0.0).to(tl.float32)
        if bias is not None:
            result += tl.load(bias + column, column < N, 0.0).to(tl.float32)
        tl.store(y + row * N + column, result, column < N)


@jit
def layer_norm_backward_kernel(
    dy, x, weight, mean, r, dtotal, dx, weight_sums, bias_sums, rows, N, stride_dy, stride_x, stride_dtotal,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Every num_programs-th tile of ROWS rows; their sums of dy·x̂ and of dy are this program's row of the sums.

    `bias_sums` is None where there is no bias, `dtotal` where nothing was added.
    """
    column = tl.arange(0, BLOCK)[None, :]
    w = tl.load(weight + column, column < N, 0.0).to(tl.float32)
    dw = tl.zeros((ROWS, BLOCK), tl.float32)
    db = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=STAGES):
        row = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)[:, None]
        inside = (row < rows) & (column < N)
        inverse = tl.load(r + row, row < rows, 0.0)
        centre = tl.load(mean + row, row < rows, 0.0)
        normed = (tl.load(x + row * stride_x + column, inside, 0.0).to(tl.float32) - centre) * inverse
        grad = tl.load(dy + row * stride_dy + column, inside, 0.0).to(tl.float32)  # 0 past the end, as all that follows
        dw += grad * normed
        db += grad
        grad *= w
        result = inverse * (grad - tl.sum(grad, 1)[:, None] / N - normed * (tl.sum(grad * normed, 1)[:, None] / N))
        if dtotal is not None:
            result += tl.load(dtotal + row * stride_dtotal + column, inside, 0.0).to(tl.float32)
        tl.store(dx + row * N + column, result, inside)
    offset = tl.program_id(0).to(tl.int64) * N + column
    tl.store(weight_sums + offset, tl.sum(dw, 0)[None, :], column < N)
    if bias_sums is not None:
        tl.store(bias_sums + offset, tl.sum(db, 0)[None, :], column < N)


@jit
def layer_norm_long_means_kernel(dy, x, weight, mean, r, means, rows, N, stride_dy, stride_x, BLOCK: tl.constexpr):
    """mean_j g_j and mean_j(g_j·x̂_j) of one row, in blocks -> means (2, rows)."""
    row = tl.program_id(0).to(tl.int64)
    centre, inverse = tl.load(mean + row), tl.load(r + row)
    grads = tl.zeros((BLOCK,), tl.float32)
    products = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, N, BLOCK):
        column = start + tl.arange(0, BLOCK)
        normed = (tl.load(x + row * stride_x + column, column < N, 0.0).to(tl.float32) - centre) * inverse
        grad = tl.load(dy + row * stride_dy + column, column < N, 0.0).to(tl.float32)
        grad *= tl.load(weight + column, column < N, 0.0).to(tl.float32)
        grads += grad
        products += grad * normed
    tl.store(means + row, tl.sum(grads, 0) / N)
    tl.store(means + rows + row, tl.sum(products, 0) / N)


@jit
def layer_norm_long_backward_kernel(
    dy, x, weight, mean, r, means, dtotal, dx, weight_sums, bias_sums, rows, N, stride_dy, stride_x, stride_dtotal,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Columns program_id(0) of every num_programs(1)-th row, whose dy·x̂ and dy are summed."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < N
    w = tl.load(weight + column, inside, 0.0).to(tl.float32)
    dw = tl.zeros((BLOCK,), tl.float32)
    db = tl.zeros((BLOCK,), tl.float32)
    for index in range(tl.program_id(1), rows, tl.num_programs(1)):
        row = tl.cast(index, tl.int64)
        centre, inverse = tl.load(mean + row), tl.load(r + row)
        normed = (tl.load(x + row * stride_x + column, inside, 0.0).to(tl.float32) - centre) * inverse
        grad = tl.load(dy + row * stride_dy + column, inside, 0.0).to(tl.float32)
        dw += grad * normed
        db += grad
        result = inverse * (grad * w - tl.load(means + row) - normed * tl.load(means + rows + row))
        if dtotal is not None:
            result += tl.load(dtotal + row * stride_dtotal + column, inside, 0.0).to(tl.float32)
        tl.store(dx + row * N + column, result, inside)
    offset = tl.program_id(1).to(tl.int64) * N + column
    tl.store(weight_sums + offset, dw, inside)
    if bias_sums is not None:
        tl.store(bias_sums + offset, db, inside)


@custom_op("kernels::layer_norm_forward")
def layer_norm_forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, the sum (empty without a residual), μ and r."""
    rows, added = rows_of(x), None if residual is None else rows_of(residual)  # (R, N)
    R, N = rows.shape
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    y, total = results_like(x, residual)
    mean, r = x.new_empty(R, dtype=torch.float32), x.new_empty(R, dtype=torch.float32)
    operands = (rows, added, weight, bias, y, None if residual is None else total, mean, r)
    strides = (rows.stride(0), 0 if added is None else added.stride(0))
    launch, grid, fits = norm_forward_launch(R, N, x.device)
    if fits:
        layer_norm_forward_kernel[grid](*operands, R, N, eps, *strides, **launch.options)
    else:
        layer_norm_long_forward_kernel[grid](*operands, N, eps, *strides, **launch.options)
    return y, total, mean, r


@custom_op("kernels::layer_norm_backward")
def layer_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, mean: Tensor, r: Tensor, dtotal: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dw and db (empty without a bias); `dtotal` is added to dx."""
    rows, grads, added = rows_of(x), rows_of(dy), None if dtotal is None else rows_of(dtotal)
    R, N = rows.shape
    strides = (grads.stride(0), rows.stride(0), 0 if added is None else added.stride(0))
    loaded = 2 if added is None else 3
    launch, programs, fits = norm_backward_launch(R, N, x.dtype, weight.dtype, loaded, x.device)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    weight_sums = x.new_empty((programs, N), dtype=torch.float32)
    bias_sums = None if bias is None else torch.empty_like(weight_sums)
    outputs = (added, dx, weight_sums, bias_sums, R, N)
    saved = (grads, rows, weight.contiguous(), mean, r)
    if fits:
        layer_norm_backward_kernel[(programs,)](*saved, *outputs, *strides, **launch.options)
    else:
        means = r.new_empty((2, R))
        layer_norm_long_means_kernel[(R,)](*saved, means, R, N, *strides[:2], **launch.options)
        grid = (cdiv(N, launch.blocks["BLOCK"]), programs)
        layer_norm_long_backward_kernel[grid](*saved, means, *outputs, *strides, **launch.options)
    db = weight.new_empty(0) if bias is None or bias_sums is None else bias_sums.sum(0).to(bias.dtype)
    return dx, weight_sums.sum(0).to(weight.dtype), db


@layer_norm_forward.register_fake
def _(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
    mean = x.new_empty(x.shape[:-1].numel(), dtype=torch.float32)
    return *results_like(x, residual), mean, torch.empty_like(mean)


@layer_norm_backward.register_fake
def _(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, mean: Tensor, r: Tensor, dtotal: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    db = weight.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), db


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, residual, weight, bias, _ = inputs
    _, total, mean, r = output
    ctx.save_for_backward(x if residual is None else total, weight, bias, mean, r)
    ctx.dtypes = x.dtype, None if residual is None else residual.dtype
    ctx.mark_non_differentiable(mean, r, *([total] if residual is None else []))
    ctx.set_materialize_grads(False)


def differentiate(ctx: Any, dy: Tensor | None, dtotal: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # read once: under activation checkpointing they are computed again, for one reading
    ds, dw, db = (dtotal, None, None) if dy is None else layer_norm_backward(dy, *saved, dtotal)
    dx, dresidual = (None if ds is None or dtype is None else ds.to(dtype) for dtype in ctx.dtypes)
    return dx, dresidual, dw, None if saved[2] is None else db, None


layer_norm_forward.register_autograd(differentiate, setup_context=save)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """x (..., N), weight (N,), bias (N,) or None -> the shape and dtype of x; computed in float32, rounded once.

    x may be strided as long as its rows are whole and at one distance from each other; otherwise it is copied first.
    Errors: ValueError for a shape or device, TypeError for a dtype.
    """
    require_rows("layer_norm", x, None, weight, bias)
    return layer_norm_forward(x, None, weight, bias, eps)[0]


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """x and residual (..., N), weight (N,), bias (N,) or None -> the norm of x + residual, and x + residual itself.

    Both have the shape of x, and the dtype that torch gives x + residual; the norm is that of the rounded sum, as if
    the two operations were done one after the other. Strides and errors as in `layer_norm`.
    """
    require_rows("add_layer_norm", x, residual, weight, bias)
    return layer_norm_forward(x, residual, weight, bias, eps)[:2]


def layer_norm_spec() -> Spec:
    """What the lab checks, compiles and measures."""
    from kernels.norms_lab import describe_layer_norm

    return describe_layer_norm(layer_norm, layer_norm_reference)


def add_layer_norm_spec() -> Spec:
    from kernels.norms_lab import describe_add_layer_norm

    return describe_add_layer_norm(add_layer_norm, add_layer_norm_reference)
