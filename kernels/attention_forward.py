"""The forward kernel of attention: FlashAttention-2 (Dao 2023, algorithm 1) over intervals of keys.

A program holds BLOCK_Q queries of one head and walks over the keys in blocks of BLOCK_K. With the online softmax
(Milakov & Gimelshein 2018) it needs each key once: m is the row's maximum so far, total the sum of exp(S - m), acc the
sum of exp(S - m)·V. A block of keys with a larger maximum m' first scales what has been summed by α = exp(m - m'):

    m' = max(m, max_j S_j),   P_j = exp(S_j - m'),   total' = α·total + Σ_j P_j,   acc' = α·acc + P V

and in the end O = acc / total, lse = m + log total.

What a query may attend to is an interval of keys [first, end): causality, window, documents and the length of the
keys are all in these two numbers. So the keys of a block of queries fall into three regions (`regions`): an edge where
some queries have not begun, the middle that all queries see whole, and an edge where some have ended. Only edges are
masked; what is outside is never loaded.

A block that is masked holds keys that some of its queries may not attend to. Their weights are 0, but 0 · NaN is NaN:
a value that is not finite spoils them. To look at every value would cost time in every call, so `_forward_kernel` tells
where it ended with sums that are not finite, and `_mend_kernel`, which has nothing to do elsewhere, makes these anew,
with such values for those alone that may attend to them (`add_products`).

Exponentials are in base 2, which is what the hardware has: exp(x) = 2^(x·log2 e). P is rounded to the dtype of V for
the product with it, everything else is float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.launch import Launch, cdiv, chosen_once, generation, jit, next_power_of_2, tl, tuned

Launches = dict[int, Launch]
"""By the bytes of one head's row; the next larger key serves what has none of its own."""

LOG2_E: Any = tl.constexpr(1.4426950408889634) if tl is not None else None
HUGE: Any = tl.constexpr(2.0**100) if tl is not None else None
"""Its square is infinite in float32."""


def by_row_bytes(table: dict[int, tuple[int, int, int, int]]) -> Launches:
    return {size: Launch({"BLOCK_Q": q, "BLOCK_K": k}, warps, stages) for size, (q, k, warps, stages) in table.items()}


# By generation, then by the bytes of one head's row (head_dim padded to a power of two, times the element's size):
# BLOCK_Q, BLOCK_K, warps, stages. 0 is the interpreter, where a program is dear, and where 16 keys a block give small
# inputs a middle and edges; 120, Blackwell for desktops, has the shared memory and the instructions of 80.
LAUNCHES = {
    0: by_row_bytes({1024: (32, 16, 4, 1)}),
    80: by_row_bytes({128: (128, 64, 8, 3), 256: (128, 32, 8, 3), 512: (64, 32, 8, 2), 1024: (32, 16, 4, 2)}),
    90: by_row_bytes({128: (64, 64, 4, 3), 256: (64, 64, 4, 3), 512: (128, 32, 8, 2), 1024: (32, 16, 4, 2)}),
    100: by_row_bytes({128: (128, 64, 4, 3), 256: (128, 64, 8, 3), 512: (128, 32, 8, 2), 1024: (32, 16, 4, 2)}),
    120: by_row_bytes({128: (128, 64, 8, 3), 256: (128, 32, 8, 3), 512: (64, 32, 8, 2), 1024: (32, 16, 4, 2)}),
}
# For float32, of which exact products are made without tensor cores, operands in registers: larger blocks spill.
FLOAT32 = by_row_bytes({512: (32, 16, 4, 1), 1024: (16, 16, 8, 1)})
MENDING = Launch({"ROWS": 16, "COLUMNS": 16}, num_warps=8, num_stages=1).options
"""Small enough for every device and row; it is rarely needed."""


def padded_head_dim(head_dim: int) -> int:
    """The width of a block that holds one head: a tensor-core product needs at least 16."""
    return max(16, next_power_of_2(head_dim))


def choose(
    kernel: str, table: dict[int, Launches], float32: Launches, head_dim: int, dtype: torch.dtype, device: torch.device
) -> Launch:
    """The launch for this device and row: what tuning found, or the table's; a device that the table does not know
    takes the newest older one's, and float32 on a GPU its own. Tuning tries all that the tables hold for GPUs."""
    target, row_bytes = generation(device), padded_head_dim(head_dim) * dtype.itemsize
    is_exact = target > 0 and dtype == torch.float32
    launches = float32 if is_exact else table[max(known for known in table if known <= target)]
    default = launches[min(size for size in launches if size >= row_bytes)]
    tables = [float32] if is_exact else [launches for known, launches in table.items() if known]
    others = [launch for launches in tables for launch in launches.values()]
    return tuned(f"attention_{kernel}", f"{dtype} {padded_head_dim(head_dim)}", default, others, device)


Plan = tuple[int, dict[str, Any], dict[str, Any]]
"""Of a kernel and the one that mends its results: how many blocks of rows, and the keyword arguments of each."""


def plan(launch: Launch, block: str, rows: int, head_dim: int, soft_cap: float) -> Plan:
    """`block` names the block that cuts the rows: BLOCK_Q, or BLOCK_K where these are keys."""
    shape = {"SOFT_CAP": soft_cap, "D": head_dim, "BLOCK_D": padded_head_dim(head_dim)}
    size = launch.blocks[block]
    return cdiv(rows, size), {**shape, **launch.options}, {**shape, block: size, **MENDING}


@chosen_once
def forward_plan(queries: int, head_dim: int, soft_cap: float, dtype: torch.dtype, device: torch.device) -> Plan:
    launch = choose("forward", LAUNCHES, FLOAT32, head_dim, dtype, device)
    return plan(launch, "BLOCK_Q", queries, head_dim, soft_cap)


def near(x: Tensor) -> Tensor:
    """x, copied where its channels lie so far apart that their offsets pass 31 bits; all others are of 64."""
    return x if x.stride(-1) * x.size(-1) < 2**31 else x.contiguous()


@jit
def regions(interval, BLOCK: tl.constexpr):
    """Where a block of rows that reach [first, end) has its edges: (start, middle, middle's end, stop), in steps of
    BLOCK from start on. All rows reach all of the middle, no row anything before start or from stop on."""
    first, end = interval
    start, stop = tl.min(first, 0), tl.max(end, 0)
    middle = start + tl.cdiv(tl.max(first, 0) - start, BLOCK) * BLOCK
    middle_end = middle + tl.maximum(tl.min(end, 0) - middle, 0) // BLOCK * BLOCK
    return start, middle, middle_end, stop


@jit
def load_interval(intervals, batch, stride, rows, count):
    """(first, end) of each row; rows past the last one repeat it, so that they widen nothing."""
    pointers = intervals + batch * stride + 2 * tl.minimum(rows, count - 1)
    return tl.load(pointers), tl.load(pointers + 1)


@jit
def load_key_interval(intervals, batch, stride, rows, queries, keys):
    """The interval of each query, and whether it is one: within the keys, and not before that of the query before. One
    that is none is empty, so that nothing outside of the keys is read."""
    first, end = load_interval(intervals, batch, stride, rows, queries)
    first_before, end_before = load_interval(intervals, batch, stride, tl.maximum(rows - 1, 0), queries)
    is_valid = (first >= 0) & (first <= end) & (end <= keys) & (first >= first_before) & (end >= end_before)
    return (tl.where(is_valid, first, 0), tl.where(is_valid, end, 0)), is_valid


@jit
def pointers_to(tensor, batch, head, rows, strides, BLOCK_D: tl.constexpr):
    """(rows, BLOCK_D) pointers into a (batch, heads, rows, channels) tensor; a long input's offsets need int64."""
    row = tensor + batch * strides[0] + tl.cast(head, tl.int64) * strides[1] + rows.to(tl.int64) * strides[2]
    return row[:, None] + tl.arange(0, BLOCK_D)[None, :] * strides[3]


@jit
def load_rows(pointers, exists, D: tl.constexpr, BLOCK_D: tl.constexpr, EDGE: tl.constexpr):
    """Rows of a block at pointers (rows, BLOCK_D), 0 beyond the head's D channels; on an EDGE, 0 also where a row does
    not exist, as `exists` (rows,) says."""
    is_channel = (tl.arange(0, BLOCK_D) < D)[None, :]
    if EDGE:
        return tl.load(pointers, mask=exists[:, None] & is_channel, other=0.0)
    elif BLOCK_D > D:
        return tl.load(pointers, mask=is_channel, other=0.0)
    else:
        return tl.load(pointers)


@jit
def capped_scores(products, scale, SOFT_CAP: tl.constexpr):
    """Scores before their unit (`score_unit`): Q Kᵀ itself, or with a soft cap (Gemma 2, 2024) tanh(scale·Q Kᵀ/cap)."""
    if SOFT_CAP > 0:
        return 1 - 2 / (tl.exp2(products * (2 * LOG2_E * scale / SOFT_CAP)) + 1)
    else:
        return products


@jit
def score_unit(scale, SOFT_CAP: tl.constexpr):
    """What capped scores are multiplied by to get S·log2 e; positive, so it may wait until after the maximum."""
    return (SOFT_CAP if SOFT_CAP > 0 else scale) * LOG2_E


@jit
def add_products(sums, weights, values, may_attend, CAREFUL: tl.constexpr):
    """sums (BLOCK_Q, BLOCK_D) + weights (BLOCK_Q, BLOCK_K) · values (BLOCK_K, BLOCK_D). CAREFUL: a value that is not
    finite makes infinite what may attend to it, by may_attend (BLOCK_Q, BLOCK_K), and no other sum, though its weight
    there be 0."""
    if CAREFUL:
        is_finite = tl.abs(values.to(tl.float32)) < float("inf")
        finite = tl.where(is_finite, values, 0.0).to(values.dtype)
        sums = tl.dot(weights.to(values.dtype), finite, sums, input_precision="ieee")
        attends, spoilt = tl.where(may_attend, HUGE, 0.0), tl.where(is_finite, 0.0, HUGE)
        if values.dtype == tl.float32:
            return tl.dot(attends, spoilt, sums, input_precision="ieee")
        else:  # on tensor cores, as the product above; powers of 2 are exact
            return tl.dot(attends, spoilt, sums, input_precision="tf32")
    else:
        return tl.dot(weights.to(values.dtype), values, sums, input_precision="ieee")


@jit
def is_spoilt(sums, known):
    """Whether a row of `sums` is not finite, though its number in `known`, which it depends on, is no NaN."""
    is_spoilt = ((tl.abs(sums) < float("inf")) == False) & (known == known)[:, None]  # noqa: E712
    # In one go: row by row and then over the rows, Triton 3.7 cannot build it for sm_100.
    return tl.max(tl.ravel(tl.where(is_spoilt, 1, 0)), 0)


@jit
def without_infinity(sums):
    """What `add_products` has made infinite is NaN."""
    return tl.where(tl.abs(sums) < float("inf"), sums, float("nan"))


@jit
def attend(
    state, q, k_block, v_block, k_step, v_step, interval, begin, until, stop, scale,
    SOFT_CAP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
    EDGE: tl.constexpr, CAREFUL: tl.constexpr,
):  # fmt: skip
    """The online softmax over the keys numbered from `begin` until `until`, BLOCK_K at a time: the new `state`.

    state: (acc, m, total) of what came before: the weighted sum of values (BLOCK_Q, BLOCK_D), the largest score times
    log2 e (BLOCK_Q,), -inf where there was none, and the sum of weights (BLOCK_Q,), all float32. q (BLOCK_Q, BLOCK_D).
    k_block, v_block: (BLOCK_K, BLOCK_D) pointers to keys 0 to BLOCK_K - 1 and their values; k_step, v_step: from one
    key to the next. interval: (first, end), (BLOCK_Q,) each, the keys that each query may attend to; all of these are
    below `stop`. Where not EDGE every query may attend to every key, and all of them are there. CAREFUL, as in
    `add_products`: a value that is not finite spoils no query that may not attend to it.
    """
    acc, m, total = state
    first, end = interval
    unit = score_unit(scale, SOFT_CAP)
    for block in range(begin, until, BLOCK_K):
        keys = block + tl.arange(0, BLOCK_K)
        k = load_rows(k_block + tl.cast(block, tl.int64) * k_step, keys < stop, D, BLOCK_D, EDGE)
        s = capped_scores(tl.dot(q, tl.trans(k), input_precision="ieee"), scale, SOFT_CAP)  # (BLOCK_Q, BLOCK_K)
        may_attend = (keys[None, :] >= first[:, None]) & (keys[None, :] < end[:, None])
        if EDGE:
            s = tl.where(may_attend, s, -float("inf"))
        larger = tl.maximum(m, tl.max(s, 1) * unit)
        # A row that has met no key yet has the maximum -inf, and -inf - (-inf) is no number.
        shift = tl.where(larger == -float("inf"), 0.0, larger)
        p = tl.exp2(s * unit - shift[:, None])
        alpha = tl.exp2(m - shift)
        total = total * alpha + tl.sum(p, 1)
        v = load_rows(v_block + tl.cast(block, tl.int64) * v_step, keys < stop, D, BLOCK_D, EDGE)
        acc = add_products(acc * alpha[:, None], p, v, may_attend, CAREFUL)
        m = larger
    return acc, m, total


@jit
def _forward_kernel(
    q, k, v, o, lse, spoilt, intervals, q_strides, k_strides, v_strides, o_strides, intervals_stride,
    queries, keys, group, scale,
    SOFT_CAP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # The last queries first: under a causal mask they have the most keys, and short programs fill up the end better.
    rows = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    is_row = rows < queries
    interval, is_valid = load_key_interval(intervals, batch, intervals_stride, rows, queries, keys)
    bounds = regions(interval, BLOCK_K)

    q_block = load_rows(pointers_to(q, batch, head, rows, q_strides, BLOCK_D), is_row, D, BLOCK_D, True)
    k_block = pointers_to(k, batch, head // group, tl.arange(0, BLOCK_K), k_strides, BLOCK_D)
    v_block = pointers_to(v, batch, head // group, tl.arange(0, BLOCK_K), v_strides, BLOCK_D)
    acc = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    m = tl.full([BLOCK_Q], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    for region in tl.static_range(3):  # an edge, the middle, an edge
        acc, m, total = attend(
            (acc, m, total), q_block, k_block, v_block, k_strides[2], v_strides[2],
            interval, bounds[region], bounds[region + 1], bounds[3], scale, SOFT_CAP, D, BLOCK_D, BLOCK_K,
            region != 1, False,
        )  # fmt: skip

    is_written = is_row[:, None] & (tl.arange(0, BLOCK_D) < D)[None, :]
    total = divisor(total, interval, is_valid)
    tl.store(pointers_to(o, batch, head, rows, o_strides, BLOCK_D), acc / total[:, None], mask=is_written)
    head_of_batch = batch * tl.num_programs(1) + head
    row_lse = (m + tl.log2(total)) / LOG2_E
    tl.store(lse + head_of_batch * queries + rows, row_lse, mask=is_row)
    at = (head_of_batch + 1) * tl.num_programs(0) - 1 - tl.program_id(0)
    tl.store(spoilt + at, is_spoilt(acc, row_lse))


@jit
def divisor(total, interval, is_valid):
    """What acc is divided by. Without a key the total is 0, the row's output 0 and its log-sum-exp m = -inf; without an
    interval, both are NaN."""
    first, end = interval
    return tl.where(is_valid, tl.where(first < end, total, 1.0), float("nan"))


@jit
def _mend_kernel(
    q, k, v, o, spoilt, intervals, q_strides, k_strides, v_strides, o_strides, intervals_stride,
    queries, keys, group, scale, SOFT_CAP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The outputs of each block of BLOCK_Q queries that is spoilt, ROWS at a time."""
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    at = (batch * tl.num_programs(1) + head) * tl.num_programs(0) + tl.program_id(0)
    if tl.load(spoilt + at) != 0:
        k_block = pointers_to(k, batch, head // group, tl.arange(0, COLUMNS), k_strides, BLOCK_D)
        v_block = pointers_to(v, batch, head // group, tl.arange(0, COLUMNS), v_strides, BLOCK_D)
        for begin in range(0, BLOCK_Q, ROWS):
            rows = tl.program_id(0) * BLOCK_Q + begin + tl.arange(0, ROWS)
            is_row = rows < queries
            interval, is_valid = load_key_interval(intervals, batch, intervals_stride, rows, queries, keys)
            start, _, _, stop = regions(interval, COLUMNS)
            q_block = load_rows(pointers_to(q, batch, head, rows, q_strides, BLOCK_D), is_row, D, BLOCK_D, True)
            acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
            m = tl.full([ROWS], -float("inf"), tl.float32)
            acc, m, total = attend(
                (acc, m, tl.zeros([ROWS], tl.float32)), q_block, k_block, v_block, k_strides[2], v_strides[2],
                interval, start, stop, stop, scale, SOFT_CAP, D, BLOCK_D, COLUMNS, True, True,
            )  # fmt: skip
            mended = without_infinity(acc) / divisor(total, interval, is_valid)[:, None]
            is_written = is_row[:, None] & (tl.arange(0, BLOCK_D) < D)[None, :]
            tl.store(pointers_to(o, batch, head, rows, o_strides, BLOCK_D), mended, mask=is_written)


def forward(q: Tensor, k: Tensor, v: Tensor, intervals: Tensor, scale: float, soft_cap: float) -> tuple[Tensor, Tensor]:
    """O like q, and the rows' log-sum-exp (B, Hq, Tq) float32; intervals (B or 1, Tq, 2) int32, contiguous. NaN where
    an interval is none."""
    B, H, T, D = q.shape
    q, k, v = near(q), near(k), near(v)
    o, lse = torch.empty_like(q), q.new_empty((B, H, T), dtype=torch.float32)
    if B * H * T == 0:
        return o, lse
    blocks, options, mending = forward_plan(T, D, soft_cap, q.dtype, q.device)
    spoilt = q.new_empty((B, H, blocks), dtype=torch.int32)
    batch_stride = intervals.stride(0) if intervals.shape[0] > 1 else 0
    strides = (q.stride(), k.stride(), v.stride(), o.stride(), batch_stride)
    sizes = (T, k.shape[2], H // k.shape[1], scale)
    _forward_kernel[blocks, H, B](q, k, v, o, lse, spoilt, intervals, *strides, *sizes, **options)
    _mend_kernel[blocks, H, B](q, k, v, o, spoilt, intervals, *strides, *sizes, **mending)
    return o, lse
