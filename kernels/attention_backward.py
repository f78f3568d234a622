"""The backward kernels of attention: FlashAttention-2 (Dao 2023, algorithm 2), in two passes and without atomics.

P is computed again, from the scores and the log-sum-exp that the forward has kept; then, with δ_i = Σ_d O_id·dO_id,

    P = exp(S - lse),   dP = dO Vᵀ,   dS = P ∘ (dP - δ)
    dV = Pᵀ dO,         dQ = scale · dS K,   dK = scale · dSᵀ Q

1. `_delta_kernel`: δ of each row, less the gradient of its log-sum-exp: ∂lse_i/∂S_ij = P_ij, so that is where it goes.
2. `_dq_kernel`: a program holds queries and walks over the keys that they attend to.
3. `_dk_dv_kernel`: a program holds keys of one key/value head and walks over the queries that attend to them, for one
   query head of its group after the other. So every sum is made by one program in a fixed order: the result is the
   same bits each time. The price is that S and dP are computed twice, 7 products in all instead of 5.

With a soft cap, S = cap·tanh(x/cap) and dx = dS ∘ (1 - (S/cap)²). P and dS are rounded to the inputs' dtype for the
products with them.

As in the forward, products with the keys, and with the queries and dO, may be spoilt by what a row may not attend to;
`_mend_dq_kernel` and `_mend_dk_dv_kernel` make such sums anew.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.attention_forward import (
    LOG2_E,
    Plan,
    add_products,
    by_row_bytes,
    capped_scores,
    choose,
    is_spoilt,
    load_interval,
    load_key_interval,
    load_rows,
    near,
    plan,
    pointers_to,
    regions,
    score_unit,
    without_infinity,
)
from kernels.launch import cdiv, chosen_once, jit, tl

# As in the forward: BLOCK_Q, BLOCK_K, warps, stages. dk and dv need registers for two sums besides S and dP: at
# head_dim 64 and 128 they fit into 8 warps, or into 4 with 64 keys of 64 channels. On an H200, those of 90 were the
# fastest tried (benchmarks/results/nvidia-h200-attention-launches.json) that spill nothing, but at head_dim 128: there
# 64 keys in 4 warps spill 232 bytes a thread, and the whole backward takes a seventh less time than with 128 in 8.
# At 256, with the 64 keys that the tensor cores of 90 and 100 need at least, they spill on 90, and for 100 Triton 3.7
# builds an empty one: 32 keys take 80's instructions. On 100, where sums move between tensor memory and registers, a
# loop over several query heads spills 448 bytes at head_dim 128 in two stages, none in one.
DQ_LAUNCHES = {
    0: by_row_bytes({1024: (32, 16, 4, 1)}),
    80: by_row_bytes({128: (128, 64, 8, 2), 256: (128, 32, 8, 2), 512: (64, 32, 8, 1), 1024: (16, 16, 8, 1)}),
    90: by_row_bytes({128: (64, 64, 4, 3), 256: (128, 64, 8, 3), 512: (32, 32, 8, 1), 1024: (16, 16, 8, 1)}),
    100: by_row_bytes({128: (128, 64, 8, 2), 256: (128, 64, 8, 2), 512: (64, 32, 8, 1), 1024: (16, 16, 8, 1)}),
    120: by_row_bytes({128: (128, 64, 8, 2), 256: (128, 32, 8, 2), 512: (64, 32, 8, 1), 1024: (16, 16, 8, 1)}),
}
DK_DV_LAUNCHES = {
    0: by_row_bytes({1024: (16, 32, 4, 1)}),
    80: by_row_bytes({128: (32, 128, 8, 2), 256: (64, 64, 8, 2), 512: (32, 32, 8, 1), 1024: (16, 16, 8, 1)}),
    90: by_row_bytes({128: (64, 64, 4, 2), 256: (32, 64, 4, 3), 512: (32, 32, 8, 1), 1024: (16, 16, 8, 1)}),
    100: by_row_bytes({128: (32, 128, 8, 2), 256: (64, 64, 8, 1), 512: (32, 32, 8, 1), 1024: (16, 16, 8, 1)}),
    120: by_row_bytes({128: (32, 128, 8, 2), 256: (64, 64, 8, 2), 512: (32, 32, 8, 1), 1024: (16, 16, 8, 1)}),
}
FLOAT32 = by_row_bytes({256: (16, 16, 4, 1), 1024: (16, 16, 8, 1)})
"""Of both kernels."""
DELTA_ROWS = 64


@jit
def _delta_kernel(
    o, do, dlse, delta, o_strides, do_strides, queries, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr
):
    rows = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    is_row = rows < queries
    o_block = load_rows(pointers_to(o, batch, head, rows, o_strides, BLOCK_D), is_row, D, BLOCK_D, True)
    do_block = load_rows(pointers_to(do, batch, head, rows, do_strides, BLOCK_D), is_row, D, BLOCK_D, True)
    row_sums = tl.sum(o_block.to(tl.float32) * do_block.to(tl.float32), 1)
    at = (batch * tl.num_programs(1) + head) * queries + rows
    tl.store(delta + at, row_sums - tl.load(dlse + at, mask=is_row, other=0.0), mask=is_row)


@jit
def score_gradient(s, p, dp, delta, SOFT_CAP: tl.constexpr):
    """dS = P ∘ (dP - δ), through the soft cap if there is one; s are the scores before their unit."""
    ds = p * (dp - delta)
    if SOFT_CAP > 0:
        return ds * (1 - s * s)
    else:
        return ds


@jit
def add_to_dq(
    dq, q, do, lse, delta, k_block, v_block, k_step, v_step, interval, begin, until, stop, scale,
    SOFT_CAP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
    EDGE: tl.constexpr, CAREFUL: tl.constexpr,
):  # fmt: skip
    """What the keys from `begin` to `until` add to the gradient of a block of queries."""
    first, end = interval
    unit = score_unit(scale, SOFT_CAP)
    for block in range(begin, until, BLOCK_K):
        keys = block + tl.arange(0, BLOCK_K)
        k = load_rows(k_block + tl.cast(block, tl.int64) * k_step, keys < stop, D, BLOCK_D, EDGE)
        v = load_rows(v_block + tl.cast(block, tl.int64) * v_step, keys < stop, D, BLOCK_D, EDGE)
        s = capped_scores(tl.dot(q, tl.trans(k), input_precision="ieee"), scale, SOFT_CAP)  # (BLOCK_Q, BLOCK_K)
        p = tl.exp2(s * unit - lse[:, None])
        dp = tl.dot(do, tl.trans(v), input_precision="ieee")
        ds = score_gradient(s, p, dp, delta[:, None], SOFT_CAP)
        may_attend = (keys[None, :] >= first[:, None]) & (keys[None, :] < end[:, None])
        if EDGE:
            ds = tl.where(may_attend, ds, 0.0)
        dq = add_products(dq, ds, k, may_attend, CAREFUL)
    return dq


@jit
def _dq_kernel(
    q, k, v, do, lse, delta, dq, spoilt, intervals,
    q_strides, k_strides, v_strides, do_strides, dq_strides, intervals_stride, queries, keys, group, scale,
    SOFT_CAP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    rows = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    is_row = rows < queries
    interval, _ = load_key_interval(intervals, batch, intervals_stride, rows, queries, keys)
    bounds = regions(interval, BLOCK_K)

    q_block = load_rows(pointers_to(q, batch, head, rows, q_strides, BLOCK_D), is_row, D, BLOCK_D, True)
    do_block = load_rows(pointers_to(do, batch, head, rows, do_strides, BLOCK_D), is_row, D, BLOCK_D, True)
    at = (batch * tl.num_programs(1) + head) * queries + rows
    lse_block = tl.load(lse + at, mask=is_row, other=0.0) * LOG2_E
    delta_block = tl.load(delta + at, mask=is_row, other=0.0)
    k_block = pointers_to(k, batch, head // group, tl.arange(0, BLOCK_K), k_strides, BLOCK_D)
    v_block = pointers_to(v, batch, head // group, tl.arange(0, BLOCK_K), v_strides, BLOCK_D)
    dq_sum = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for region in tl.static_range(3):  # an edge, the middle, an edge
        dq_sum = add_to_dq(
            dq_sum, q_block, do_block, lse_block, delta_block, k_block, v_block, k_strides[2], v_strides[2],
            interval, bounds[region], bounds[region + 1], bounds[3], scale, SOFT_CAP, D, BLOCK_D, BLOCK_K,
            region != 1, False,
        )  # fmt: skip
    is_written = is_row[:, None] & (tl.arange(0, BLOCK_D) < D)[None, :]
    tl.store(pointers_to(dq, batch, head, rows, dq_strides, BLOCK_D), dq_sum * scale, mask=is_written)
    at = (batch * tl.num_programs(1) + head + 1) * tl.num_programs(0) - 1 - tl.program_id(0)
    tl.store(spoilt + at, is_spoilt(dq_sum, lse_block + delta_block))


@jit
def _mend_dq_kernel(
    q, k, v, do, lse, delta, dq, spoilt, intervals,
    q_strides, k_strides, v_strides, do_strides, dq_strides, intervals_stride, queries, keys, group, scale,
    SOFT_CAP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """dq of each block of BLOCK_Q queries that is spoilt, ROWS at a time."""
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    head_of_batch = batch * tl.num_programs(1) + head
    if tl.load(spoilt + head_of_batch * tl.num_programs(0) + tl.program_id(0)) != 0:
        k_block = pointers_to(k, batch, head // group, tl.arange(0, COLUMNS), k_strides, BLOCK_D)
        v_block = pointers_to(v, batch, head // group, tl.arange(0, COLUMNS), v_strides, BLOCK_D)
        for begin in range(0, BLOCK_Q, ROWS):
            rows = tl.program_id(0) * BLOCK_Q + begin + tl.arange(0, ROWS)
            is_row = rows < queries
            interval, _ = load_key_interval(intervals, batch, intervals_stride, rows, queries, keys)
            start, _, _, stop = regions(interval, COLUMNS)
            q_block = load_rows(pointers_to(q, batch, head, rows, q_strides, BLOCK_D), is_row, D, BLOCK_D, True)
            do_block = load_rows(pointers_to(do, batch, head, rows, do_strides, BLOCK_D), is_row, D, BLOCK_D, True)
            lse_block = tl.load(lse + head_of_batch * queries + rows, mask=is_row, other=0.0) * LOG2_E
            delta_block = tl.load(delta + head_of_batch * queries + rows, mask=is_row, other=0.0)
            dq_sum = add_to_dq(
                tl.zeros([ROWS, BLOCK_D], tl.float32), q_block, do_block, lse_block, delta_block, k_block, v_block,
                k_strides[2], v_strides[2], interval, start, stop, stop, scale,
                SOFT_CAP, D, BLOCK_D, COLUMNS, True, True,
            )  # fmt: skip
            is_written = is_row[:, None] & (tl.arange(0, BLOCK_D) < D)[None, :]
            dq_rows = pointers_to(dq, batch, head, rows, dq_strides, BLOCK_D)
            tl.store(dq_rows, without_infinity(dq_sum) * scale, mask=is_written)


@jit
def add_to_dk_dv(
    sums, k, v, q_block, do_block, lse, delta, q_step, do_step, interval, begin, until, stop, scale,
    SOFT_CAP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr,
    EDGE: tl.constexpr, CAREFUL: tl.constexpr,
):  # fmt: skip
    """What the queries from `begin` to `until` add to sums, (dk, dv) of a block of keys; S is transposed here."""
    dk, dv = sums
    first, end = interval
    unit = score_unit(scale, SOFT_CAP)
    for block in range(begin, until, BLOCK_Q):
        rows = block + tl.arange(0, BLOCK_Q)
        is_row = (rows < stop) | (not EDGE)  # in the middle all are
        q = load_rows(q_block + tl.cast(block, tl.int64) * q_step, is_row, D, BLOCK_D, EDGE)
        do = load_rows(do_block + tl.cast(block, tl.int64) * do_step, is_row, D, BLOCK_D, EDGE)
        row_lse = tl.load(lse + rows, mask=is_row, other=0.0) * LOG2_E
        row_delta = tl.load(delta + rows, mask=is_row, other=0.0)
        s = capped_scores(tl.dot(k, tl.trans(q), input_precision="ieee"), scale, SOFT_CAP)  # (BLOCK_K, BLOCK_Q)
        p = tl.exp2(s * unit - row_lse[None, :])
        may_attend = (rows[None, :] >= first[:, None]) & (rows[None, :] < end[:, None])
        if EDGE:
            p = tl.where(may_attend, p, 0.0)
        dv = add_products(dv, p, do, may_attend, CAREFUL)
        dp = tl.dot(v, tl.trans(do), input_precision="ieee")
        ds = score_gradient(s, p, dp, row_delta[None, :], SOFT_CAP)
        if CAREFUL:  # elsewhere a δ that is no number is mended
            ds = tl.where(may_attend, ds, 0.0)
        dk = add_products(dk, ds, q, may_attend, CAREFUL)
    return dk, dv


@jit
def _dk_dv_kernel(
    q, k, v, do, lse, delta, dk, dv, spoilt, intervals,
    q_strides, k_strides, v_strides, do_strides, dk_strides, dv_strides, intervals_stride,
    queries, keys, group, scale,
    SOFT_CAP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    kv_head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    is_row = rows < keys
    # Here the rows are keys, and their intervals those of the queries that attend to them.
    interval = load_interval(intervals, batch, intervals_stride, rows, keys)
    bounds = regions(interval, BLOCK_Q)

    k_block = load_rows(pointers_to(k, batch, kv_head, rows, k_strides, BLOCK_D), is_row, D, BLOCK_D, True)
    v_block = load_rows(pointers_to(v, batch, kv_head, rows, v_strides, BLOCK_D), is_row, D, BLOCK_D, True)
    dk_sum = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    dv_sum = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    for head in range(kv_head * group, (kv_head + 1) * group):
        q_block = pointers_to(q, batch, head, tl.arange(0, BLOCK_Q), q_strides, BLOCK_D)
        do_block = pointers_to(do, batch, head, tl.arange(0, BLOCK_Q), do_strides, BLOCK_D)
        at = (batch * tl.num_programs(1) * group + head) * queries
        for region in tl.static_range(3):  # an edge, the middle, an edge
            dk_sum, dv_sum = add_to_dk_dv(
                (dk_sum, dv_sum), k_block, v_block, q_block, do_block, lse + at, delta + at,
                q_strides[2], do_strides[2], interval, bounds[region], bounds[region + 1], bounds[3], scale,
                SOFT_CAP, D, BLOCK_D, BLOCK_Q, region != 1, False,
            )  # fmt: skip
    is_written = is_row[:, None] & (tl.arange(0, BLOCK_D) < D)[None, :]
    tl.store(pointers_to(dk, batch, kv_head, rows, dk_strides, BLOCK_D), dk_sum * scale, mask=is_written)
    tl.store(pointers_to(dv, batch, kv_head, rows, dv_strides, BLOCK_D), dv_sum, mask=is_written)
    at = (batch * tl.num_programs(1) + kv_head) * tl.num_programs(0) + tl.program_id(0)
    is_known = tl.zeros([BLOCK_K], tl.float32)
    tl.store(spoilt + at, tl.maximum(is_spoilt(dk_sum, is_known), is_spoilt(dv_sum, is_known)))


@jit
def _mend_dk_dv_kernel(
    q, k, v, do, lse, delta, dk, dv, spoilt, intervals,
    q_strides, k_strides, v_strides, do_strides, dk_strides, dv_strides, intervals_stride,
    queries, keys, group, scale,
    SOFT_CAP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """dk and dv of each block of BLOCK_K keys that is spoilt, ROWS at a time."""
    kv_head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    at = (batch * tl.num_programs(1) + kv_head) * tl.num_programs(0) + tl.program_id(0)
    if tl.load(spoilt + at) != 0:
        for begin in range(0, BLOCK_K, ROWS):
            rows = tl.program_id(0) * BLOCK_K + begin + tl.arange(0, ROWS)
            is_row = rows < keys
            interval = load_interval(intervals, batch, intervals_stride, rows, keys)
            start, _, _, stop = regions(interval, COLUMNS)
            k_block = load_rows(pointers_to(k, batch, kv_head, rows, k_strides, BLOCK_D), is_row, D, BLOCK_D, True)
            v_block = load_rows(pointers_to(v, batch, kv_head, rows, v_strides, BLOCK_D), is_row, D, BLOCK_D, True)
            dk_sum = tl.zeros([ROWS, BLOCK_D], tl.float32)
            dv_sum = tl.zeros([ROWS, BLOCK_D], tl.float32)
            for head in range(kv_head * group, (kv_head + 1) * group):
                q_block = pointers_to(q, batch, head, tl.arange(0, COLUMNS), q_strides, BLOCK_D)
                do_block = pointers_to(do, batch, head, tl.arange(0, COLUMNS), do_strides, BLOCK_D)
                row = (batch * tl.num_programs(1) * group + head) * queries
                dk_sum, dv_sum = add_to_dk_dv(
                    (dk_sum, dv_sum), k_block, v_block, q_block, do_block, lse + row, delta + row,
                    q_strides[2], do_strides[2], interval, start, stop, stop, scale,
                    SOFT_CAP, D, BLOCK_D, COLUMNS, True, True,
                )  # fmt: skip
            is_written = is_row[:, None] & (tl.arange(0, BLOCK_D) < D)[None, :]
            dk_rows = pointers_to(dk, batch, kv_head, rows, dk_strides, BLOCK_D)
            dv_rows = pointers_to(dv, batch, kv_head, rows, dv_strides, BLOCK_D)
            tl.store(dk_rows, without_infinity(dk_sum) * scale, mask=is_written)
            tl.store(dv_rows, without_infinity(dv_sum), mask=is_written)


@chosen_once
def backward_plans(
    queries: int, keys: int, head_dim: int, soft_cap: float, dtype: torch.dtype, device: torch.device
) -> tuple[Plan, Plan]:
    """Of the kernels of dq, and of dk and dv."""
    dq = choose("dq", DQ_LAUNCHES, FLOAT32, head_dim, dtype, device)
    dk_dv = choose("dk_dv", DK_DV_LAUNCHES, FLOAT32, head_dim, dtype, device)
    return plan(dq, "BLOCK_Q", queries, head_dim, soft_cap), plan(dk_dv, "BLOCK_K", keys, head_dim, soft_cap)


def query_intervals(key_intervals: Tensor, keys: int) -> Tensor:
    """(B or 1, keys, 2) int32: the queries [first, end) that attend to each key, from the keys each query attends to.

    Intervals neither begin nor end before those of an earlier query: the queries whose interval has not begun after
    key j, but ends after it, are those from #{end ≤ j} to #{first ≤ j}.
    """
    key = torch.arange(keys, device=key_intervals.device, dtype=torch.int32)
    key = key.expand(key_intervals.size(0), -1).contiguous()
    first, end = key_intervals.movedim(-1, 0).contiguous()  # each (B or 1, Tq)
    earlier = torch.searchsorted(end, key, right=True, out_int32=True)
    begun = torch.searchsorted(first, key, right=True, out_int32=True)
    return torch.stack((earlier, begun), dim=-1)


def backward(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, intervals: Tensor, do: Tensor, dlse: Tensor,
    scale: float, soft_cap: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv, each like its input; `intervals` are those of the forward, do and dlse any strides."""
    (B, H, Tq, D), (kv_heads, Tk) = q.shape, k.shape[1:3]
    q, k, v, o, do = near(q), near(k), near(v), near(o), near(do)
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    if B * H * Tq * Tk == 0:
        return dq.zero_(), dk.zero_(), dv.zero_()
    delta = torch.empty_like(lse)
    to_queries, to_keys = backward_plans(Tq, Tk, D, soft_cap, q.dtype, q.device)
    _delta_kernel[cdiv(Tq, DELTA_ROWS), H, B](
        o, do, dlse.contiguous(), delta, o.stride(), do.stride(), Tq,
        D=D, BLOCK_D=to_queries[1]["BLOCK_D"], BLOCK_Q=DELTA_ROWS,
    )  # fmt: skip
    rows = (q, k, v, do, lse, delta)
    strides = (q.stride(), k.stride(), v.stride(), do.stride())
    sizes = (Tq, Tk, H // kv_heads, scale)

    blocks, options, mending = to_queries
    batch_stride = intervals.stride(0) if intervals.shape[0] > 1 else 0
    spoilt = q.new_empty((B, H, blocks), dtype=torch.int32)
    given = (*rows, dq, spoilt, intervals, *strides, dq.stride(), batch_stride, *sizes)
    _dq_kernel[blocks, H, B](*given, **options)
    _mend_dq_kernel[blocks, H, B](*given, **mending)

    blocks, options, mending = to_keys
    by_key = query_intervals(intervals, Tk)
    batch_stride = by_key.stride(0) if by_key.shape[0] > 1 else 0
    spoilt = q.new_empty((B, kv_heads, blocks), dtype=torch.int32)
    given = (*rows, dk, dv, spoilt, by_key, *strides, dk.stride(), dv.stride(), batch_stride, *sizes)
    _dk_dv_kernel[blocks, kv_heads, B](*given, **options)
    _mend_dk_dv_kernel[blocks, kv_heads, B](*given, **mending)
    return dq, dk, dv
