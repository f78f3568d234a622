from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import RopeScaling, rope, rope_, rope_reference, rope_table
from kernels.launch import INTERPRETED

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
needs_kernels = pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="kernels cannot run here")


def test_rotates_each_half_split_pair() -> None:
    """Against complex multiplication: the pair (i, i + D/2) is one complex number, turned by position · θ^(-2i/D)."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 8, 0, 1, 100]])
    y = rope_reference(x, *rope_table(positions, 8, 500.0, torch.float64))
    pairs = torch.complex(x[..., :4], x[..., 4:])
    for b in range(2):
        for t in range(5):
            for i in range(4):
                angle = positions[b, t].item() * 500.0 ** (-2 * i / 8)
                turned = pairs[b, :, t, i] * complex(math.cos(angle), math.sin(angle))
                torch.testing.assert_close(torch.complex(y[b, :, t, i], y[b, :, t, i + 4]), turned)


@given(m=st.integers(0, 500), n=st.integers(0, 500), shift=st.integers(0, 500), seed=st.integers(0, 99))
def test_products_depend_on_the_distance_only(m: int, n: int, shift: int, seed: int) -> None:
    torch.manual_seed(seed)
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)

    def product(m: int, n: int) -> torch.Tensor:
        tables = (rope_table(torch.tensor([[p]]), 16, 1e4, torch.float64) for p in (m, n))
        return (rope_reference(q, *next(tables)) * rope_reference(k, *next(tables))).sum()

    torch.testing.assert_close(product(m, n), product(m + shift, n + shift))


def test_table_is_exact_far_out() -> None:
    cos, _ = rope_table(torch.tensor([[100_003]]), 64, 1e4)
    exact = math.cos(100_003 * 1e4 ** (-2 / 64))
    assert cos[0, 0, 1].item() == torch.tensor(exact).item()


def test_scaling_stretches_slow_rotations_and_leaves_fast_ones() -> None:
    scaling = RopeScaling(factor=8.0, low_factor=1.0, high_factor=4.0, original_context=8192)
    turns = torch.tensor([100.0, 4.0, 2.5, 1.0, 0.01], dtype=torch.float64)  # in the original context
    frequencies = turns * 2 * math.pi / 8192
    share = scaling.slow_down(frequencies) / frequencies
    torch.testing.assert_close(share.tolist(), [1.0, 1.0, 0.5 + 0.5 / 8, 1 / 8, 1 / 8])
    scaled, plain = (rope_table(torch.arange(3)[None], 64, 5e5, scaling=each)[1] for each in (scaling, None))
    assert torch.equal(scaled[..., 0], plain[..., 0]) and not torch.equal(scaled[..., -1], plain[..., -1])


def test_a_factor_of_1_scales_nothing() -> None:
    frequencies = torch.logspace(-6, 0, 20, dtype=torch.float64)
    torch.testing.assert_close(RopeScaling(1.0, 1.0, 4.0, 64).slow_down(frequencies), frequencies)


def test_gradient_is_the_rotation_back() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 2, 3, 8, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(1, 2, 3, 8, dtype=torch.float64)
    cos, sin = rope_table(torch.arange(3)[None], 8, 1e4, torch.float64)
    rope_reference(x, cos, sin).backward(dy)
    torch.testing.assert_close(x.grad, rope_reference(dy, cos, -sin))


def test_half_precision_keeps_its_dtype() -> None:
    x = torch.randn(1, 2, 3, 8).bfloat16()
    assert rope_reference(x, *rope_table(torch.arange(3)[None], 8, 1e4)).dtype == torch.bfloat16


def test_interleaved_pairs_are_the_half_split_ones_in_another_order() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    table = rope_table(torch.randint(100, (2, 5)), 8, 1e4, torch.float64)
    split = torch.cat((x[..., 0::2], x[..., 1::2]), -1)
    y, right = rope_reference(x, *table, interleaved=True), rope_reference(split, *table)
    torch.testing.assert_close(torch.cat((y[..., 0::2], y[..., 1::2]), -1), right)


@needs_kernels
@pytest.mark.parametrize("interleaved", [False, True])
def test_in_place(interleaved: bool) -> None:
    """The heads of a fused projection, turned where they lie; their neighbours stay as they are."""
    torch.manual_seed(0)
    projection = torch.randn(2, 5, 3 * 4 * 8, device=DEVICE).bfloat16()
    before = projection.clone()
    table = rope_table(torch.randint(100, (2, 5), device=DEVICE), 8, 1e4)
    q = projection[..., : 4 * 8].view(2, 5, 4, 8).transpose(1, 2)
    right = rope(q, *table, interleaved)
    assert right.stride() == torch.empty(2, 5, 4, 8).transpose(1, 2).stride()
    assert rope_(q, *table, interleaved) is q
    assert torch.equal(q, right)
    assert torch.equal(projection[..., 4 * 8 :], before[..., 4 * 8 :])


@needs_kernels
def test_in_place_is_refused_where_autograd_or_memory_forbid_it() -> None:
    x, table = torch.randn(1, 2, 3, 8, device=DEVICE), rope_table(torch.arange(3, device=DEVICE)[None], 8, 1e4)
    with pytest.raises(ValueError, match="x requires a gradient"):
        rope_(x.clone().requires_grad_(), *table)
    with torch.no_grad():
        rope_(x.clone().requires_grad_(), *table)
    for overlapping in (x[:, :1].expand(1, 2, 3, 8), x.view(-1).as_strided((1, 2, 3, 8), (48, 8, 8, 1))):
        with pytest.raises(ValueError, match="no places shared"):
            rope_(overlapping, *table)
    with pytest.raises(ValueError, match="the last must be 1"):
        rope_(x.expand(1, 2, 3, 8).transpose(-1, -2).contiguous().transpose(-1, -2), *table)


@needs_kernels
@pytest.mark.parametrize("shape", [(0, 2, 3, 8), (2, 3, 0, 8), (2, 0, 3, 8)])
def test_nothing_is_turned_in_place_where_there_is_nothing(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape, device=DEVICE)
    table = rope_table(torch.arange(shape[2], device=DEVICE)[None], 8, 1e4)
    assert rope_(x, *table) is x
    assert rope(x, *table).shape == shape


@needs_kernels
def test_offsets_beyond_31_bits(tmp_path: Path) -> None:
    """Heads 2^30 elements apart: the third starts at 2^31. The file under them has holes instead of 4 GiB."""
    apart = 2**30
    memory = torch.from_file(str(tmp_path / "heads"), shared=True, size=2 * apart + 8, dtype=torch.float16)
    x = memory.as_strided((1, 3, 1, 8), (8, apart, 8, 1)).to(DEVICE)
    torch.manual_seed(0)
    near = torch.randn(1, 3, 1, 8, dtype=torch.float16)
    x.copy_(near)
    table = rope_table(torch.tensor([[5]], device=DEVICE), 8, 1e4)
    for interleaved in (False, True):
        assert torch.equal(rope(x, *table, interleaved), rope(near.to(DEVICE), *table, interleaved))


@needs_kernels
@pytest.mark.parametrize(
    ("shape", "table_shape", "message"),
    [
        ((2, 3, 8), (1, 3, 4), r"x is \(2, 3, 8\); it must be \(B, H, T, D\)"),
        ((1, 2, 3, 7), (1, 3, 4), "with D even"),
        ((2, 2, 3, 8), (3, 3, 4), r"cos is \(3, 3, 4\); for this x cos and sin must be \(2, 3, 4\)"),
        ((2, 2, 3, 8), (2, 3, 8), "cos is"),
    ],
)
def test_bad_input_is_refused(shape: tuple[int, ...], table_shape: tuple[int, ...], message: str) -> None:
    table = torch.ones(table_shape, device=DEVICE)
    with pytest.raises(ValueError, match=message):
        rope(torch.ones(shape, device=DEVICE), table, table)


@needs_kernels
def test_a_table_that_requires_a_gradient_is_refused() -> None:
    table = torch.ones(1, 3, 4, device=DEVICE)
    with pytest.raises(ValueError, match="sin requires a gradient"):
        rope(torch.ones(1, 2, 3, 8, device=DEVICE), table, table.clone().requires_grad_())
