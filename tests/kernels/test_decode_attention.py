from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import (
    attention_reference,
    decode_attention,
    decode_attention_reference,
    paged_decode_attention,
    paged_decode_attention_reference,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_reference_is_attention_over_the_slots_in_use() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)
    o = decode_attention_reference(q, k, v, torch.tensor([0, 2]), torch.tensor([5, 3]))
    for row, used in enumerate((slice(0, 5), slice(2, 3))):
        alone = attention_reference(q[row, None, :, None], k[row, None, :, used], v[row, None, :, used])
        torch.testing.assert_close(o[row], alone[0, :, 0])


def test_paged_reference_finds_its_pages() -> None:
    torch.manual_seed(0)
    k, v = torch.randn(2, 2, 2, 6, 8)  # (B, K, tokens, D) each
    q, lengths = torch.randn(2, 4, 8), torch.tensor([5, 6])
    table = torch.tensor([[3, 0, 5], [1, 4, 2]])
    k_pages, v_pages = torch.zeros(2, 6, 2, 2, 8)  # (pages, K, page, D) each
    for row in range(2):
        for number, page in enumerate(table[row]):
            k_pages[page], v_pages[page] = (x[row, :, 2 * number : 2 * number + 2] for x in (k, v))
    expected = decode_attention_reference(q, k, v, ends=lengths)
    torch.testing.assert_close(paged_decode_attention_reference(q, k_pages, v_pages, table, lengths), expected)


def test_slots_outside_are_never_loaded() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(*shape, device=DEVICE) for shape in ((1, 2, 16), (1, 1, 100, 16), (1, 1, 100, 16)))
    k[:, :, :7], v[:, :, 90:] = torch.nan, torch.nan
    starts, ends = torch.tensor([7], device=DEVICE), torch.tensor([90], device=DEVICE)
    o = decode_attention(q, k, v, starts, ends)
    torch.testing.assert_close(o, decode_attention_reference(q, k[:, :, 7:90], v[:, :, 7:90]))


CONTIGUOUS = pytest.mark.parametrize("function", [decode_attention, decode_attention_reference])
PAGED = pytest.mark.parametrize("function", [paged_decode_attention, paged_decode_attention_reference])


def cache(*shape: int, queries: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v with two query heads for each of the cache's."""
    torch.manual_seed(0)
    q = torch.randn(queries, 2 * shape[1], shape[3], device=DEVICE)
    k, v = torch.randn(2, *shape, device=DEVICE)
    return q, k, v


@CONTIGUOUS
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("ends", 21),
        ("ends", -1),
        ("ends", 10**9),
        ("starts", -1),
        ("starts", 21),
        ("starts", -(2**31)),
        ("ends", 2**32 + 3),
        ("starts", -(2**32)),  # would be right in 32 bits
    ],
)
def test_bounds_outside_of_the_cache_make_nan_of_their_query(
    function: Callable[..., Any], name: str, bad: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = cache(3, 1, 20, 8)
    bounds = {"starts": torch.tensor([0, 2, 4]), "ends": torch.tensor([20, 7, 9])}
    right = decode_attention_reference(q, k, v, bounds["starts"].to(DEVICE), bounds["ends"].to(DEVICE))
    if abs(bad) > 2**31:
        dtype = torch.int64
    bounds[name][1] = bad
    given = {key: x.to(DEVICE, dtype) for key, x in bounds.items()}
    o = function(q, k, v, **given)
    assert o[1].isnan().all()
    torch.testing.assert_close(o[::2], right[::2])
    monkeypatch.setenv("KERNELS_DEBUG", "1")
    with pytest.raises(ValueError, match=rf"{name}\[1\] is {bad}, outside of a cache of 20 slots"):
        function(q, k, v, **given)
    function(q[:1], k[:1], v[:1], **{key: x[:1] for key, x in given.items()})


@CONTIGUOUS
def test_an_empty_sequence_is_zero(function: Callable[..., Any]) -> None:
    q, k, v = cache(3, 1, 20, 8)
    starts, ends = (torch.tensor(x, device=DEVICE) for x in ([0, 20, 7], [0, 20, 3]))
    assert function(q, k, v, starts, ends).eq(0).all()
    assert decode_attention(q, k[:, :, :0], v[:, :, :0]).eq(0).all()


@PAGED
@pytest.mark.parametrize("bad", [-1, 5, 2**31 - 1, 2**40, 2**32])
def test_pages_outside_of_the_pool_make_nan_of_their_query(
    function: Callable[..., Any], bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that hold its tokens: what comes after its last page is not looked at."""
    q, k, v = cache(5, 1, 4, 8)
    table = torch.tensor([[3, 1, bad], [0, 2, 4], [2, bad, 0]], device=DEVICE)
    lengths = torch.tensor([8, 12, 9], device=DEVICE)
    o = function(q, k, v, table, lengths)
    assert o[2].isnan().all()
    right = paged_decode_attention_reference(q[:2], k, v, table[:2].clamp(0, 4), lengths[:2])
    torch.testing.assert_close(o[:2], right)
    monkeypatch.setenv("KERNELS_DEBUG", "1")
    with pytest.raises(ValueError, match=rf"table\[2, 1\] is {bad}, outside of a pool of 5 pages"):
        function(q, k, v, table, lengths)
    function(q[:2], k, v, table[:2], lengths[:2])


@PAGED
@pytest.mark.parametrize("bad", [-1, 13, 2**32 + 1])
def test_lengths_beyond_the_table_make_nan_of_their_query(
    function: Callable[..., Any], bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = cache(5, 1, 4, 8)
    table, lengths = torch.tensor([[3, 1, 4]] * 3, device=DEVICE), torch.tensor([12, bad, 0], device=DEVICE)
    o = function(q, k, v, table, lengths)
    assert o[0].isfinite().all() and o[1].isnan().all() and o[2].eq(0).all()
    monkeypatch.setenv("KERNELS_DEBUG", "1")
    with pytest.raises(ValueError, match=rf"lengths\[1\] is {bad}, outside of a table of 3 pages of 4 tokens"):
        function(q, k, v, table, lengths)


@PAGED
def test_an_empty_pool_has_no_pages(function: Callable[..., Any]) -> None:
    q, k, v = cache(0, 1, 4, 8)
    table = torch.zeros(3, 2, dtype=torch.int64, device=DEVICE)
    o = function(q, k, v, table, torch.tensor([0, 1, 0], device=DEVICE))
    assert o[::2].eq(0).all() and o[1].isnan().all()


@CONTIGUOUS
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in the interpreter
def test_what_is_not_finite_outside_of_a_sequence_has_no_influence(function: Callable[..., Any], value: float) -> None:
    q, k, v = cache(3, 1, 40, 8)
    starts, ends = (torch.tensor(x, device=DEVICE) for x in ([0, 5, 17], [23, 30, 40]))
    right = function(q, k, v, starts, ends)
    for row, (start, end) in enumerate(zip(starts.tolist(), ends.tolist())):
        for x in (k, v):
            x[row, :, :start] = x[row, :, end:] = value
    assert torch.equal(function(q, k, v, starts, ends), right)


@CONTIGUOUS
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_keys_that_are_never_looked_at_leave_the_others(function: Callable[..., Any]) -> None:
    """Scores of -inf in all of the first blocks."""
    q, k, v = cache(1, 1, 90, 8, queries=1)
    q, k[:, :, :35] = q.abs(), -math.inf
    torch.testing.assert_close(function(q, k, v), decode_attention_reference(q, k[:, :, 35:], v[:, :, 35:]))
    assert function(q, k[:, :, :35], v[:, :, :35]).isnan().all()


@pytest.mark.parametrize("apart", ["sequences", "heads", "slots", "channels"])
def test_offsets_pass_two_to_the_31(apart: str, tmp_path: Path) -> None:
    """What lies 2^30 elements apart, in one dimension: the third starts at 2^31. The file under it has holes."""
    sizes = {"sequences": (3, 1, 2, 16), "heads": (1, 3, 2, 16), "slots": (1, 1, 3, 16), "channels": (1, 1, 3, 3)}
    shape = sizes[apart]
    stride = [2**30 if name == apart else step for name, step in zip(("sequences", "heads", "slots"), (48, 48, 16))]
    stride.append(2**30 if apart == "channels" else 1)
    q, k, v = cache(*shape, queries=shape[0])
    far = []
    for index, x in enumerate((k, v)):
        size = 1 + sum((n - 1) * step for n, step in zip(shape, stride))
        memory = torch.from_file(str(tmp_path / str(index)), shared=True, size=size)
        far.append(memory.as_strided(shape, stride).to(DEVICE).copy_(x))
    right = decode_attention(q, k, v)
    assert torch.equal(decode_attention(q, far[0], far[1]), right)
    table = torch.arange(shape[0], device=DEVICE)[:, None]
    lengths = torch.full((shape[0],), shape[2], device=DEVICE)
    assert torch.equal(paged_decode_attention(q, far[0], far[1], table, lengths), right)


def test_a_group_of_many_heads_is_shared_among_programs() -> None:
    q, k, v = cache(2, 2, 30, 16, queries=2)
    q = torch.randn(2, 2 * 70, 16, device=DEVICE)
    torch.testing.assert_close(decode_attention(q, k, v), decode_attention_reference(q, k, v))


def test_wrong_input_is_told_with_its_numbers() -> None:
    q, k, v = (torch.randn(*shape, device=DEVICE) for shape in ((2, 3, 16), (2, 2, 5, 16), (2, 2, 5, 16)))
    with pytest.raises(ValueError, match="3 query heads are no multiple of 2"):
        decode_attention(q, k, v)
    q = q[:, :2]
    with pytest.raises(ValueError, match="no gradient"):
        decode_attention(q.requires_grad_(), k, v)
    with torch.no_grad(), pytest.raises(ValueError, match="2 queries for a cache of 1"):
        decode_attention(q, k[:1], v[:1])
    with torch.no_grad(), pytest.raises(ValueError, match=r"table is \(1, 2\) on .*; it must be \(2, 2\)"):
        paged_decode_attention(q, k, v, torch.zeros(1, 2, device=DEVICE).int(), torch.ones(2, device=DEVICE).int())
    with torch.no_grad(), pytest.raises(ValueError, match=r"ends is \(1,\) on .*; it must be \(2,\)"):
        decode_attention(q, k, v, ends=torch.ones(1, device=DEVICE).int())
    with torch.no_grad(), pytest.raises(TypeError, match=r"starts is torch.float32"):
        decode_attention(q, k, v, torch.ones(2, device=DEVICE))
