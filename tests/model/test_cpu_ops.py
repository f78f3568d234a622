from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from instructgpt.model import cpu_ops
from kernels import attention_reference, rms_norm_reference, rope_reference, rope_table


def with_gradients(function: Callable[..., Tensor], tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The result of `function` in `dtype`, and its gradients, as float64."""
    inputs = [t.detach().to(dtype, copy=True).requires_grad_() for t in tensors]
    y = function(*inputs)
    torch.manual_seed(1)
    y.backward(torch.randn(y.shape).to(y.dtype))
    return [y.detach().double(), *(t.grad.double() for t in inputs)]  # type: ignore[union-attr]


def assert_as_accurate(ours: Callable[..., Tensor], reference: Callable[..., Tensor], tensors: list[Tensor]) -> None:
    """In bfloat16, result and gradients lie no further from float64's than 3 times the reference's own do."""
    tensors = [t.bfloat16().double() for t in tensors]
    exact = with_gradients(reference, tensors, torch.float64)
    theirs = with_gradients(reference, tensors, torch.bfloat16)
    for ours_, theirs_, exact_ in zip(with_gradients(ours, tensors, torch.bfloat16), theirs, exact):
        assert (ours_ - exact_).norm() <= 3 * (theirs_ - exact_).norm() + 2**-9 * exact_.norm()


@pytest.mark.parametrize("mask", ["none", "causal", "documents"])
def test_bfloat16_attention_is_as_accurate_as_the_reference(mask: str) -> None:
    torch.manual_seed(0)
    documents = (torch.arange(40) // 13).expand(2, 40)
    may_attend = (documents[:, :, None] == documents[:, None, :])[:, None] & torch.ones(40, 40).bool().tril()
    masks = {"none": (None, False), "causal": (None, True), "documents": (may_attend, False)}
    assert_as_accurate(
        lambda q, k, v: cpu_ops.attention(q, k, v, *masks[mask]),
        lambda q, k, v: attention_reference(q, k, v, *masks[mask]),
        [torch.randn(2, heads, 40, 16) for heads in (4, 2, 2)],
    )


def test_a_long_row_is_not_held_as_a_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(3, 1, 1, 9, 4).bfloat16()
    matrix = cpu_ops.attention(q, k, v, None, True)
    monkeypatch.setattr(cpu_ops, "LONGEST_MATRIX", 8)
    monkeypatch.setattr(torch, "softmax", None)  # would fail if it were
    torch.testing.assert_close(cpu_ops.attention(q, k, v, None, True), matrix, rtol=0.02, atol=0.02)


@given(shape=st.sampled_from([(1,), (5,), (2, 3, 5), (2, 1, 3, 8)]), strided=st.booleans(), seed=st.integers(0, 99))
def test_rms_norm_gradients(shape: tuple[int, ...], strided: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(*shape, 2, dtype=torch.float64)
    x = (x[..., 0] if strided else x[..., 0].contiguous()).requires_grad_()
    weight = torch.randn(shape[-1], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(cpu_ops.rms_norm(x, weight, 0.1), rms_norm_reference(x, weight, 0.1))
    assert torch.autograd.gradcheck(cpu_ops.rms_norm, (x, weight, 0.1))


def test_rope_gradients() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    table = rope_table(torch.tensor([[0, 1, 2, 3], [5, 6, 0, 1]]), 6, 1e4, torch.float64)
    torch.testing.assert_close(cpu_ops.rope(x, *table), rope_reference(x, *table))
    assert torch.autograd.gradcheck(cpu_ops.rope, (x, *table))


def test_bfloat16_norm_and_rope_are_about_as_accurate_as_their_references() -> None:
    torch.manual_seed(0)
    weight, table = torch.rand(64) + 0.5, rope_table(torch.arange(40)[None], 64, 1e4)
    x = torch.randn(2, 3, 40, 64)
    assert_as_accurate(
        lambda x, w: cpu_ops.rms_norm(x, w, 1e-5), lambda x, w: rms_norm_reference(x, w, 1e-5), [x, weight]
    )
    assert_as_accurate(lambda x: cpu_ops.rope(x, *table), lambda x: rope_reference(x, *table), [x])
