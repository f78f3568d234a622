"""What the lab is told of decoding's attention, over a contiguous cache and over one in pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st

from kernels.lab import Inputs, Mutant, Spec, Work


def describe(attention: Callable[..., Any], reference: Callable[..., Any]) -> Spec:
    """A contiguous cache, its rows padded on the left and filled to unequal lengths."""
    return Spec(
        name="decode_attention",
        op=attention,
        reference=reference,
        cases=_cases(),
        inputs=_inputs,
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
            Mutant("query heads not told apart", "+ head.to(tl.int64)[:, None]", "+ member.to(tl.int64)[:, None]"),
        ),
    )


def describe_paged(attention: Callable[..., Any], reference: Callable[..., Any]) -> Spec:
    """Pages in any order, tables longer than the sequences."""
    return Spec(
        name="paged_decode_attention",
        op=attention,
        reference=reference,
        cases=_paged_cases(),
        inputs=_paged_inputs,
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


@st.composite
def _cases(draw: Any) -> dict[str, Any]:
    case = _sizes(draw)
    if draw(st.integers(0, 7)) == 7:  # more than 1,024 slots, of one head for the time's sake
        case |= dict(batch=1, kv_heads=1, group=1, capacity=1100)
    else:
        case["capacity"] = draw(st.one_of(st.integers(1, 100), st.just(300)))
    return {**case, "whole": draw(st.integers(0, 3)) == 3, "padded": draw(st.booleans())}


def _inputs(
    generator: torch.Generator, batch: int, capacity: int, kv_heads: int, group: int, head_dim: int,
    padded: bool = True, whole: bool = False, outside: bool = False, wide: bool = True, **options: Any,
) -> Inputs:  # fmt: skip
    """`outside`: the last sequence ends, or begins, where there is no slot."""
    drawn = _cache(generator, (batch, kv_heads, capacity, head_dim), batch, group, options)
    bounds = torch.randint(capacity + 1, (2, batch), generator=generator).sort(0).values  # some rows are empty
    if outside:
        bounds[int(padded), -1] = capacity + 1 if padded else -1
    if not whole:
        dtype = torch.int64 if wide else torch.int32
        drawn.tensors["ends"] = bounds[1].to(dtype)
        if padded:
            drawn.tensors["starts"] = bounds[0].to(dtype)
    return drawn


@st.composite
def _paged_cases(draw: Any) -> dict[str, Any]:
    pages, page = draw(st.one_of(
        st.tuples(st.integers(1, 6), st.sampled_from([1, 5, 16, 32])), st.sampled_from([(40, 1), (70, 3)])
    ))  # fmt: skip
    return {**_sizes(draw), "pages": pages, "page": page}


def _paged_inputs(
    generator: torch.Generator, batch: int, pages: int, page: int, kv_heads: int, group: int, head_dim: int,
    outside: bool = False, wide: bool = False, **options: Any,
) -> Inputs:  # fmt: skip
    """`outside`: a page of the last sequence is in no pool; what comes after its last page may be anything."""
    drawn = _cache(generator, (batch * pages, kv_heads, page, head_dim), batch, group, options)
    dtype = torch.int64 if wide else torch.int32
    table = torch.randperm(batch * pages, generator=generator).view(batch, pages).to(dtype)
    lengths = torch.randint(pages * page + 1, (batch,), generator=generator).to(dtype)
    table[:, -1].masked_fill_(lengths <= (pages - 1) * page, -7)
    if outside:
        table[-1, 0] = batch * pages
    drawn.tensors.update(table=table, lengths=lengths)
    return drawn


def _sizes(draw: Any) -> dict[str, Any]:
    return {
        "batch": draw(st.integers(1, 3)), "kv_heads": draw(st.integers(1, 3)),
        "group": draw(st.sampled_from([1, 2, 3, 5, 7, 17])),
        "head_dim": draw(st.one_of(st.integers(1, 40), st.just(64))),
        "soft_cap": draw(st.sampled_from([0.0, 0.0, 2.0])), "scale": draw(st.sampled_from([None, None, 0.3])),
        "size": draw(st.sampled_from([1.0, 1.0, 0.0, 30.0])), "spoilt": draw(st.integers(0, 7)) == 7,
        "outside": draw(st.integers(0, 7)) == 7, "wide": draw(st.booleans()),
    }  # fmt: skip


def _cache(
    generator: torch.Generator, shape: tuple[int, int, int, int], batch: int, group: int, options: dict[str, Any]
) -> Inputs:
    """q, k and v; `size` among the options multiplies the scores, and `spoilt` puts NaN into a key and a value."""
    size, spoilt = options.pop("size", 1.0), options.pop("spoilt", False)
    q = size * torch.randn(batch, shape[1] * group, shape[3], generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    if spoilt:
        k[-1, -1, -1, 0] = v[0, 0, shape[2] // 2, -1] = float("nan")
    return Inputs({"q": q, "k": k, "v": v}, {name: value for name, value in options.items() if value})


def _work(element_size: int, batch: int, kv_heads: int, group: int, head_dim: int, **sizes: int) -> Any:
    tokens = batch * (sizes["capacity"] if "capacity" in sizes else sizes["pages"] * sizes["page"])
    elements = 2 * tokens * kv_heads * head_dim + 2 * batch * kv_heads * group * head_dim
    return Work(element_size * elements, 4 * tokens * kv_heads * group * head_dim), Work(0, 0)
