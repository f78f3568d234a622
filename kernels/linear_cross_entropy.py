"""The head and its loss together, without ever holding the logits of all tokens.

    x = h Wᵀ,   ℓ = lse - (1-ε)·x_t - ε·mean_j x_j + z·lse²,   lse = log Σ_j exp(x_j),   t the target

Of a row's V logits the loss needs lse and x_t; the log-probability is x_t - lse, and the entropy lse - E with
E = Σ_j p_j·x_j, p = softmax(x). So one op gives those three numbers of each row, and all else is arithmetic on them.
The mean logit of label smoothing needs no logits at all: mean_j x_j = h · mean_j w_j. Gradient:

    dx_j = p_j·[dlse + dE·(1 + x_j - E)] + dx_t·[j = t],   dh = dx W,   dW = dxᵀ h

The forward multiplies tile by tile, as Cut Cross-Entropy does (Wijmans et al. 2024, algorithms 1 and 2), with the
online softmax over the tiles of a part of the vocabulary; the parts are put together afterwards, without atomics. It
saves lse and E. The backward needs each row's own gradient, which comes only then (Liger's chunks, Hsu et al. 2024,
differentiate in the forward, and so the mean loss alone): it computes the logits once more, 8·N·V·C FLOPs in all where
keeping them takes 6. Cut Cross-Entropy adds dh and dW up with atomics, in an order that changes from run to run. Here a
kernel writes dx of some rows, in the inputs' dtype, and two matrix products read it, always in the same order:
deterministic, at the speed of the vendor's products, and never more than `_CHUNK` rows, or a quarter of all, in memory.

On Hopper the forward's tiles of 128 × 256 logits spill up to 232 bytes a thread, with the entropy up to 272, once a
tile: the product's loop has none. Smaller tiles spill nothing, but read h and W half again as often.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.checks import require_targets
from kernels.launch import (
    Launch,
    cdiv,
    chosen_once,
    custom_op,
    generation,
    jit,
    once_per_signature,
    require,
    tl,
    tuned,
)
from kernels.linear_cross_entropy_chunked import (
    linear_cross_entropy_reference,
    linear_logprobs_reference,
    logprobs_of,
    losses_of,
    matrix_products,
    register,
    rows_at_once,
)

if TYPE_CHECKING:
    from kernels.lab import Spec


_CHUNK = 2048
"""Most rows whose dx the backward holds. Each chunk reads and writes all of dW, for 4·rows FLOPs an element."""


def _chunk(rows: int, device: torch.device) -> int:
    """Rows of dx at a time. In the interpreter one tile of them, so that a few hundred rows are many chunks, which add
    up as those of millions do on a GPU; unless they are so many that chunks may be of the size that they have there."""
    is_small = generation(device) == 0 and rows <= 1024
    return rows_at_once(rows, 16 if is_small else _CHUNK)


@jit
def _logits(
    hidden, weight, row, column, N, V, C, hidden_stride, weight_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """x = h Wᵀ of some rows and columns, (ROWS, COLUMNS) float32; it never leaves the registers."""
    x = tl.zeros((ROWS, COLUMNS), tl.float32)
    h_rows = hidden + row.to(tl.int64)[:, None] * hidden_stride
    w_rows = weight + column.to(tl.int64)[:, None] * weight_stride
    for start in range(0, C, DEPTH):
        c = start + tl.arange(0, DEPTH)[None, :]
        h = tl.load(h_rows + c, mask=(row[:, None] < N) & (c < C), other=0.0)  # (ROWS, DEPTH)
        w = tl.load(w_rows + c, mask=(column[:, None] < V) & (c < C), other=0.0)  # (COLUMNS, DEPTH)
        x = tl.dot(h, w.T, x, input_precision="ieee")
    return x


@jit
def _forward_kernel(
    hidden, weight, targets, lse, target, entropy, N, V, C, tiles, hidden_stride, weight_stride,
    WITH_ENTROPY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """ROWS rows against one part of the vocabulary, `tiles` tiles of it, by the online softmax (Milakov & Gimelshein
    2018, algorithm 3). lse and entropy (parts, N) are of that part alone; the target stands in one part only."""
    # Programs that run at the same time share a part of the weight, which is then read from the L2 cache.
    row_tiles = tl.cdiv(N, ROWS)
    part = tl.program_id(0) // row_tiles
    row = (tl.program_id(0) % row_tiles) * ROWS + tl.arange(0, ROWS)
    t = tl.load(targets + row, mask=row < N, other=-1)
    t = tl.where((t >= 0) & (t < V), t, -1).to(tl.int32)  # half the registers; one that is unknown stands nowhere
    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)  # Σ exp(x - highest)
    weighted = tl.zeros((ROWS,), tl.float32)  # Σ exp(x - highest) · (x - highest)
    at_target = tl.zeros((ROWS,), tl.float32)
    for tile in range(part * tiles, tl.minimum((part + 1) * tiles, tl.cdiv(V, COLUMNS))):
        column = tile * COLUMNS + tl.arange(0, COLUMNS)
        x = _logits(hidden, weight, row, column, N, V, C, hidden_stride, weight_stride, ROWS, COLUMNS, DEPTH)
        at_target += tl.sum(tl.where(column[None, :] == t[:, None], x, 0.0), 1)
        new_highest = tl.maximum(highest, tl.max(tl.where(column[None, :] < V, x, float("-inf")), 1))
        shrink = tl.exp(highest - new_highest)
        p = tl.where(column[None, :] < V, tl.exp(x - new_highest[:, None]), 0.0)
        if WITH_ENTROPY:
            shift = tl.where(total > 0, highest - new_highest, 0.0)  # before the first tile the highest is -∞
            weighted = (weighted + total * shift) * shrink + tl.sum(p * (x - new_highest[:, None]), 1)
        total = total * shrink + tl.sum(p, 1)
        highest = new_highest
    place = part.to(tl.int64) * N + row
    tl.store(lse + place, highest + tl.log(total), mask=row < N)
    if WITH_ENTROPY:
        # Both terms are at least 0. lse - Σ p x would be the difference of two numbers as large as the logits.
        tl.store(entropy + place, tl.log(total) - weighted / total, mask=row < N)
    is_here = (t >= part * tiles * COLUMNS) & (t < (part + 1) * tiles * COLUMNS)
    tl.store(target + row, at_target, mask=(row < N) & is_here)


@jit
def _backward_kernel(
    hidden, weight, targets, lse, entropy, dlse, dtarget, dentropy, dlogits, N, V, C,
    hidden_stride, weight_stride, dlogits_stride,
    WITH_ENTROPY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """dx of one tile, from logits that are computed once more."""
    row_tiles = tl.cdiv(N, ROWS)
    row = (tl.program_id(0) % row_tiles) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(0) // row_tiles) * COLUMNS + tl.arange(0, COLUMNS)
    x = _logits(hidden, weight, row, column, N, V, C, hidden_stride, weight_stride, ROWS, COLUMNS, DEPTH)
    logprob = x - tl.load(lse + row, mask=row < N, other=0.0)[:, None]
    slope = tl.load(dlse + row, mask=row < N, other=0.0)[:, None]
    if WITH_ENTROPY:
        centered = logprob + tl.load(entropy + row, mask=row < N, other=0.0)[:, None]  # dH/dx = -p · (log p + H)
        slope = slope - tl.load(dentropy + row, mask=row < N, other=0.0)[:, None] * centered
    is_target = column[None, :] == tl.load(targets + row, mask=row < N, other=-1)[:, None]
    dx = tl.exp(logprob) * slope + tl.where(is_target, tl.load(dtarget + row, mask=row < N, other=0.0)[:, None], 0.0)
    place = dlogits + row.to(tl.int64)[:, None] * dlogits_stride + column[None, :]
    tl.store(place, dx, mask=(row[:, None] < N) & (column[None, :] < V))


def _tile(rows: int, columns: int, depth: int, num_warps: int, num_stages: int) -> Launch:
    return Launch({"ROWS": rows, "COLUMNS": columns, "DEPTH": depth}, num_warps, num_stages)


def _launch(kernel: str, width: int, dtype: torch.dtype, device: torch.device) -> Launch:
    """Tiles of logits: 8 warps hold 128 × 256 of them, which is what feeds Hopper's tensor cores."""
    target = generation(device)
    if target == 0:  # the interpreter: small tiles, so that small inputs have several
        return _tile(16, 32, 32, 4, 2)
    if dtype == torch.float32:  # twice the bytes, and no tensor cores
        default, others = _tile(64, 64, 32, 4, 2), [_tile(128, 64, 32, 8, 2)]
    elif target in (90, 100):
        default, others = _tile(128, 256, 64, 8, 3), [_tile(128, 128, 64, 8, 4), _tile(256, 128, 64, 8, 3)]
    else:
        default, others = _tile(128, 128, 32, 8, 4), [_tile(128, 128, 64, 8, 3), _tile(128, 256, 32, 8, 3)]
    return tuned(kernel, f"{dtype} {width}", default, others, device)


def _tiles_a_program(row_tiles: int, column_tiles: int, device: torch.device) -> int:
    """Tiles of columns that one program of the forward goes through, so that there are some 2,000 programs, enough for
    every multiprocessor to have its share whatever the number of rows."""
    programs = 2048 if generation(device) else 2
    return max(1, row_tiles * column_tiles // programs)


@chosen_once
def _forward_plan(
    rows: int, vocabulary: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[Launch, tuple[int], int, int]:
    """The launch, its grid, the tiles of columns of one program, and the parts of the vocabulary."""
    launch = _launch("head_statistics", width, dtype, device)
    row_tiles, column_tiles = cdiv(rows, launch.blocks["ROWS"]), cdiv(vocabulary, launch.blocks["COLUMNS"])
    tiles = _tiles_a_program(row_tiles, column_tiles, device)
    parts = cdiv(column_tiles, tiles)
    return launch, (row_tiles * parts,), tiles, parts


@chosen_once
def _backward_plan(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> tuple[Launch, int]:
    """The launch, and the rows of dx at a time."""
    return _launch("head_statistics_backward", width, dtype, device), _chunk(rows, device)


@custom_op("kernels::head_statistics")
def _fused(hidden: Tensor, weight: Tensor, targets: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor, Tensor]:
    """As `_chunked`; the logits stay in the registers of the program that computes them."""
    hidden, weight, targets = _rows(hidden), _rows(weight), targets.contiguous()
    (N, C), V = hidden.shape, weight.size(0)
    launch, grid, tiles, parts = _forward_plan(N, V, C, hidden.dtype, hidden.device)
    lse, entropy = hidden.new_empty((2, parts, N), dtype=torch.float32)
    target = hidden.new_empty(N, dtype=torch.float32).fill_(float("nan"))  # unknown targets stand in no part
    if N:
        _forward_kernel[grid](
            hidden, weight, targets, lse, target, entropy, N, V, C, tiles, hidden.stride(0), weight.stride(0),
            with_entropy, **launch.options,
        )  # fmt: skip
    if not with_entropy:
        return torch.logsumexp(lse, 0), target, torch.zeros_like(target)
    # A part's share of the probability is its share of Σ exp(x); which part it is adds to the entropy.
    log_share = torch.log_softmax(lse, 0)
    return torch.logsumexp(lse, 0), target, (log_share.exp() * (entropy - log_share)).sum(0)


@custom_op("kernels::head_statistics_backward")
def _fused_backward(
    hidden: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, entropy: Tensor,
    dlse: Tensor, dtarget: Tensor, dentropy: Tensor, with_entropy: bool, with_dweight: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `_chunked_backward`, with dx from a kernel, rounded to the inputs' dtype for the two products that follow."""
    hidden, weight, targets = _rows(hidden), _rows(weight), targets.contiguous()
    (N, C), V = hidden.shape, weight.size(0)
    dhidden = hidden.new_empty(N, C)
    dweight = weight.new_zeros((V, C) if with_dweight else 0, dtype=torch.float32)
    launch, step = _backward_plan(N, C, hidden.dtype, hidden.device)
    dlogits = hidden.new_empty(step, 64 * cdiv(V, 64))  # rows that begin at whole cache lines
    row_numbers = [t.contiguous() for t in (targets, lse, entropy, dlse, dtarget, dentropy)]
    for start in range(0, N, step):
        some = hidden[start : start + step]
        numbers = [t[start : start + step] for t in row_numbers]
        grid = (cdiv(len(some), launch.blocks["ROWS"]) * cdiv(V, launch.blocks["COLUMNS"]),)
        _backward_kernel[grid](
            some, weight, *numbers, dlogits, len(some), V, C, some.stride(0), weight.stride(0), dlogits.stride(0),
            with_entropy, **launch.options,
        )  # fmt: skip
        matrix_products(dlogits[: len(some), :V], some, weight, dhidden[start : start + step], dweight)
    return dhidden, dweight.to(weight.dtype)


def _rows(tensor: Tensor) -> Tensor:
    """The same, each row contiguous."""
    return tensor if tensor.stride(1) == 1 else tensor.contiguous()


register(_fused, _fused_backward)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
) -> Tensor:
    """hidden (N, C), weight (V, C), targets (N,) int64 -> (N,) loss of each row in nats, float32.

    A row whose target is `ignore_index` has loss 0 and no gradient. One whose target is outside of the vocabulary has
    loss NaN, and with it its row of hidden's gradient, and weight's gradient, to which every row adds; KERNELS_DEBUG=1
    raises ValueError instead. Autocast changes nothing: hidden and weight come in the dtype to multiply in. Errors:
    TypeError for dtypes, ValueError for shapes and devices.
    """
    _check("linear_cross_entropy", hidden, weight, targets)
    require_targets("linear_cross_entropy", targets, len(weight), ignore_index)
    return losses_of(_fused, hidden, weight, targets, label_smoothing, z_loss, ignore_index)


def linear_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, with_entropy: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """hidden (N, C), weight (V, C), targets (N,) int64 -> (N,) log-probability of each target, float32; with the
    entropy (N,) of each row's distribution, in nats, if asked for. Otherwise as `linear_cross_entropy`."""
    _check("linear_logprobs", hidden, weight, targets)
    require_targets("linear_logprobs", targets, len(weight))
    return logprobs_of(_fused, hidden, weight, targets, with_entropy)


@once_per_signature
def _check(op: str, hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    require(op, {"hidden": hidden, "weight": weight})
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.size(1) != weight.size(1) or hidden.size(1) == 0:
        raise ValueError(f"{op}: hidden is {tuple(hidden.shape)}, weight {tuple(weight.shape)}; not (N, C) and (V, C)")
    if hidden.dtype != weight.dtype:
        raise TypeError(f"{op}: hidden is {hidden.dtype} and weight {weight.dtype}; they must be of one dtype")
    if targets.shape != hidden.shape[:1] or targets.device != hidden.device or targets.dtype != torch.int64:
        given = f"{targets.dtype} {tuple(targets.shape)} on {targets.device}"
        raise ValueError(f"{op}: targets are {given}; there must be int64 ({hidden.size(0)},) on {hidden.device}")


def linear_cross_entropy_spec() -> Spec:
    """What the lab checks, compiles and measures."""
    from kernels.linear_cross_entropy_lab import describe_linear_cross_entropy

    return describe_linear_cross_entropy(linear_cross_entropy, linear_cross_entropy_reference)


def linear_logprobs_spec() -> Spec:
    from kernels.linear_cross_entropy_lab import describe_linear_logprobs

    return describe_linear_logprobs(linear_logprobs, linear_logprobs_reference)
