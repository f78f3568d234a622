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


@torch.library.custom_op("kernels::rms_norm_forward", mutates_args=())
def rms_norm_forward(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """y, the sum (empty without a residual) and r."""
    N = x.shape[-1]
    rows, added = rows_of(x), None if residual is None else rows_of(residual)  # (R, N)
    y, total = results_like(x, residual)
    r = x.new_empty(len(rows), dtype=torch.float32)
    operands = (rows, added, weight.contiguous(), y, None if residual is None else total, r)
    strides = (rows.stride(0), 0 if added is None else added.stride(0))
    if N <= longest_block(x.device):
        launch = forward_launch(N, x.device)
        grid = (cdiv(len(rows), launch.blocks["ROWS"]),)
        rms_norm_forward_kernel[grid](*operands, len(rows), N, eps, *strides, **launch.options)
    else:
        launch = long_launch(x.device)
        rms_norm_long_forward_kernel[(len(rows),)](*operands, N, eps, *strides, **launch.options)
    return y, total, r


@torch.library.custom_op("kernels::rms_norm_backward", mutates_args=())
def rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, r: Tensor, dtotal: Tensor | None) -> tuple[Tensor, Tensor]:
    """dx and dw; `dtotal` is added to dx."""
    N, device = x.shape[-1], x.device
    rows, grads, added = rows_of(x), rows_of(dy), None if dtotal is None else rows_of(dtotal)
    strides = (grads.stride(0), rows.stride(0), 0 if added is None else added.stride(0))
    fits, operands = N <= longest_block(device), 2 if added is None else 3
    launch = backward_launch(N, operands * x.element_size(), device) if fits else long_launch(device)
    programs = persistent_programs(device, cdiv(len(rows), launch.blocks["ROWS"]) if fits else len(rows))
    dx, partials = x.new_empty(x.shape), x.new_empty((programs, N), dtype=torch.float32)
    saved, outputs = (grads, rows, weight.contiguous(), r), (added, dx, partials, len(rows), N)
    if fits:
        rms_norm_backward_kernel[(programs,)](*saved, *outputs, *strides, **launch.options)
    else:
        means = torch.empty_like(r)
        rms_norm_long_mean_kernel[(len(rows),)](*saved, means, N, *strides[:2], **launch.options)
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
    require_rows("rms_norm", x, weight=weight)
    return rms_norm_forward(x, None, weight, eps)[0]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x and residual (..., N), weight (N,) -> the norm of x + residual, and x + residual itself.

    Both have the shape of x, and the dtype that torch gives x + residual; the norm is that of the rounded sum, as if
    the two operations were done one after the other. Strides and errors as in `rms_norm`.
    """
    require_rows("add_rms_norm", x, residual, weight=weight)
    return rms_norm_forward(x, residual, weight, eps)[:2]


def rms_norm_spec() -> Spec:
    from hypothesis import strategies as st

    from kernels.lab import Inputs, Mutant, Spec, Tolerance, Work

    def inputs(
        generator: torch.Generator, rows: list[int], columns: int, size: float = 1.0, eps: float = 1e-6,
        wide: str = "", added: bool = False,
    ) -> Inputs:  # fmt: skip
        """`wide` names a tensor that stays float32, as under autocast; `added`: with a residual."""
        parts = size * torch.randn(1 + added, *rows, columns, generator=generator, dtype=torch.float64)
        weight = 1 + 0.5 * torch.randn(columns, generator=generator, dtype=torch.float64)
        tensors = {**dict(zip(("x", "residual"), parts)), "weight": weight}
        return Inputs(tensors, {"eps": eps}, gradients=tuple(tensors), float32=(wide,))

    def floor(quantity: str, inputs: Inputs, results: Mapping[str, Tensor], eps: float) -> float:
        """1.2e-7 of the terms that are added up: a gradient of 0 is what is left of them."""
        x, dy = results.get("total", inputs.tensors["x"]), results.get("dy", torch.zeros(())).abs()
        inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + inputs.options["eps"])
        normed, weight = (x * inverse).abs(), inputs.tensors["weight"].abs()
        if quantity in ("y", "total"):
            terms = results[quantity]
        elif quantity == "dweight":
            terms = (dy * normed).reshape(-1, len(weight)).sum(0)
        else:
            terms = inverse * (dy * weight + normed * (dy * weight * normed).mean(-1, keepdim=True))
        return 1.2e-7 * float(terms.norm())

    def work(element_size: int, rows: list[int], columns: int, added: bool = False, **_: Any) -> tuple[Work, Work]:
        elements = torch.Size(rows).numel() * columns
        forward, backward = (4, 4) if added else (2, 3)
        return Work(forward * elements * element_size, 4 * elements), Work(
            backward * elements * element_size, 9 * elements
        )

    def peers() -> dict[str, Callable[..., Any]]:
        found: dict[str, Callable[..., Any]] = {
            "torch": lambda x, weight, eps: F.rms_norm(x, weight.shape, weight, eps)
        }
        with contextlib.suppress(ImportError):
            from liger_kernel.ops.rms_norm import LigerRMSNormFunction  # pyright: ignore[reportMissingImports]

            # The last argument keeps it from overwriting dy.
            found["liger"] = lambda x, weight, eps: LigerRMSNormFunction.apply(x, weight, eps, 0.0, "llama", False)
        return found

    return Spec(
        name="rms_norm",
        op=rms_norm,
        reference=rms_norm_reference,
        cases=st.fixed_dictionaries(
            {
                # The interpreter's tiles are 2 and 4 rows, its blocks at most 64 columns, its persistent programs 3.
                "rows": st.sampled_from([[], [0], [1], [3], [13], [2, 3], [3, 1, 5]]),
                "columns": st.integers(1, 66) | st.sampled_from([128, 129, 200]),
                "size": st.sampled_from([1.0, 1e-3, 0.0, 100.0]),
                "eps": st.sampled_from([1e-6, 1e-5, 0.1]),
                "wide": st.sampled_from(["", "weight", "residual"]),
            }
        ),
        inputs=inputs,
        tolerance=Tolerance(naive=1.0, rounding=0.5, floor=floor),
        builds=(
            *({"rows": [256], "columns": columns} for columns in (128, 4096, 16384, 32768)),
            {"rows": [256], "columns": 16384, "dtype": "float32"},
        ),
        # A row of 16,384 in the backward: x̂, g, w and the sum of dw are 4 · 64 KiB, all the registers that there are:
        # 1,024 threads have 64 each. In float32 on 100, where nothing is narrower, 160 bytes a thread are left over.
        max_spill_bytes=160,
        benchmarks=(
            {"rows": [262144], "columns": 128},
            {"rows": [16384], "columns": 1024},
            {"rows": [4096], "columns": 4096},
            {"rows": [4096], "columns": 16384},
            {"rows": [4096], "columns": 32768},
        ),
        work=work,
        peers=peers,
        mutants=(
            Mutant(
                "eps left out", "tl.sum(value * value, 1)[:, None] / N + eps", "tl.sum(value * value, 1)[:, None] / N"
            ),
            Mutant("sum for mean", "tl.rsqrt(tl.sum(squares, 0) / N + eps)", "tl.rsqrt(tl.sum(squares, 0) + eps)"),
            Mutant(
                "rows stored past the end",
                "tl.store(y + row * N + column, value * inverse * w, inside)",
                "tl.store(y + row * N + column, value * inverse * w, column < N)",
            ),
            Mutant("stride of x for dy", "strides = (grads.stride(0), rows", "strides = (rows.stride(0), rows"),
            Mutant(
                "mean over the block",
                "mean = tl.sum(grad * normed, 1)[:, None] / N",
                "mean = tl.sum(grad * normed, 1)[:, None] / BLOCK",
            ),
            Mutant("tiles left out", "tl.cdiv(rows, ROWS), tl.num_programs(0)", "rows // ROWS, tl.num_programs(0)"),
            Mutant(
                "partial rows overwrite each other",
                "tl.store(partials + tl.program_id(0).to(tl.int64) * N + column,",
                "tl.store(partials + tl.program_id(0).to(tl.int64) * 0 + column,",
            ),
            Mutant(
                "long rows: one block left out",
                "range(0, N, BLOCK):\n        column = start + tl.arange(0, BLOCK)\n        normed",
                "range(BLOCK, N, BLOCK):\n        column = start + tl.arange(0, BLOCK)\n        normed",
            ),
            Mutant(
                "long rows: dw scaled by the weight",
                "result = inverse * (grad * w - normed * mean)",
                "grad *= w\n        result = inverse * (grad * w - normed * mean)",
            ),
        ),
    )


def add_rms_norm_spec() -> Spec:
    from kernels.lab import Mutant

    plain = rms_norm_spec()
    assert plain.work is not None
    work = plain.work

    def unfused(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return F.rms_norm(x + residual, weight.shape, weight, eps), x + residual

    return replace(
        plain,
        name="add_rms_norm",
        op=add_rms_norm,
        reference=add_rms_norm_reference,
        inputs=lambda generator, **case: plain.inputs(generator, **case, added=True),
        outputs=("y", "total"),
        # Both round the sum, which often is the whole error; the naive version rounds its gradient twice, with luck.
        tolerance=replace(plain.tolerance, naive=1.5, rounding=1.0),
        builds=({"rows": [256], "columns": 4096}, {"rows": [256], "columns": 16384}),
        benchmarks=({"rows": [4096], "columns": 4096}, {"rows": [4096], "columns": 16384}),
        work=lambda element_size, **case: work(element_size, **case, added=True),
        peers=lambda: {"torch": unfused},
        mutants=(
            Mutant(
                "norm of x alone",
                "rounded.to(tl.float32)\n    inverse",
                "(value - tl.load(residual)).to(tl.float32)\n    inverse",
            ),
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
                "long rows: r of x alone",
                "column < N, 0.0).to(tl.float32)\n            value = value.to(total",
                "column < 0, 0.0).to(tl.float32)\n            value = value.to(total",
            ),
            Mutant(
                "long rows: norm of x alone",
                "column < N, 0.0).to(tl.float32)\n            rounded = value.to(total",
                "column < 0, 0.0).to(tl.float32)\n            rounded = value.to(total",
            ),
            Mutant(
                "gradient of the sum overwrites",
                "(grad - normed * mean)\n        if dtotal is not None:\n            result += tl.load",
                "(grad - normed * mean)\n        if dtotal is not None:\n            result = tl.load",
            ),
            Mutant(
                "long rows: wrong row of the sum's gradient",
                "w - normed * mean)\n        if dtotal is not None:\n            result += tl.load(dtotal + row *",
                "w - normed * mean)\n        if dtotal is not None:\n            result += tl.load(dtotal + 0 *",
            ),
            Mutant("gradient of the sum alone lost", "(dtotal, None) if dy is None", "(None, None) if dy is None"),
        ),
    )
