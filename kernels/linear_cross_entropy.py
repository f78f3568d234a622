"""The head and its loss together, without ever holding the logits of all tokens.

    x = h Wᵀ,   ℓ = lse - (1-ε)·x_t - ε·mean_j x_j + z·lse²,   lse = log Σ_j exp(x_j),   t the target

Of a row's V logits the loss needs lse and x_t, the log-probability is x_t - lse, and the entropy is lse - E with
E = Σ_j p_j·x_j, p = softmax(x). So one op gives those three numbers of each row, and everything else is arithmetic on
them. The mean logit of label smoothing needs no logits at all: mean_j x_j = h · mean_j w_j. Gradient:

    dx_j = p_j·[dlse + dE·(1 + x_j - E)] + dx_t·[j = t],   dh = dx W,   dW = dxᵀ h
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cross_entropy import cross_entropy_reference
from kernels.launch import Launch, cdiv, generation, jit, require, tl


def linear_cross_entropy_reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
) -> Tensor:
    """hidden (N, C), weight (V, C), targets (N,) int64 -> (N,) loss of each row in nats, float32 (float64 for float64).

    A row whose target is `ignore_index` has loss 0 and no gradient.
    """
    is_counted = targets != ignore_index
    losses = cross_entropy_reference(_reference_logits(hidden, weight), targets * is_counted, label_smoothing, z_loss)
    return losses.masked_fill(~is_counted, 0.0)


def linear_logprobs_reference(
    hidden: Tensor, weight: Tensor, targets: Tensor, with_entropy: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """hidden (N, C), weight (V, C), targets (N,) int64 -> (N,) log-probability of each target, float32 (float64 for
    float64); with the entropy (N,) of each row's distribution, in nats, if asked for."""
    logprobs = torch.log_softmax(_reference_logits(hidden, weight), dim=-1)  # (N, V)
    chosen = logprobs.gather(-1, targets[:, None]).squeeze(-1)  # (N,)
    return (chosen, -(logprobs.exp() * logprobs).sum(-1)) if with_entropy else chosen


def _reference_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    return F.linear(hidden.to(wide), weight.to(wide)).to(wide)  # autocast may have made it narrow


# ---- a row's three numbers, in chunks of rows: plain PyTorch for any device


def _rows_at_once(rows: int, most: int) -> int:
    """Rows whose logits are held at a time: never more than a quarter of all."""
    return max(1, min(most, cdiv(rows, 4)))


_CHUNK = 256
"""Most rows whose logits the chunked version holds: a product of so many is as fast on a CPU as a larger one."""
_KERNEL_CHUNK = 2048
"""The same for the kernels' backward. Each chunk reads and writes dW once, which for so many costs a tenth of the
time of its products."""


@torch.library.custom_op("kernels::head_statistics_chunked", mutates_args=())
def _chunked(hidden: Tensor, weight: Tensor, targets: Tensor, with_expected: bool) -> tuple[Tensor, Tensor, Tensor]:
    """lse, the target's logit and, if asked for, the expected logit E of each row, (N,) each, at least float32."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    lse, target, expected = (torch.zeros(hidden.size(0), dtype=wide, device=hidden.device) for _ in range(3))
    step = _rows_at_once(hidden.size(0), _CHUNK)
    for start in range(0, hidden.size(0), step):
        rows = slice(start, start + step)
        logits = F.linear(hidden[rows], weight).to(wide)  # (rows, V)
        lse[rows] = torch.logsumexp(logits, dim=-1)
        target[rows] = logits.gather(-1, targets[rows, None]).squeeze(-1)
        if with_expected:
            expected[rows] = (logits - lse[rows, None]).exp_().mul_(logits).sum(-1)
    return lse, target, expected


@torch.library.custom_op("kernels::head_statistics_chunked_backward", mutates_args=())
def _chunked_backward(
    hidden: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, expected: Tensor,
    dlse: Tensor, dtarget: Tensor, dexpected: Tensor, with_expected: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dhidden and dweight. The gradients of the rows are known only now, so the logits are computed again."""
    wide = lse.dtype
    dhidden, dweight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=wide)
    step = _rows_at_once(hidden.size(0), _CHUNK)
    for start in range(0, hidden.size(0), step):
        rows = slice(start, start + step)
        logits = F.linear(hidden[rows], weight).to(wide)  # (rows, V)
        dlogits = (logits - lse[rows, None]).exp_()  # p so far
        slope = dlse[rows, None]
        if with_expected:
            slope = (logits.sub_(expected[rows, None]).add_(1)).mul_(dexpected[rows, None]).add_(slope)
        dlogits.mul_(slope).scatter_add_(1, targets[rows, None], dtarget[rows, None])
        _matrix_products(dlogits.to(weight.dtype), hidden[rows], weight, dhidden[rows], dweight)
    return dhidden, dweight.to(weight.dtype)


def _matrix_products(dlogits: Tensor, hidden: Tensor, weight: Tensor, dhidden: Tensor, dweight: Tensor) -> None:
    """Writes dhidden = dx W of some rows, and adds their dxᵀ h to dweight, which is float32 for half precision."""
    torch.mm(dlogits, weight, out=dhidden)
    if dweight.dtype == hidden.dtype:
        dweight.addmm_(dlogits.mT, hidden)
    else:
        dweight += dlogits.mT @ hidden


# ---- a row's three numbers, by kernels


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
    hidden, weight, targets, lse, target, expected, N, V, C, tiles, hidden_stride, weight_stride,
    WITH_EXPECTED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """ROWS rows against one part of the vocabulary, `tiles` tiles of it, by the online softmax (Milakov & Gimelshein
    2018, algorithm 3). lse and expected (parts, N) are of that part alone; the target stands in one part only."""
    # Programs that run at the same time share a part of the weight, which is then read from the L2 cache.
    row_tiles = tl.cdiv(N, ROWS)
    part = tl.program_id(0) // row_tiles
    row = (tl.program_id(0) % row_tiles) * ROWS + tl.arange(0, ROWS)
    t = tl.load(targets + row, mask=row < N, other=-1)
    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)  # Σ exp(x - highest)
    weighted = tl.zeros((ROWS,), tl.float32)  # Σ exp(x - highest) · x
    at_target = tl.zeros((ROWS,), tl.float32)
    for tile in range(part * tiles, tl.minimum((part + 1) * tiles, tl.cdiv(V, COLUMNS))):
        column = tile * COLUMNS + tl.arange(0, COLUMNS)
        x = _logits(hidden, weight, row, column, N, V, C, hidden_stride, weight_stride, ROWS, COLUMNS, DEPTH)
        at_target += tl.sum(tl.where(column[None, :] == t[:, None], x, 0.0), 1)
        new_highest = tl.maximum(highest, tl.max(tl.where(column[None, :] < V, x, float("-inf")), 1))
        shrink = tl.exp(highest - new_highest)
        p = tl.where(column[None, :] < V, tl.exp(x - new_highest[:, None]), 0.0)
        total = total * shrink + tl.sum(p, 1)
        if WITH_EXPECTED:
            weighted = weighted * shrink + tl.sum(p * x, 1)
        highest = new_highest
    place = part.to(tl.int64) * N + row
    tl.store(lse + place, highest + tl.log(total), mask=row < N)
    if WITH_EXPECTED:
        tl.store(expected + place, weighted / total, mask=row < N)
    is_here = (t >= part * tiles * COLUMNS) & (t < (part + 1) * tiles * COLUMNS)
    tl.store(target + row, at_target, mask=(row < N) & is_here)


@jit
def _backward_kernel(
    hidden, weight, targets, lse, expected, dlse, dtarget, dexpected, dlogits, N, V, C,
    hidden_stride, weight_stride, dlogits_stride,
    WITH_EXPECTED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """dx of one tile, from logits that are computed once more."""
    row_tiles = tl.cdiv(N, ROWS)
    row = (tl.program_id(0) % row_tiles) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(0) // row_tiles) * COLUMNS + tl.arange(0, COLUMNS)
    x = _logits(hidden, weight, row, column, N, V, C, hidden_stride, weight_stride, ROWS, COLUMNS, DEPTH)
    p = tl.exp(x - tl.load(lse + row, mask=row < N, other=0.0)[:, None])
    slope = tl.load(dlse + row, mask=row < N, other=0.0)[:, None]
    if WITH_EXPECTED:
        mean = tl.load(expected + row, mask=row < N, other=0.0)[:, None]
        slope = slope + tl.load(dexpected + row, mask=row < N, other=0.0)[:, None] * (1 + x - mean)
    is_target = column[None, :] == tl.load(targets + row, mask=row < N, other=-1)[:, None]
    dx = p * slope + tl.where(is_target, tl.load(dtarget + row, mask=row < N, other=0.0)[:, None], 0.0)
    place = dlogits + row.to(tl.int64)[:, None] * dlogits_stride + column[None, :]
    tl.store(place, dx, mask=(row[:, None] < N) & (column[None, :] < V))


def _launch(hidden: Tensor) -> Launch:
    """Tiles of logits: 8 warps hold 128 × 256 of them, which is what feeds Hopper's tensor cores."""
    target = generation(hidden.device)
    if target == 0:  # the interpreter: small tiles, so that small inputs have several
        return Launch({"ROWS": 16, "COLUMNS": 32, "DEPTH": 32})
    if hidden.dtype == torch.float32:  # twice the bytes, and no tensor cores
        return Launch({"ROWS": 64, "COLUMNS": 64, "DEPTH": 32}, num_warps=4, num_stages=2)
    if target >= 90:
        return Launch({"ROWS": 128, "COLUMNS": 256, "DEPTH": 64}, num_warps=8, num_stages=3)
    return Launch({"ROWS": 128, "COLUMNS": 128, "DEPTH": 32}, num_warps=8, num_stages=4)


def _tiles_a_program(row_tiles: int, column_tiles: int, device: torch.device) -> int:
    """Tiles of columns that one program of the forward goes through, so that there are some 2,000 programs, enough for
    every multiprocessor to have its share whatever the number of rows."""
    programs = 2048 if generation(device) else 8
    return max(1, row_tiles * column_tiles // programs)


@torch.library.custom_op("kernels::head_statistics", mutates_args=())
def _fused(hidden: Tensor, weight: Tensor, targets: Tensor, with_expected: bool) -> tuple[Tensor, Tensor, Tensor]:
    """As `_chunked`; the logits stay in the registers of the program that computes them."""
    hidden, weight, targets = _rows(hidden), _rows(weight), targets.contiguous()
    (N, C), V = hidden.shape, weight.size(0)
    launch = _launch(hidden)
    row_tiles, column_tiles = cdiv(N, launch.blocks["ROWS"]), cdiv(V, launch.blocks["COLUMNS"])
    tiles = _tiles_a_program(row_tiles, column_tiles, hidden.device)
    parts = cdiv(column_tiles, tiles)
    lse, expected = hidden.new_empty((2, parts, N), dtype=torch.float32)
    target = hidden.new_empty(N, dtype=torch.float32)
    if N:
        _forward_kernel[(row_tiles * parts,)](
            hidden, weight, targets, lse, target, expected, N, V, C, tiles, hidden.stride(0), weight.stride(0),
            with_expected, **launch.options,
        )  # fmt: skip
    if not with_expected:
        return torch.logsumexp(lse, 0), target, torch.zeros_like(target)
    # A part's share of the probability is its share of Σ exp(x).
    return torch.logsumexp(lse, 0), target, (torch.softmax(lse, 0) * expected).sum(0)


@torch.library.custom_op("kernels::head_statistics_backward", mutates_args=())
def _fused_backward(
    hidden: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, expected: Tensor,
    dlse: Tensor, dtarget: Tensor, dexpected: Tensor, with_expected: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `_chunked_backward`, with dx from a kernel, rounded to the inputs' dtype for the two products that follow."""
    hidden, weight, targets = _rows(hidden), _rows(weight), targets.contiguous()
    (N, C), V = hidden.shape, weight.size(0)
    dhidden, dweight = hidden.new_empty(N, C), weight.new_zeros(V, C, dtype=torch.float32)
    step = _rows_at_once(N, _KERNEL_CHUNK)
    dlogits = hidden.new_empty(step, 64 * cdiv(V, 64))  # rows that begin at whole cache lines
    launch = _launch(hidden)
    row_numbers = [t.contiguous() for t in (targets, lse, expected, dlse, dtarget, dexpected)]
    for start in range(0, N, step):
        some = hidden[start : start + step]
        numbers = [t[start : start + step] for t in row_numbers]
        grid = (cdiv(len(some), launch.blocks["ROWS"]) * cdiv(V, launch.blocks["COLUMNS"]),)
        _backward_kernel[grid](
            some, weight, *numbers, dlogits, len(some), V, C, some.stride(0), weight.stride(0), dlogits.stride(0),
            with_expected, **launch.options,
        )  # fmt: skip
        _matrix_products(dlogits[: len(some), :V], some, weight, dhidden[start : start + step], dweight)
    return dhidden, dweight.to(weight.dtype)


def _rows(tensor: Tensor) -> Tensor:
    """The same, each row contiguous."""
    return tensor if tensor.stride(1) == 1 else tensor.contiguous()


# ---- autograd


def _fake(hidden: Tensor, weight: Tensor, targets: Tensor, with_expected: bool) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    lse, target, expected = (hidden.new_empty(hidden.size(0), dtype=wide) for _ in range(3))
    return lse, target, expected


def _fake_backward(hidden: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(hidden), torch.empty_like(weight)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, ctx.with_expected = inputs
    lse, _, expected = output
    ctx.save_for_backward(hidden, weight, targets, lse, expected)


def _register(op: Any, backward_op: Any) -> None:
    """Makes `op` differentiable by `backward_op`, and both known to torch.compile."""

    def backward(ctx: Any, dlse: Tensor, dtarget: Tensor, dexpected: Tensor) -> tuple[Tensor | None, ...]:
        dhidden, dweight = backward_op(*ctx.saved_tensors, dlse, dtarget, dexpected, ctx.with_expected)
        return dhidden, dweight, None, None

    op.register_fake(_fake)
    backward_op.register_fake(_fake_backward)
    op.register_autograd(backward, setup_context=_setup)


_register(_chunked, _chunked_backward)
_register(_fused, _fused_backward)


Statistics = Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor, Tensor]]


# ---- losses and log-probabilities: arithmetic on three numbers a row


def _losses(
    statistics: Statistics,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    label_smoothing: float,
    z_loss: float,
    ignore_index: int,
) -> Tensor:
    hidden, weight = _under_autocast(hidden, weight)
    is_counted = targets != ignore_index
    lse, target, _ = statistics(hidden, weight, targets * is_counted, False)
    losses = lse - (1 - label_smoothing) * target  # (N,)
    if label_smoothing:
        mean_logit = (hidden.to(lse.dtype) * weight.mean(0, dtype=lse.dtype)).sum(-1)  # h · mean_j w_j
        losses = losses - label_smoothing * mean_logit
    if z_loss:
        losses = losses + z_loss * lse.square()
    return losses.masked_fill(~is_counted, 0.0)


def _logprobs(
    statistics: Statistics, hidden: Tensor, weight: Tensor, targets: Tensor, with_entropy: bool
) -> Tensor | tuple[Tensor, Tensor]:
    lse, target, expected = statistics(*_under_autocast(hidden, weight), targets, with_entropy)
    return (target - lse, lse - expected) if with_entropy else target - lse


def _under_autocast(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """In the format that a matrix product would take here."""
    device = hidden.device.type
    if not torch.is_autocast_enabled(device) or hidden.dtype == torch.float64:  # which autocast leaves alone
        return hidden, weight
    dtype = torch.get_autocast_dtype(device)
    return hidden.to(dtype), weight.to(dtype)


def linear_cross_entropy_chunked(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
) -> Tensor:
    """As `linear_cross_entropy`, in plain PyTorch for any device: the logits of a few hundred rows at a time."""
    return _losses(_chunked, hidden, weight, targets, label_smoothing, z_loss, ignore_index)


def linear_logprobs_chunked(
    hidden: Tensor, weight: Tensor, targets: Tensor, with_entropy: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """As `linear_logprobs`, in plain PyTorch for any device: the logits of a few hundred rows at a time."""
    return _logprobs(_chunked, hidden, weight, targets, with_entropy)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
) -> Tensor:
    """hidden (N, C), weight (V, C), targets (N,) int64 -> (N,) loss of each row in nats, float32.

    A row whose target is `ignore_index` has loss 0 and no gradient. Under autocast the product is computed as a matrix
    product would be. Errors: TypeError for dtypes, ValueError for shapes and devices.
    """
    _check("linear_cross_entropy", hidden, weight, targets)
    return _losses(_fused, hidden, weight, targets, label_smoothing, z_loss, ignore_index)


def linear_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, with_entropy: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """hidden (N, C), weight (V, C), targets (N,) int64 -> (N,) log-probability of each target, float32; with the
    entropy (N,) of each row's distribution, in nats, if asked for. Otherwise as `linear_cross_entropy`."""
    _check("linear_logprobs", hidden, weight, targets)
    return _logprobs(_fused, hidden, weight, targets, with_entropy)


def _check(op: str, hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    require(op, {"hidden": hidden, "weight": weight})
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.size(1) != weight.size(1) or hidden.size(1) == 0:
        raise ValueError(f"{op}: hidden is {tuple(hidden.shape)}, weight {tuple(weight.shape)}; not (N, C) and (V, C)")
    if targets.shape != hidden.shape[:1] or targets.device != hidden.device:
        raise ValueError(
            f"{op}: targets are {tuple(targets.shape)} on {targets.device}; there must be {hidden.size(0)} on "
            f"{hidden.device}"
        )
