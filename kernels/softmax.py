"""Softmax over the last dimension, of scaled scores, where a query may attend to the keys up to its own.

    y_i = exp(s_i - m) / Σ_j exp(s_j - m),   s = scale · x,   m = max_j s_j,   over the allowed j; else y_i = 0

Subtracting the maximum changes nothing mathematically and keeps exp from overflowing. Gradient, from y alone:

    dx_i = scale · y_i · (dy_i - Σ_j dy_j·y_j)

The forward saves y. It reads x and writes y once: 2·N elements moved, about 5·N FLOPs; the backward moves 3·N.
A row that is too long for one block is read twice. The first pass keeps a running maximum m and a sum ℓ of exp(s - m),
and rescales the sum when the maximum grows (Milakov & Gimelshein 2018, "Online normalizer calculation for softmax",
algorithm 3):

    m' = max(m, max_j s_j),   ℓ' = ℓ · exp(m - m') + Σ_j exp(s_j - m')
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kernels.launch import (
    Launch,
    cdiv,
    chosen_once,
    custom_op,
    generation,
    jit,
    next_power_of_2,
    once_per_signature,
    require,
    tl,
    tuned,
)
from kernels.rows import rows_of

if TYPE_CHECKING:
    from kernels.lab import Spec


def softmax_reference(x: Tensor, scale: float = 1.0, causal: bool = False) -> Tensor:
    """x (..., N), any float dtype -> the same shape and dtype. A row of only -inf gives NaN, as 0/0 does.

    causal: x is (..., queries, keys), and a query weighs the keys after its own with 0; the last query stands at the
    last key. A query without a key gives zeros.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32)) * scale
    if not causal:
        exp = torch.exp(wide - wide.amax(-1, keepdim=True))
        return (exp / exp.sum(-1, keepdim=True)).to(x.dtype)
    queries, keys = x.shape[-2:]
    is_later = torch.ones(queries, keys, dtype=torch.bool, device=x.device).triu(keys - queries + 1)
    weights = softmax_reference(wide.masked_fill(is_later, -torch.inf))
    # A row of nothing is NaN by now; its weights, and their gradients, are 0.
    return weights.masked_fill(is_later, 0.0).to(x.dtype)


@jit
def rows_of_program(rows, queries, visible, columns, ROWS: tl.constexpr):
    """Three values (ROWS, 1): this program's rows in int64, since row · stride may pass 2³¹; whether each of them
    exists; how many columns each may see.

    The first query of a matrix sees `visible` columns, each further one sees one more, up to all of them.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    seen = tl.minimum(row % queries + visible, columns)
    return row, row < rows, seen


@jit
def softmax_forward_kernel(
    x, y, stride, rows, queries, visible, columns, scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Rows of at most COLUMNS columns, ROWS of them a program."""
    row, exists, seen = rows_of_program(rows, queries, visible, columns, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    inside = exists & (column < columns)
    scores = scale * tl.load(x + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    scores = tl.where(column < seen, scores, -float("inf"))
    exp = tl.exp(scores - tl.max(scores, 1, keep_dims=True))
    weights = tl.where(column < seen, exp / tl.sum(exp, 1, keep_dims=True), 0.0)
    tl.store(y + row * columns + column, weights.to(y.dtype.element_ty), mask=inside)


@jit
def softmax_forward_online_kernel(
    x, y, stride, rows, queries, visible, columns, scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Softmax of scale · x for rows of any length, COLUMNS columns at a time, ROWS rows a program.

    x, y: pointers to the first of `rows` rows of `columns`; x's begin `stride` apart, y's `columns`. Columns that a row
    does not see are no part of the sum, and get 0. Computed in float32, stored in y's dtype.
    """
    row, exists, seen = rows_of_program(rows, queries, visible, columns, ROWS)
    maximum = tl.full((ROWS, 1), -float("inf"), tl.float32)
    total = tl.zeros((ROWS, 1), tl.float32)
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        scores = scale * tl.load(x + row * stride + column, mask=exists & (column < columns), other=0.0).to(tl.float32)
        scores = tl.where(column < seen, scores, -float("inf"))
        larger = tl.maximum(maximum, tl.max(scores, 1, keep_dims=True))
        # As long as all is -inf, -inf - -inf would be NaN: 0 stands in for such a maximum.
        pivot = tl.where(larger == -float("inf"), 0.0, larger)
        total = total * tl.exp(maximum - pivot) + tl.sum(tl.exp(scores - pivot), 1, keep_dims=True)
        maximum = larger
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        inside = exists & (column < columns)
        scores = scale * tl.load(x + row * stride + column, mask=inside, other=0.0).to(tl.float32)
        weights = tl.where(column < seen, tl.exp(scores - maximum) / total, 0.0)
        tl.store(y + row * columns + column, weights.to(y.dtype.element_ty), mask=inside)


@jit
def softmax_backward_kernel(
    dy, y, dx, stride, rows, queries, visible, columns, scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Rows of at most COLUMNS columns, ROWS of them a program."""
    row, exists, seen = rows_of_program(rows, queries, visible, columns, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    inside = exists & (column < columns)
    weights = tl.load(y + row * columns + column, mask=inside, other=0.0).to(tl.float32)
    dweights = tl.load(dy + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    products = tl.where(column < seen, dweights * weights, 0.0)
    mean = tl.sum(products, 1, keep_dims=True)  # of dy, weighted by y
    dscores = tl.where(column < seen, scale * weights * (dweights - mean), 0.0)
    tl.store(dx + row * columns + column, dscores.to(dx.dtype.element_ty), mask=inside)


@jit
def softmax_backward_online_kernel(
    dy, y, dx, stride, rows, queries, visible, columns, scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Rows of any length, COLUMNS columns at a time."""
    row, exists, seen = rows_of_program(rows, queries, visible, columns, ROWS)
    products = tl.zeros((ROWS, COLUMNS), tl.float32)  # summed over its columns once, after the loop
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        inside = exists & (column < columns)
        weights = tl.load(y + row * columns + column, mask=inside, other=0.0).to(tl.float32)
        dweights = tl.load(dy + row * stride + column, mask=inside, other=0.0).to(tl.float32)
        products += tl.where(column < seen, dweights * weights, 0.0)
    mean = tl.sum(products, 1, keep_dims=True)
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        inside = exists & (column < columns)
        weights = tl.load(y + row * columns + column, mask=inside, other=0.0).to(tl.float32)
        dweights = tl.load(dy + row * stride + column, mask=inside, other=0.0).to(tl.float32)
        dscores = tl.where(column < seen, scale * weights * (dweights - mean), 0.0)
        tl.store(dx + row * columns + column, dscores.to(dx.dtype.element_ty), mask=inside)


@chosen_once
def softmax_launch(
    kernel: str, rows: int, columns: int, dtype: torch.dtype, device: torch.device
) -> tuple[Launch, tuple[int], bool]:
    """How rows are cut into blocks, one program each, and whether a row is one block."""
    block = next_power_of_2(columns)
    if generation(device) == 0:  # the interpreter: small, so that small tests have several programs, and several blocks
        is_one_block = block <= 64
        tile = {"ROWS": max(1, min(128 // block, next_power_of_2(rows))), "COLUMNS": block}
        launch = Launch(tile if is_one_block else {"ROWS": 4, "COLUMNS": 64})
    else:
        # At most 32 elements a thread: all of a row's 16-byte loads in flight at once, and no registers spilled.
        is_one_block = block <= 16384
        if is_one_block:
            tile = {"ROWS": max(1, min(4096 // block, next_power_of_2(rows))), "COLUMNS": block}
            default = Launch(tile, num_warps=max(4, block // 1024))
        else:
            tile = {"ROWS": 1, "COLUMNS": 4096}
            default = Launch(tile, num_warps=8)
        others = [Launch(tile, num_warps) for num_warps in (4, 8, 16) if num_warps != default.num_warps]
        key = f"{dtype} {tile['ROWS']}x{tile['COLUMNS']} {is_one_block}"
        launch = tuned(kernel, key, default, others, device)
    return launch, (cdiv(rows, launch.blocks["ROWS"]),), is_one_block


def matrix_arguments(x: Tensor, causal: bool) -> tuple[int, int, int, int]:
    """rows, queries, visible and columns, as `rows_of_program` wants them, of a tensor (..., queries, columns)."""
    columns = x.size(-1)
    queries = x.size(-2) if causal else 1
    return x.numel() // columns, queries, columns - queries + 1, columns


@custom_op("kernels::softmax_forward")
def softmax_forward(x: Tensor, scale: float, causal: bool) -> Tensor:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.numel():
        source, matrix = rows_of(x), matrix_arguments(x, causal)
        launch, grid, is_one_block = softmax_launch("softmax_forward", matrix[0], matrix[3], x.dtype, x.device)
        kernel = softmax_forward_kernel if is_one_block else softmax_forward_online_kernel
        kernel[grid](source, y, source.stride(0), *matrix, scale, **launch.options)
    return y


@custom_op("kernels::softmax_backward")
def softmax_backward(dy: Tensor, y: Tensor, scale: float, causal: bool) -> Tensor:
    dx = torch.empty_like(y, memory_format=torch.contiguous_format)
    if y.numel():
        source, matrix = rows_of(dy), matrix_arguments(y, causal)
        launch, grid, is_one_block = softmax_launch("softmax_backward", matrix[0], matrix[3], y.dtype, y.device)
        kernel = softmax_backward_kernel if is_one_block else softmax_backward_online_kernel
        kernel[grid](source, y.contiguous(), dx, source.stride(0), *matrix, scale, **launch.options)
    return dx


@softmax_forward.register_fake
def _(x: Tensor, scale: float, causal: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@softmax_backward.register_fake
def _(dy: Tensor, y: Tensor, scale: float, causal: bool) -> Tensor:
    return torch.empty_like(y, memory_format=torch.contiguous_format)


def save_output(ctx: Any, inputs: tuple[Tensor, float, bool], output: Tensor) -> None:
    ctx.save_for_backward(output)
    _, ctx.scale, ctx.causal = inputs


def differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
    (y,) = ctx.saved_tensors
    return softmax_backward(dy, y, ctx.scale, ctx.causal), None, None


softmax_forward.register_autograd(differentiate, setup_context=save_output)


def softmax(x: Tensor, scale: float = 1.0, causal: bool = False) -> Tensor:
    """softmax(scale · x) over the last dimension: x (..., N) in float32, float16 or bfloat16 -> the same shape, dtype.

    causal: x is (..., queries, keys); keys after a query's own get weight 0, the last query standing at the last key,
    and a query without a key gives zeros. A row of only -inf gives NaN. Strides are free; a last dimension with gaps,
    or rows at uneven distances, cost a copy. Computed in float32 and rounded once.
    Raises TypeError for another dtype, ValueError for a device without Triton or a shape that has no such rows.
    """
    check(x, causal)
    return softmax_forward(x, float(scale), causal)


@once_per_signature
def check(x: Tensor, causal: bool) -> None:
    require("softmax", {"x": x})
    if x.dim() < 1 + causal:
        needed = "(..., queries, keys)" if causal else "(..., N)"
        raise ValueError(f"softmax: x has shape {tuple(x.shape)}; it must be {needed}")


def spec() -> Spec:
    from hypothesis import strategies as st

    from kernels.lab import Inputs, Mutant, Spec, Tolerance, Work

    def inputs(
        generator: torch.Generator, rank: int = 3, batch: int = 1, queries: int = 1, columns: int = 1,
        scale: float = 1.0, causal: bool = False, size: float = 1.0, special: str = "",
    ) -> Inputs:  # fmt: skip
        """`special` ("inf", "-inf", "nan") is what a third of x is, its first row, and its last up to the end."""
        x = size * torch.randn((batch, queries, columns)[3 - rank :], generator=generator, dtype=torch.float64)
        if special:
            x[torch.rand(x.shape, generator=generator) < 1 / 3] = float(special)
            rows = x.view(-1, columns)
            rows[0] = rows[-1, :-1] = float(special)
            rows[-1, -1] = 0.0
        return Inputs({"x": x}, {"scale": scale, "causal": causal and rank > 1}, gradients=("x",))

    def floor(quantity: str, inputs: Inputs, results: Mapping[str, Tensor], eps: float) -> float:
        """The backward starts from y as it was stored, rounded to its dtype."""
        if quantity == "y":
            return 0.0
        y, dy = results["y"], results["dy"].abs()
        terms = abs(inputs.options["scale"]) * y * (dy + (dy * y).sum(-1, keepdim=True))
        return eps / 2 * float(terms.norm())

    def work(element_size: int, rank: int = 3, batch: int = 1, queries: int = 1, columns: int = 1, **_: Any):
        elements = batch * queries * columns
        return Work(2 * elements * element_size, 5 * elements), Work(3 * elements * element_size, 4 * elements)

    def peers() -> dict[str, Callable[..., Any]]:
        found: dict[str, Callable[..., Any]] = {"torch": softmax_of_torch}
        with contextlib.suppress(ImportError):
            from liger_kernel.ops.softmax import LigerSoftmaxFunction  # pyright: ignore[reportMissingImports]

            found["liger"] = lambda x, scale, causal: LigerSoftmaxFunction.apply(masked(x * scale, causal))
        return found

    def masked(x: Tensor, causal: bool) -> Tensor:
        if not causal:
            return x
        queries, keys = x.shape[-2:]
        is_later = torch.ones(queries, keys, dtype=torch.bool, device=x.device).triu(keys - queries + 1)
        return x.masked_fill(is_later, -torch.inf)

    def softmax_of_torch(x: Tensor, scale: float = 1.0, causal: bool = False) -> Tensor:
        return torch.softmax(masked(x if scale == 1 else x * scale, causal), -1)

    rows = ({"queries": 64, "columns": columns} for columns in (128, 1024, 4096, 16384, 50304))
    return Spec(
        name="softmax",
        op=softmax,
        reference=softmax_reference,
        cases=st.fixed_dictionaries(
            {
                "rank": st.integers(1, 3),
                "batch": st.integers(1, 2),
                "queries": st.integers(1, 9),
                "columns": st.integers(1, 66) | st.sampled_from([128, 129, 300]),
                "scale": st.sampled_from([1.0, 0.125, -2.0, 0.0]),
                "causal": st.booleans(),
                "size": st.sampled_from([1.0, 1.0, 1.0, 30.0, 1000.0]),
                "special": st.sampled_from(["", "", "", "", "-inf", "-inf", "inf", "nan"]),
            }
        ),
        inputs=inputs,
        tolerance=Tolerance(floor),
        builds=(*rows, {"queries": 2048, "columns": 2048, "causal": True}),
        benchmarks=(
            {"queries": 65536, "columns": 128},
            {"queries": 16384, "columns": 1024},
            {"queries": 4096, "columns": 4096},
            {"queries": 4096, "columns": 16384},
            {"queries": 4096, "columns": 50304},
            {"batch": 16, "queries": 2048, "columns": 2048, "causal": True, "scale": 0.125},
        ),
        work=work,
        peers=peers,
        mutants=(
            Mutant("no maximum subtracted", "tl.exp(scores - tl.max(scores, 1, keep_dims=True))", "tl.exp(scores)"),
            Mutant("sum not rescaled", "total = total * tl.exp(maximum - pivot)", "total = total"),
            Mutant("no guard for -inf", 'pivot = tl.where(larger == -float("inf"), 0.0, larger)', "pivot = larger"),
            Mutant("diagonal off by one", "row % queries + visible", "row % queries + visible - 1"),
            Mutant(
                "first query is last",
                "return x.numel() // columns, queries, columns - queries + 1, columns",
                "return x.numel() // columns, queries, 1 if causal else columns, columns",
            ),
            Mutant(
                "stride ignored",
                "source.stride(0), *matrix, scale, **launch.options)\n    return y",
                "matrix[3], *matrix, scale, **launch.options)\n    return y",
            ),
            Mutant(
                "gradient not scaled",
                "tl.where(column < seen, scale * weights * (dweights - mean), 0.0)\n    tl",
                "tl.where(column < seen, weights * (dweights - mean), 0.0)\n    tl",
            ),
            Mutant(
                "mean not subtracted",
                "scale * weights * (dweights - mean), 0.0)\n        tl",
                "scale * weights * dweights, 0.0)\n        tl",
            ),
            Mutant(
                "products in bfloat16",
                "products += tl.where(column < seen, dweights * weights, 0.0)",
                "products += tl.where(column < seen, (dweights * weights).to(tl.bfloat16).to(tl.float32), 0.0)",
            ),
            Mutant(
                "store without mask",
                "weights = tl.where(column < seen, tl.exp(scores - maximum) / total, 0.0)\n"
                "        tl.store(y + row * columns + column, weights.to(y.dtype.element_ty), mask=inside)",
                "weights = tl.where(column < seen, tl.exp(scores - maximum) / total, 0.0)\n"
                "        tl.store(y + row * columns + column, weights.to(y.dtype.element_ty))",
            ),
        ),
    )
