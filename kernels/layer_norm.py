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

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.launch import cdiv, jit, tl
from kernels.rows import (
    backward_launch,
    forward_launch,
    long_launch,
    longest_block,
    persistent_programs,
    require_rows,
    results_like,
    rows_of,
)

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


@torch.library.custom_op("kernels::layer_norm_forward", mutates_args=())
def layer_norm_forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, the sum (empty without a residual), μ and r."""
    N, weight, bias = x.shape[-1], weight.contiguous(), None if bias is None else bias.contiguous()
    rows, added = rows_of(x), None if residual is None else rows_of(residual)  # (R, N)
    y, total = results_like(x, residual)
    mean, r = (x.new_empty(len(rows), dtype=torch.float32) for _ in range(2))
    operands = (rows, added, weight, bias, y, None if residual is None else total, mean, r)
    strides = (rows.stride(0), 0 if added is None else added.stride(0))
    if N <= longest_block(x.device):
        launch = forward_launch(N, x.device)
        grid = (cdiv(len(rows), launch.blocks["ROWS"]),)
        layer_norm_forward_kernel[grid](*operands, len(rows), N, eps, *strides, **launch.options)
    else:
        launch = long_launch(x.device)
        layer_norm_long_forward_kernel[(len(rows),)](*operands, N, eps, *strides, **launch.options)
    return y, total, mean, r


@torch.library.custom_op("kernels::layer_norm_backward", mutates_args=())
def layer_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, mean: Tensor, r: Tensor, dtotal: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dw and db (empty without a bias); `dtotal` is added to dx."""
    N, device = x.shape[-1], x.device
    rows, grads, added = rows_of(x), rows_of(dy), None if dtotal is None else rows_of(dtotal)
    strides = (grads.stride(0), rows.stride(0), 0 if added is None else added.stride(0))
    fits, operands = N <= longest_block(device), 2 if added is None else 3
    launch = backward_launch(N, operands * x.element_size(), device) if fits else long_launch(device)
    programs = persistent_programs(device, cdiv(len(rows), launch.blocks["ROWS"]) if fits else len(rows))
    dx, weight_sums = x.new_empty(x.shape), x.new_empty((programs, N), dtype=torch.float32)
    bias_sums = None if bias is None else torch.empty_like(weight_sums)
    outputs = (added, dx, weight_sums, bias_sums, len(rows), N)
    saved = (grads, rows, weight.contiguous(), mean, r)
    if fits:
        layer_norm_backward_kernel[(programs,)](*saved, *outputs, *strides, **launch.options)
    else:
        means = r.new_empty((2, len(rows)))
        layer_norm_long_means_kernel[(len(rows),)](*saved, means, len(rows), N, *strides[:2], **launch.options)
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
    require_rows("layer_norm", x, weight=weight, bias=bias)
    return layer_norm_forward(x, None, weight, bias, eps)[0]


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """x and residual (..., N), weight (N,), bias (N,) or None -> the norm of x + residual, and x + residual itself.

    Both have the shape of x, and the dtype that torch gives x + residual; the norm is that of the rounded sum, as if
    the two operations were done one after the other. Strides and errors as in `layer_norm`.
    """
    require_rows("add_layer_norm", x, residual, weight=weight, bias=bias)
    return layer_norm_forward(x, residual, weight, bias, eps)[:2]


def layer_norm_spec() -> Spec:
    from hypothesis import strategies as st

    from kernels.lab import Inputs, Mutant, Spec, Tolerance, Work

    def inputs(
        generator: torch.Generator, rows: list[int], columns: int, size: float = 1.0, offset: float = 0.0,
        eps: float = 1e-6, wide: str = "", has_bias: bool = True, added: bool = False,
    ) -> Inputs:  # fmt: skip
        """`wide` names a tensor that stays float32, as under autocast; `added`: with a residual."""
        parts = size * (offset + torch.randn(1 + added, *rows, columns, generator=generator, dtype=torch.float64))
        weight, bias = torch.randn(2, columns, generator=generator, dtype=torch.float64)
        tensors = {**dict(zip(("x", "residual"), parts)), "weight": weight}
        tensors |= {"bias": bias} if has_bias else {}
        options = {"eps": eps} if has_bias else {"eps": eps, "bias": None}
        return Inputs(tensors, options, gradients=tuple(tensors), float32=(wide,))

    def floor(quantity: str, inputs: Inputs, results: Mapping[str, Tensor], eps: float) -> float:
        """1.2e-7 of the terms that are added up: of x and μ before all, whose difference may be small."""
        x, dy = results.get("total", inputs.tensors["x"]), results.get("dy", torch.zeros(())).abs()
        mean = x.mean(-1, keepdim=True)
        inverse = torch.rsqrt((x - mean).square().mean(-1, keepdim=True) + inputs.options["eps"])
        normed, weight = (x.abs() + mean.abs()) * inverse, inputs.tensors["weight"].abs()
        if quantity == "y":
            terms = normed * weight + inputs.tensors.get("bias", torch.zeros(())).abs()
        elif quantity == "total":
            terms = results["total"]
        elif quantity in ("dweight", "dbias"):
            terms = (dy * normed if quantity == "dweight" else dy * torch.ones_like(x)).reshape(-1, len(weight)).sum(0)
        else:
            g = dy * weight
            terms = inverse * (g + g.mean(-1, keepdim=True) + normed * (g * normed).mean(-1, keepdim=True))
        return 1.2e-7 * float(terms.norm())

    def work(element_size: int, rows: list[int], columns: int, added: bool = False, **_: Any) -> tuple[Work, Work]:
        elements = torch.Size(rows).numel() * columns
        forward, backward = (4, 4) if added else (2, 3)
        return Work(forward * elements * element_size, 7 * elements), Work(
            backward * elements * element_size, 12 * elements
        )

    def peers() -> dict[str, Callable[..., Any]]:
        found: dict[str, Callable[..., Any]] = {
            "torch": lambda x, weight, bias, eps: F.layer_norm(x, weight.shape, weight, bias, eps)
        }
        with contextlib.suppress(ImportError):
            from liger_kernel.ops.layer_norm import LigerLayerNormFunction  # pyright: ignore[reportMissingImports]

            found["liger"] = lambda x, weight, bias, eps: LigerLayerNormFunction.apply(x, weight, bias, eps)
        return found

    return Spec(
        name="layer_norm",
        op=layer_norm,
        reference=layer_norm_reference,
        cases=st.fixed_dictionaries(
            {
                # The interpreter's tiles are 2 and 4 rows, its blocks at most 64 columns, its persistent programs 3.
                "rows": st.sampled_from([[], [0], [1], [3], [13], [2, 3], [3, 1, 5]]),
                "columns": st.integers(1, 66) | st.sampled_from([128, 129, 200]),
                "size": st.sampled_from([1.0, 1e-3, 0.0, 30.0]),
                "offset": st.sampled_from([0.0, 0.0, 10.0, -300.0]),
                "eps": st.sampled_from([1e-6, 1e-5, 0.1]),
                "wide": st.sampled_from(["", "weight", "residual"]),
                "has_bias": st.booleans(),
            }
        ),
        inputs=inputs,
        tolerance=Tolerance(naive=1.0, rounding=0.5, floor=floor),
        builds=(
            *({"rows": [256], "columns": columns} for columns in (768, 4096, 16384, 32768)),
            {"rows": [256], "columns": 4096, "has_bias": False},
        ),
        # A row of 16,384 in the backward: x̂, g, w and the sums are 5 · 64 KiB, more than all the registers there are.
        max_spill_bytes=256,
        benchmarks=(
            {"rows": [32768], "columns": 768},
            {"rows": [4096], "columns": 4096},
            {"rows": [4096], "columns": 16384},
        ),
        work=work,
        peers=peers,
        mutants=(
            Mutant(
                "deviations past the end",
                "centred = tl.where(column < N, value - centre, 0.0)",
                "centred = value - centre",
            ),
            Mutant(
                "difference of squares",
                "inverse = tl.rsqrt(tl.sum(centred * centred, 1)[:, None] / N + eps)",
                "inverse = tl.rsqrt(tl.sum(value * value, 1)[:, None] / N - centre * centre + eps)",
            ),
            Mutant("long rows: means not merged", " + step * step * share * start", ""),
            Mutant(
                "long rows: last block as a full one", "size = tl.minimum(BLOCK, N - start)", "size = BLOCK + 0 * N"
            ),
            Mutant("mean of g left out", "(grad - tl.sum(grad, 1)[:, None] / N - normed", "(grad - normed"),
            Mutant("tiles left out", "tl.cdiv(rows, ROWS), tl.num_programs(0)", "rows // ROWS, tl.num_programs(0)"),
            Mutant("mean of the first row", "tl.load(mean + row, row < rows", "tl.load(mean + 0 * row, row < rows"),
            Mutant("bias summed after the weight", "db += grad\n        grad *= w", "grad *= w\n        db += grad"),
            Mutant(
                "long rows: bias gradient of one row",
                "db += grad\n        result",
                "db = grad\n        result",
            ),
            Mutant(
                "long rows: the two means exchanged",
                "- tl.load(means + row) - normed",
                "- tl.load(means + rows + row) - normed",
            ),
            Mutant("stride of x for dy", "strides = (grads.stride(0), rows", "strides = (rows.stride(0), rows"),
        ),
    )


def add_layer_norm_spec() -> Spec:
    from kernels.lab import Mutant

    plain = layer_norm_spec()
    assert plain.work is not None
    work = plain.work

    def unfused(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
        return F.layer_norm(x + residual, weight.shape, weight, bias, eps), x + residual

    return replace(
        plain,
        name="add_layer_norm",
        op=add_layer_norm,
        reference=add_layer_norm_reference,
        inputs=lambda generator, **case: plain.inputs(generator, **case, added=True),
        outputs=("y", "total"),
        # Both round the sum, which often is the whole error; the naive version rounds its gradient twice, with luck.
        tolerance=replace(plain.tolerance, naive=1.5, rounding=1.0),
        builds=({"rows": [256], "columns": 4096},),
        benchmarks=({"rows": [4096], "columns": 4096},),
        work=lambda element_size, **case: work(element_size, **case, added=True),
        peers=lambda: {"torch": unfused},
        mutants=(
            Mutant(
                "stride of x for the residual",
                "tl.load(residual + row * stride_residual + column, inside",
                "tl.load(residual + row * stride_x + column, inside",
            ),
            Mutant(
                "sum stored past the end",
                "row * N + column, rounded, inside)",
                "row * N + column, rounded, column < N)",
            ),
            Mutant(
                "long rows: mean of x alone",
                "column < N, 0.0).to(tl.float32)\n            value = value.to(total",
                "column < 0, 0.0).to(tl.float32)\n            value = value.to(total",
            ),
            Mutant(
                "long rows: norm of x alone",
                "column < N, 0.0).to(tl.float32)\n            rounded = value.to(total",
                "column < 0, 0.0).to(tl.float32)\n            rounded = value.to(total",
            ),
            Mutant(
                "gradient of the sum subtracted",
                "[:, None] / N))\n        if dtotal is not None:\n            result += tl",
                "[:, None] / N))\n        if dtotal is not None:\n            result -= tl",
            ),
            Mutant(
                "gradient of the sum alone lost",
                "(dtotal, None, None) if dy is None",
                "(None, None, None) if dy is None",
            ),
        ),
    )
