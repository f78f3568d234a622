"""Attention of one query a sequence over a cache of keys and values, for generation; contiguous or in pages.

    o = Σ_j p_j v_j,   p = softmax(scale · K q)   over the cache's slots start ≤ j < end of the sequence

A single query leaves a GPU idle if one program reads all keys of a head, so they are split among several
(Flash-Decoding: Dao, Haziza, Massa & Sizov 2023). Split s keeps its own softmax and yields o_s and lse_s; then

    o = Σ_s w_s·o_s / Σ_s w_s,   w_s = exp(lse_s - max_s lse_s)

Keys and values are read once for all query heads that share them: 2·B·K·T·D elements, which is all the time there is;
4·B·H·T·D FLOPs. A cache in pages (Kwon et al. 2023, PagedAttention) finds slot j in page table[j // page] at row
j % page; a contiguous one is the case of one page a sequence. Nothing outside of [start, end) is read. Forward only.

Bounds outside of the cache and pages outside of the pool make NaN of the queries that they concern (`kernels.checks`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.attention import MAX_HEAD_DIM, attention_reference
from kernels.attention_forward import capped_scores, load_rows, near, padded_head_dim, score_unit
from kernels.checks import require_indices, require_values
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

if TYPE_CHECKING:
    from kernels.lab import Spec

# By the bytes of one head's row, as in `attention_forward`: the launch, and the most query heads of a program. Every
# generation has the shared memory for these.
LAUNCHES: dict[int, tuple[Launch, int]] = {
    256: (Launch({"BLOCK_K": 64}, num_warps=4, num_stages=3), 64),
    512: (Launch({"BLOCK_K": 32}, num_warps=4, num_stages=2), 32),
    1024: (Launch({"BLOCK_K": 16}, num_warps=4, num_stages=2), 16),
}
INTERPRETED = (Launch({"BLOCK_K": 16}), 16)
OTHERS = [Launch({"BLOCK_K": keys}, warps, stages) for keys in (32, 64, 128) for warps in (2, 4) for stages in (2, 4)]
# By generation: programs that keep the device busy, two for each multiprocessor of the largest.
PROGRAMS = {0: 8, 80: 216, 90: 264, 100: 296}
MAX_SPLITS = 64


def decode_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    scale: float | None = None,
    soft_cap: float = 0.0,
) -> Tensor:
    """q (B, H, D), k and v (B, K, capacity, D) -> (B, H, D); as `decode_attention`."""
    capacity = k.size(2)
    slot = torch.arange(capacity, device=q.device)
    may_attend = torch.ones(q.size(0), capacity, dtype=torch.bool, device=q.device)
    is_outside = torch.zeros(q.size(0), dtype=torch.bool, device=q.device)
    if starts is not None:
        may_attend &= slot >= starts[:, None]
    if ends is not None:
        may_attend &= slot < ends[:, None]
    for name, bounds in (("starts", starts), ("ends", ends)):
        if bounds is not None:
            require_indices("decode_attention", name, bounds, capacity + 1, f"a cache of {capacity} slots")
            is_outside |= (bounds < 0) | (bounds > capacity)
    o = attention_reference(q[:, :, None], k, v, may_attend[:, None, None], scale=scale, soft_cap=soft_cap)[:, :, 0]
    return o.masked_fill(is_outside[:, None, None], math.nan)


def paged_decode_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    lengths: Tensor,
    scale: float | None = None,
    soft_cap: float = 0.0,
) -> Tensor:
    """q (B, H, D), k and v (pages, K, page, D), table (B, N) -> (B, H, D); as `paged_decode_attention`."""
    _require_pages(table, lengths, k)
    is_unknown = (table < 0) | (table >= k.size(0))  # (B, N)
    lost = (is_unknown & _is_used(table, lengths, k.size(2))).any(1)  # (B,)
    table = table.long().masked_fill(is_unknown, k.size(0))
    # One more page, for those that are unknown.
    k, v = (F.pad(x, (0, 0) * 3 + (0, 1))[table].transpose(1, 2).flatten(2, 3) for x in (k, v))  # (B, K, N·page, D)
    o = decode_attention_reference(q, k, v, None, lengths, scale, soft_cap)
    return o.masked_fill(lost[:, None, None], math.nan)


def _is_used(table: Tensor, lengths: Tensor, page: int) -> Tensor:
    """(B, N), True where a page of the table holds tokens of its sequence."""
    return torch.arange(table.size(1), device=table.device) * page < lengths[:, None]


def _require_pages(table: Tensor, lengths: Tensor, k: Tensor) -> None:
    pages, _, page, _ = k.shape

    def explain(place: tuple[int, ...]) -> str:
        row, number = place
        return (
            f"table[{row}, {number}] is {int(table[place])}, outside of a pool of {pages} pages: it must be from 0 to "
            f"{pages - 1}, for a sequence of {int(lengths[row])} tokens in pages of {page}"
        )

    op, most = "paged_decode_attention", table.size(1) * page
    require_indices(op, "lengths", lengths, most + 1, f"a table of {table.size(1)} pages of {page} tokens")
    is_known = (table >= 0) & (table < pages)
    require_values(op, lambda: is_known | ~_is_used(table, lengths, page), explain)


@jit
def load_bounds(starts, ends, batch, capacity):
    """(start, end) of a sequence's slots, and whether they are within the cache; none are read otherwise."""
    start, end = tl.load(starts + batch), tl.load(ends + batch)
    is_valid = (start >= 0) & (start <= capacity) & (end >= 0) & (end <= capacity)
    return tl.where(is_valid, start, 0).to(tl.int32), tl.where(is_valid, end, 0).to(tl.int32), is_valid


@jit
def _split_kernel(
    q, k, v, table, starts, ends, partial, lse, q_strides, k_strides, v_strides, table_stride,
    pages, page, capacity, group, scale,
    SOFT_CAP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, HEADS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    split, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    parts = tl.cdiv(group, HEADS)  # of the query heads that share a key/value head
    kv_head, part = (tl.program_id(1) // parts).to(tl.int64), tl.program_id(1) % parts
    splits = tl.num_programs(0)
    start, end, _ = load_bounds(starts, ends, batch, capacity)
    share = tl.cdiv(tl.cdiv(tl.maximum(end - start, 0), splits), BLOCK_K) * BLOCK_K
    begin = start + split * share
    until = tl.minimum(begin + share, end)

    member = part * HEADS + tl.arange(0, HEADS)
    head = kv_head * group + member
    channel = tl.arange(0, BLOCK_D)
    q_pointers = q + batch * q_strides[0] + head.to(tl.int64)[:, None] * q_strides[1] + channel[None, :] * q_strides[2]
    q_block = load_rows(q_pointers, member < group, D, BLOCK_D, True)
    unit = score_unit(scale, SOFT_CAP)
    acc = tl.zeros([HEADS, BLOCK_D], tl.float32)
    m = tl.full([HEADS], -float("inf"), tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    for block in range(begin, until, BLOCK_K):
        slot = block + tl.arange(0, BLOCK_K)
        exists = slot < until
        its_page = tl.load(table + batch * table_stride + slot // page, mask=exists, other=0).to(tl.int64)
        is_known = (its_page >= 0) & (its_page < pages)
        row = (slot % page).to(tl.int64)
        k_rows = k + its_page * k_strides[0] + kv_head * k_strides[1] + row * k_strides[2]
        v_rows = v + its_page * v_strides[0] + kv_head * v_strides[1] + row * v_strides[2]
        k_block = load_rows(k_rows[:, None] + channel[None, :] * k_strides[3], exists & is_known, D, BLOCK_D, True)
        v_block = load_rows(v_rows[:, None] + channel[None, :] * v_strides[3], exists & is_known, D, BLOCK_D, True)
        s = capped_scores(tl.dot(q_block, tl.trans(k_block), input_precision="ieee"), scale, SOFT_CAP)
        s = tl.where(is_known[None, :], s, float("nan"))
        s = tl.where(exists[None, :], s, -float("inf"))  # (HEADS, BLOCK_K)
        larger = tl.maximum(m, tl.max(s, 1) * unit)
        shift = tl.where(larger == -float("inf"), 0.0, larger)  # for keys so large that all scores are -inf
        p = tl.exp2(s * unit - shift[:, None])
        alpha = tl.exp2(m - shift)
        total = total * alpha + tl.sum(p, 1)
        acc = tl.dot(p.to(v_block.dtype), v_block, acc * alpha[:, None], input_precision="ieee")
        m = larger
    # A split without a slot has lse = -inf, and any finite o.
    total = tl.where(total == 0.0, 1.0, total)
    at = ((batch * (tl.num_programs(1) // parts) + kv_head) * group + member) * splits + split
    tl.store(lse + at, m + tl.log2(total), mask=member < group)
    is_written = (member < group)[:, None] & (channel < D)[None, :]
    tl.store(partial + at[:, None] * D + channel[None, :], acc / total[:, None], mask=is_written)


@jit
def _combine_kernel(
    partial, lse, o, starts, ends, capacity, heads, splits, D: tl.constexpr, BLOCK_D: tl.constexpr, SPLITS: tl.constexpr
):  # fmt: skip
    """One program a query head; lse is in base 2."""
    query = tl.program_id(0).to(tl.int64)
    split, channel = tl.arange(0, SPLITS), tl.arange(0, BLOCK_D)
    is_split, is_channel = split < splits, channel < D
    lse_block = tl.load(lse + query * splits + split, mask=is_split, other=-float("inf"))
    largest = tl.max(lse_block, 0)
    weights = tl.exp2(lse_block - tl.where(largest == -float("inf"), 0.0, largest))
    pointers = partial + (query * splits + split)[:, None] * D + channel[None, :]
    parts = tl.load(pointers, mask=is_split[:, None] & is_channel[None, :], other=0.0)  # (SPLITS, BLOCK_D)
    start, end, is_valid = load_bounds(starts, ends, query // heads, capacity)
    total = tl.where(start < end, tl.sum(weights, 0), 1.0)  # an empty sequence gives 0
    total = tl.where(is_valid, total, float("nan"))
    mean = tl.sum(weights[:, None] * parts, 0) / total
    tl.store(o + query * D + channel, mean, mask=is_channel)


def _launch(head_dim: int, dtype: torch.dtype, device: torch.device) -> tuple[Launch, int, int]:
    """The launch, the most query heads of a program, and the programs that keep the device busy."""
    target, width = generation(device), padded_head_dim(head_dim)
    programs = PROGRAMS[max(known for known in PROGRAMS if known <= target)]
    if target == 0:
        return *INTERPRETED, programs
    row_bytes = width * dtype.itemsize
    default, heads = LAUNCHES[min(size for size in LAUNCHES if size >= row_bytes)]
    others = OTHERS if row_bytes <= min(LAUNCHES) else ()
    return tuned("decode_attention", f"{dtype} {width}", default, others, device), heads, programs


@chosen_once
def _plan(
    batch: int, heads: int, kv_heads: int, capacity: int, head_dim: int, soft_cap: float,
    dtype: torch.dtype, device: torch.device,
) -> tuple[tuple[int, int, int], dict[str, Any], dict[str, Any]]:  # fmt: skip
    """The grid of the kernel over splits, its keyword arguments, and those of the one that puts them together."""
    launch, most, programs = _launch(head_dim, dtype, device)
    group = heads // kv_heads
    together = min(most, max(16, next_power_of_2(group)))  # query heads of a program
    columns = kv_heads * cdiv(group, together)
    splits = min(cdiv(programs, batch * columns), max(1, cdiv(capacity, launch.blocks["BLOCK_K"])), MAX_SPLITS)
    shape = {"D": head_dim, "BLOCK_D": padded_head_dim(head_dim)}
    options = {"SOFT_CAP": soft_cap, **shape, "HEADS": together, **launch.options}
    return (splits, columns, batch), options, {**shape, "SPLITS": next_power_of_2(splits)}


@custom_op("kernels::decode_attention")
def _decode_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, starts: Tensor, ends: Tensor, scale: float, soft_cap: float
) -> Tensor:
    B, H, D = q.shape
    kv_heads, page = k.size(1), k.size(2)
    q, k, v = near(q), near(k), near(v)
    o = q.new_empty((B, H, D))
    if o.numel() == 0:
        return o
    capacity = table.shape[1] * page
    grid, options, combining = _plan(B, H, kv_heads, capacity, D, soft_cap, q.dtype, q.device)
    splits = grid[0]
    partial = q.new_empty((B, H, splits, D), dtype=torch.float32)
    lse = q.new_empty((B, H, splits), dtype=torch.float32)
    _split_kernel[grid](
        q, k, v, table, starts, ends, partial, lse, q.stride(), k.stride(), v.stride(), table.stride(0),
        k.size(0), page, capacity, H // kv_heads, scale, **options,
    )  # fmt: skip
    _combine_kernel[(B * H,)](partial, lse, o, starts, ends, capacity, H, splits, **combining)
    return o


@_decode_attention.register_fake
def _(q: Tensor, *_: Any) -> Tensor:
    return q.new_empty(q.shape)


def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    scale: float | None = None,
    soft_cap: float = 0.0,
) -> Tensor:
    """q (B, H, D), k and v (B, K, capacity, D) with H a multiple of K, any strides -> (B, H, D).

    starts, ends: (B,) integers, the first slot of each row's sequence and the one past its last; all slots by default.
        A row padded on the left starts after its padding; a sliding window of W starts at (ends - W).clamp(min=0).
    scale: positive, 1/sqrt(D) by default. soft_cap: as in `attention`.

    An empty sequence gives 0, one whose bounds are not from 0 to capacity NaN. Errors: ValueError, also where a
    gradient is asked for; TypeError; with KERNELS_DEBUG=1 ValueError for such bounds too (`kernels.checks`).
    """
    scale, soft_cap = None if scale is None else float(scale), float(soft_cap)
    _check("decode_attention", q, k, v, scale, soft_cap, torch.is_grad_enabled())
    if k.size(0) != q.size(0):
        raise ValueError(f"decode_attention: {q.size(0)} queries for a cache of {k.size(0)} sequences")
    B, capacity = q.size(0), k.size(2)
    whole_rows = torch.arange(B, dtype=torch.int32, device=q.device)[:, None]  # one page a sequence
    for name, bounds in (("starts", starts), ("ends", ends)):
        if bounds is not None:
            _check_integers("decode_attention", name, bounds, (B,), q.device)
            require_indices("decode_attention", name, bounds, capacity + 1, f"a cache of {capacity} slots")
    starts = torch.zeros(B, dtype=torch.int32, device=q.device) if starts is None else starts.contiguous()
    ends = torch.full((B,), capacity, dtype=torch.int32, device=q.device) if ends is None else ends.contiguous()
    scale = 1 / math.sqrt(q.size(-1)) if scale is None else scale
    return _decode_attention(q, k, v, whole_rows, starts, ends, scale, soft_cap)


def paged_decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    lengths: Tensor,
    scale: float | None = None,
    soft_cap: float = 0.0,
) -> Tensor:
    """q (B, H, D), k and v (pages, K, page, D) -> (B, H, D).

    table: (B, N) integers, the pages of each sequence in order; what comes after its last page is not read.
    lengths: (B,) integers, tokens of each sequence, at most N·page.
    scale, soft_cap, an empty sequence and errors: as `decode_attention`.

    A sequence with a page outside of the pool, or of a length that is not from 0 to N·page, gives NaN.
    """
    op, B = "paged_decode_attention", q.size(0)
    scale, soft_cap = None if scale is None else float(scale), float(soft_cap)
    _check(op, q, k, v, scale, soft_cap, torch.is_grad_enabled())
    _check_integers(op, "table", table, (B, table.size(-1) if table.dim() else 0), q.device)
    _check_integers(op, "lengths", lengths, (B,), q.device)
    _require_pages(table, lengths, k)
    starts = torch.zeros(B, dtype=torch.int32, device=q.device)
    scale = 1 / math.sqrt(q.size(-1)) if scale is None else scale
    return _decode_attention(q, k, v, table.contiguous(), starts, lengths.contiguous(), scale, soft_cap)


def _check_integers(op: str, name: str, given: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    if given.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{op}: {name} is {given.dtype}; it must be int32 or int64")
    if given.shape != shape or given.device != device:
        raise ValueError(f"{op}: {name} is {tuple(given.shape)} on {given.device}; it must be {shape} on {device}")


@once_per_signature
def _check(
    op: str, q: Tensor, k: Tensor, v: Tensor, scale: float | None, soft_cap: float, is_differentiated: bool
) -> None:
    require(op, {"q": q, "k": k, "v": v})
    if is_differentiated and any(x.requires_grad for x in (q, k, v)):
        raise ValueError(f"{op} has no gradient; call it under torch.no_grad(), or train with `attention`")
    if q.dtype != k.dtype or q.dtype != v.dtype:
        raise TypeError(f"{op}: q, k and v are {q.dtype}, {k.dtype} and {v.dtype}; they must be of one dtype")
    if q.dim() != 3 or k.dim() != 4 or k.shape != v.shape or q.size(2) != k.size(3):
        given = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"{op}: q, k, v of shapes {given}; they must be (B, H, D) and twice (.., K, tokens, D)")
    if k.size(1) == 0 or q.size(1) % k.size(1):
        raise ValueError(f"{op}: {q.size(1)} query heads are no multiple of {k.size(1)} key/value heads")
    if not 1 <= q.size(2) <= MAX_HEAD_DIM:
        raise ValueError(f"{op}: head_dim is {q.size(2)}; it must be from 1 to {MAX_HEAD_DIM}")
    if soft_cap < 0 or (scale is not None and scale <= 0):
        raise ValueError(f"{op}: soft_cap {soft_cap}, scale {scale}; soft_cap must be at least 0, scale above 0")


def decode_attention_spec() -> Spec:
    """What the lab checks, compiles and measures, of a contiguous cache."""
    from kernels.decode_attention_lab import describe

    return describe(decode_attention, decode_attention_reference)


def paged_decode_attention_spec() -> Spec:
    """The same of a cache in pages."""
    from kernels.decode_attention_lab import describe_paged

    return describe_paged(paged_decode_attention, paged_decode_attention_reference)
