from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from instructgpt.errors import UserError
from instructgpt.model.backend import naive, resolve_backend, sdpa
from kernels import rope_table

CPU = torch.device("cpu")


def test_auto_is_sdpa() -> None:
    assert resolve_backend("auto", CPU).name == "sdpa"
    assert resolve_backend("naive", CPU).name == "naive"


def test_triton_says_why_not() -> None:
    with pytest.raises(UserError, match=r"no Triton kernels.*CUDA device, not cpu; use sdpa"):
        resolve_backend("triton", CPU)


def test_unknown_name_suggests_the_near_one() -> None:
    with pytest.raises(UserError, match="did you mean 'naive'"):
        resolve_backend("naiv", CPU)


def assert_same_with_gradients(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *tensors: Tensor) -> None:
    """Both functions give the same result and the same gradients, to float64's rounding."""
    results = []
    for function in (ours, theirs):
        inputs = [t.clone().requires_grad_() for t in tensors]
        y = function(*inputs)
        torch.manual_seed(1)
        y.backward(torch.randn(y.shape, dtype=y.dtype))
        results.append([y.detach(), *(t.grad for t in inputs)])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


@given(
    queries=st.integers(1, 9), more_keys=st.integers(0, 5), kv_heads=st.integers(1, 2), group=st.integers(1, 3),
    causal=st.booleans(), masked=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
def test_sdpa_attention_equals_naive(
    queries: int, more_keys: int, kv_heads: int, group: int, causal: bool, masked: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    keys = queries + more_keys
    q = torch.randn(2, kv_heads * group, queries, 6, dtype=torch.float64)
    k, v = torch.randn(2, 2, kv_heads, keys, 6, dtype=torch.float64)
    may_attend = None
    if masked:  # the backends promise nothing for a query that may attend to nothing: it sees its own slot
        own = torch.eye(keys, dtype=torch.bool)[more_keys:]
        may_attend = ((torch.rand(2, queries, keys) < 0.5) | own)[:, None]
    assert_same_with_gradients(
        lambda q, k, v: sdpa().attention(q, k, v, may_attend, causal),
        lambda q, k, v: naive().attention(q, k, v, may_attend, causal),
        q, k, v,
    )  # fmt: skip


def test_other_operators_of_sdpa_equal_naive() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 2, 3, 5, 8, dtype=torch.float64)  # (B, H, T, D) each
    weight, bias = torch.randn(2, 8, dtype=torch.float64)
    cos, sin = rope_table(torch.tensor([[0, 1, 2, 3, 4], [0, 1, 0, 1, 2]]), 8, 1e4, torch.float64)
    targets = torch.randint(8, (30,))
    a, b = sdpa(), naive()
    assert_same_with_gradients(lambda x, w: a.rms_norm(x, w, 1e-5), lambda x, w: b.rms_norm(x, w, 1e-5), x, weight)
    assert_same_with_gradients(
        lambda x, w, c: a.layer_norm(x, w, c, 1e-5), lambda x, w, c: b.layer_norm(x, w, c, 1e-5), x, weight, bias
    )
    assert_same_with_gradients(lambda x: a.rope(x, cos, sin), lambda x: b.rope(x, cos, sin), x)
    assert_same_with_gradients(a.swiglu, b.swiglu, x, y)
    assert_same_with_gradients(a.gelu, b.gelu, x)
    for z_loss in (0.0, 0.1):
        assert_same_with_gradients(
            lambda x, z=z_loss: a.cross_entropy(x.flatten(0, 2)[:30], targets, 0.1, z),
            lambda x, z=z_loss: b.cross_entropy(x.flatten(0, 2)[:30], targets, 0.1, z),
            x.float(),
        )
