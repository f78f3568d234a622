"""Attention of one query a sequence over a cache of keys and values, for generation; contiguous or in pages.

    o = Σ_j p_j v_j,   p = softmax(scale · K q)   over the cache's slots start ≤ j < end of the sequence

A single query leaves a GPU idle if one program reads all keys of a head, so they are split among several
(Flash-Decoding: Dao, Haziza, Massa & Sizov 2023). Split s keeps its own softmax and yields o_s and lse_s; then

    o = Σ_s w_s·o_s / Σ_s w_s,   w_s = exp(lse_s - max_s lse_s)

Keys and values are read once for all query heads that share them: 2·B·K·T·D elements, which is all the time there is;
4·B·H·T·D FLOPs. A cache in pages (Kwon et al. 2023, PagedAttention) finds slot j in page table[j // page] at row
j % page; a contiguous one is the case of one page a sequence. Nothing outside of [start, end) is read. Forward only.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kernels.attention import MAX_HEAD_DIM, attention_reference
from kernels.attention_forward import capped_scores, load_rows, padded_head_dim, score_unit
from kernels.launch import Launch, cdiv, custom_op, generation, jit, next_power_of_2, require, tl, tuned

if TYPE_CHECKING:
    from kernels.lab import Inputs, Spec

# By generation: the launch, and how many programs keep the device busy, two for each multiprocessor of the largest.
LAUNCHES: dict[int, tuple[Launch, int]] = {
    0: (Launch({"BLOCK_K": 16}), 8),  # the interpreter
    80: (Launch({"BLOCK_K": 64}, num_warps=4, num_stages=3), 216),
    90: (Launch({"BLOCK_K": 64}, num_warps=4, num_stages=3), 264),
    100: (Launch({"BLOCK_K": 64}, num_warps=4, num_stages=3), 296),
}
OTHERS = [Launch({"BLOCK_K": keys}, warps, stages) for keys in (32, 64, 128) for warps in (2, 4) for stages in (2, 4)]
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
    slot = torch.arange(k.size(2), device=q.device)
    may_attend = torch.ones(q.size(0), k.size(2), dtype=torch.bool, device=q.device)
    if starts is not None:
        may_attend &= slot >= starts[:, None]
    if ends is not None:
        may_attend &= slot < ends[:, None]
    return attention_reference(q[:, :, None], k, v, may_attend[:, None, None], scale=scale, soft_cap=soft_cap)[:, :, 0]


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
    k, v = (pages[table.long()].transpose(1, 2).flatten(2, 3) for pages in (k, v))  # (B, K, N·page, D)
    return decode_attention_reference(q, k, v, None, lengths, scale, soft_cap)


@jit
def _split_kernel(
    q, k, v, table, starts, ends, partial, lse, q_strides, k_strides, v_strides, table_stride, page, group, scale,
    SOFT_CAP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, HEADS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    split, kv_head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    splits = tl.num_programs(0)
    start, end = tl.load(starts + batch), tl.load(ends + batch)
    share = tl.cdiv(tl.cdiv(tl.maximum(end - start, 0), splits), BLOCK_K) * BLOCK_K
    begin = start + split * share
    until = tl.minimum(begin + share, end)

    member = tl.arange(0, HEADS)  # of the query heads that share this key/value head
    head = kv_head * group + member
    channel = tl.arange(0, BLOCK_D)
    q_pointers = q + batch * q_strides[0] + head[:, None] * q_strides[1] + channel[None, :] * q_strides[2]
    q_block = load_rows(q_pointers, member < group, D, BLOCK_D, True)
    unit = score_unit(scale, SOFT_CAP)
    acc = tl.zeros([HEADS, BLOCK_D], tl.float32)
    m = tl.full([HEADS], -float("inf"), tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    for block in range(begin, until, BLOCK_K):
        slot = block + tl.arange(0, BLOCK_K)
        exists = slot < until
        its_page = tl.load(table + batch * table_stride + slot // page, mask=exists, other=0).to(tl.int64)
        row = (slot % page).to(tl.int64)
        k_rows = k + its_page * k_strides[0] + kv_head * k_strides[1] + row * k_strides[2]
        v_rows = v + its_page * v_strides[0] + kv_head * v_strides[1] + row * v_strides[2]
        k_block = load_rows(k_rows[:, None] + channel[None, :] * k_strides[3], exists, D, BLOCK_D, True)
        v_block = load_rows(v_rows[:, None] + channel[None, :] * v_strides[3], exists, D, BLOCK_D, True)
        s = capped_scores(tl.dot(q_block, tl.trans(k_block), input_precision="ieee"), scale, SOFT_CAP)
        s = tl.where(exists[None, :], s, -float("inf"))  # (HEADS, BLOCK_K)
        larger = tl.maximum(m, tl.max(s, 1) * unit)  # a number: each block has at least one slot
        p = tl.exp2(s * unit - larger[:, None])
        alpha = tl.exp2(m - larger)
        total = total * alpha + tl.sum(p, 1)
        acc = tl.dot(p.to(v_block.dtype), v_block, acc * alpha[:, None], input_precision="ieee")
        m = larger
    # A split without a slot has lse = -inf, and any finite o.
    total = tl.where(total == 0.0, 1.0, total)
    at = ((batch * tl.num_programs(1) + kv_head) * group + member) * splits + split
    tl.store(lse + at, m + tl.log2(total), mask=member < group)
    is_written = (member < group)[:, None] & (channel < D)[None, :]
    tl.store(partial + at[:, None] * D + channel[None, :], acc / total[:, None], mask=is_written)


@jit
def _combine_kernel(
    partial, lse, o, splits, D: tl.constexpr, BLOCK_D: tl.constexpr, SPLITS: tl.constexpr
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
    total = tl.sum(weights, 0)
    mean = tl.sum(weights[:, None] * parts, 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(o + query * D + channel, mean, mask=is_channel)


@custom_op("kernels::decode_attention")
def _decode_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, starts: Tensor, ends: Tensor, scale: float, soft_cap: float
) -> Tensor:
    B, H, D = q.shape
    kv_heads, page = k.size(1), k.size(2)
    o = q.new_empty((B, H, D))
    if o.numel() == 0:
        return o
    device = generation(q.device)
    default, programs = LAUNCHES[max(known for known in LAUNCHES if known <= device)]
    launch = tuned("decode_attention", f"{q.dtype} {padded_head_dim(D)}", default, OTHERS, q.device)
    most = max(1, cdiv(table.size(1) * page, launch.blocks["BLOCK_K"]))
    splits = min(cdiv(programs, B * kv_heads), most, MAX_SPLITS)
    partial = q.new_empty((B, H, splits, D), dtype=torch.float32)
    lse = q.new_empty((B, H, splits), dtype=torch.float32)
    group, block_d = H // kv_heads, padded_head_dim(D)
    _split_kernel[splits, kv_heads, B](
        q, k, v, table, starts, ends, partial, lse, q.stride(), k.stride(), v.stride(), table.stride(0), page, group,
        scale, SOFT_CAP=soft_cap, D=D, BLOCK_D=block_d, HEADS=max(16, next_power_of_2(group)), **launch.options,
    )  # fmt: skip
    _combine_kernel[(B * H,)](partial, lse, o, splits, D=D, BLOCK_D=block_d, SPLITS=next_power_of_2(splits))
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
        A row padded on the left starts after its padding; a sliding window of W starts at ends - W.
    scale: positive, 1/sqrt(D) by default. soft_cap: as in `attention`.

    An empty sequence gives 0. Errors: ValueError, also where a gradient is asked for; TypeError.
    """
    _check("decode_attention", q, k, v, scale, soft_cap)
    if k.size(0) != q.size(0):
        raise ValueError(f"decode_attention: {q.size(0)} queries for a cache of {k.size(0)} sequences")
    B, capacity = q.size(0), k.size(2)
    whole_rows = torch.arange(B, dtype=torch.int32, device=q.device)[:, None]  # one page a sequence
    starts = torch.zeros(B, dtype=torch.int32, device=q.device) if starts is None else starts.int().contiguous()
    ends = torch.full_like(starts, capacity) if ends is None else ends.int().contiguous()
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
    """
    _check("paged_decode_attention", q, k, v, scale, soft_cap)
    B = q.size(0)
    if table.dim() != 2 or table.size(0) != B or lengths.shape != (B,):
        raise ValueError(
            f"paged_decode_attention: table {tuple(table.shape)} and lengths {tuple(lengths.shape)} "
            f"for {B} queries; they must be ({B}, pages of a sequence) and ({B},)"
        )
    starts, ends = torch.zeros(B, dtype=torch.int32, device=q.device), lengths.int().contiguous()
    scale = 1 / math.sqrt(q.size(-1)) if scale is None else scale
    return _decode_attention(q, k, v, table.int().contiguous(), starts, ends, scale, soft_cap)


def _check(op: str, q: Tensor, k: Tensor, v: Tensor, scale: float | None, soft_cap: float) -> None:
    require(op, {"q": q, "k": k, "v": v})
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
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
    """A contiguous cache, its rows padded on the left and filled to unequal lengths."""
    from hypothesis import strategies as st

    from kernels.lab import Mutant, Spec

    def inputs(
        generator: torch.Generator, batch: int, capacity: int, kv_heads: int, group: int, head_dim: int, **options: Any
    ) -> Inputs:
        padded, whole = options.pop("padded", True), options.pop("whole", False)
        drawn = _cache(generator, (batch, kv_heads, capacity, head_dim), batch, group, options)
        bounds = torch.randint(capacity + 1, (2, batch), generator=generator).sort(0).values  # some rows are empty
        if not whole:
            drawn.tensors["ends"] = bounds[1]
            if padded:
                drawn.tensors["starts"] = bounds[0]
        return drawn

    cases = st.fixed_dictionaries(
        {**_sizes(), "capacity": st.one_of(st.integers(1, 100), st.just(300))},
        optional={"whole": st.booleans(), "padded": st.booleans()},
    )
    return Spec(
        name="decode_attention",
        op=decode_attention,
        reference=decode_attention_reference,
        cases=cases,
        inputs=inputs,
        outputs=("o",),
        needs_tensor_cores=True,
        builds=tuple(
            dict(batch=2, capacity=1024, kv_heads=2, group=4, head_dim=D, dtype=dtype)
            for D in (64, 128)
            for dtype in ("float16", "bfloat16")
        ),
        benchmarks=tuple(
            dict(batch=batch, capacity=capacity, kv_heads=8, group=4, head_dim=128, whole=True)
            for batch, capacity in ((1, 4096), (1, 65536), (32, 4096))
        ),
        work=_work,
        mutants=(
            Mutant("no mask at the end", "exists = slot < until", "exists = slot >= 0"),
            Mutant("the padding attended to", "begin = start + split * share", "begin = split * share"),
            Mutant("the last slots lost", "tl.cdiv(tl.maximum(end - start, 0), splits)", "(end - start) // splits"),
            Mutant("another head's keys", "kv_head * k_strides[1]", "0 * k_strides[1]"),
            Mutant("v read with k's stride", "row * v_strides[2]", "row * k_strides[2]"),
            Mutant("no guard for empty sequences", 'tl.where(largest == -float("inf"), 0.0, largest)', "largest"),
            Mutant("splits weighed alike", "weights[:, None] * parts", "parts"),
            Mutant("no maximum subtracted", "larger = tl.maximum(m, tl.max(s, 1) * unit)", "larger = tl.zeros_like(m)"),
            Mutant("sums not scaled to a new maximum", "acc * alpha[:, None]", "acc"),
            Mutant("query heads not told apart", "head[:, None] * q_strides[1]", "member[:, None] * q_strides[1]"),
        ),
    )


def paged_decode_attention_spec() -> Spec:
    """Pages in any order, tables longer than the sequences."""
    from hypothesis import strategies as st

    from kernels.lab import Mutant, Spec

    def inputs(
        generator: torch.Generator, batch: int, pages: int, page: int, kv_heads: int, group: int, head_dim: int,
        **options: Any,
    ) -> Inputs:  # fmt: skip
        drawn = _cache(generator, (batch * pages, kv_heads, page, head_dim), batch, group, options)
        drawn.tensors["table"] = torch.randperm(batch * pages, generator=generator).view(batch, pages).int()
        drawn.tensors["lengths"] = torch.randint(pages * page + 1, (batch,), generator=generator)
        return drawn

    return Spec(
        name="paged_decode_attention",
        op=paged_decode_attention,
        reference=paged_decode_attention_reference,
        cases=st.fixed_dictionaries({**_sizes(), "pages": st.integers(1, 6), "page": st.sampled_from([1, 5, 16, 32])}),
        inputs=inputs,
        outputs=("o",),
        needs_tensor_cores=True,
        builds=tuple(
            dict(batch=2, pages=64, page=16, kv_heads=2, group=4, head_dim=D, dtype=dtype)
            for D in (64, 128)
            for dtype in ("float16", "bfloat16")
        ),
        benchmarks=tuple(
            dict(batch=32, pages=4096 // page, page=page, kv_heads=8, group=4, head_dim=128) for page in (16, 128)
        ),
        work=_work,
        mutants=(
            Mutant("pages taken in order", "table_stride + slot // page, mask", "table_stride + slot * 0, mask"),
            Mutant("another row's table", "batch * table_stride + slot", "slot"),
            Mutant("rows not counted within the page", "(slot % page)", "(slot % (page + 1))"),
            Mutant("page and head confused", "its_page * v_strides[0]", "its_page * v_strides[1]"),
            Mutant("no mask at the end", "exists = slot < until", "exists = slot >= 0"),
            Mutant("the last slots lost", "tl.cdiv(tl.maximum(end - start, 0), splits)", "(end - start) // splits"),
            Mutant("splits weighed alike", "weights[:, None] * parts", "parts"),
        ),
    )


def _sizes() -> dict[str, Any]:
    from hypothesis import strategies as st

    return {
        "batch": st.integers(1, 3), "kv_heads": st.integers(1, 2), "group": st.sampled_from([1, 2, 3, 17]),
        "head_dim": st.one_of(st.integers(1, 40), st.just(64)), "soft_cap": st.sampled_from([0.0, 0.0, 2.0]),
        "scale": st.sampled_from([None, None, 0.3]), "size": st.sampled_from([1.0, 1.0, 0.0, 30.0]),
    }  # fmt: skip


def _cache(
    generator: torch.Generator, shape: tuple[int, int, int, int], batch: int, group: int, options: dict[str, Any]
) -> Inputs:
    """q, k and v; `size` among the options multiplies the scores."""
    from kernels.lab import Inputs

    size = options.pop("size", 1.0)
    q = size * torch.randn(batch, shape[1] * group, shape[3], generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return Inputs({"q": q, "k": k, "v": v}, {name: value for name, value in options.items() if value})


def _work(element_size: int, batch: int, kv_heads: int, group: int, head_dim: int, **sizes: int) -> Any:
    from kernels.lab import Work

    tokens = batch * (sizes["capacity"] if "capacity" in sizes else sizes["pages"] * sizes["page"])
    elements = 2 * tokens * kv_heads * head_dim + 2 * batch * kv_heads * group * head_dim
    return Work(element_size * elements, 4 * tokens * kv_heads * group * head_dim), Work(0, 0)
