from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import rope_reference, rope_table


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
