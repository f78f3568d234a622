from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import softmax_reference


@given(
    rows=st.integers(1, 5), columns=st.integers(1, 40), scale=st.sampled_from([0.0, 1.0, 1e4]), seed=st.integers(0, 99)
)
def test_equals_torch(rows: int, columns: int, scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    x = scale * torch.randn(rows, columns, dtype=torch.float64)
    torch.testing.assert_close(softmax_reference(x), torch.softmax(x, -1))


def test_masked_entries_weigh_nothing() -> None:
    y = softmax_reference(torch.tensor([[0.0, -torch.inf, 0.0]]))
    assert y.tolist() == [[0.5, 0.0, 0.5]]


def test_half_precision_rounds_once() -> None:
    torch.manual_seed(0)
    x = 5 * torch.randn(4, 300).bfloat16()
    assert torch.equal(softmax_reference(x), softmax_reference(x.float()).bfloat16())


def test_gradient_of_the_docstring() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(3, 7, dtype=torch.float64)
    y = softmax_reference(x)
    y.backward(dy)
    torch.testing.assert_close(x.grad, y * (dy - (dy * y).sum(-1, keepdim=True)))
