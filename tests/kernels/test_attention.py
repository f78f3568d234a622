from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels import attention_reference


def attention_by_hand(q: Tensor, k: Tensor, v: Tensor, may_attend: Tensor, scale: float) -> Tensor:
    """One query of one head after the other, over the keys it may attend to and no others."""
    out = torch.zeros_like(q)
    group = q.size(1) // k.size(1)
    for b in range(q.size(0)):
        for h in range(q.size(1)):
            for i in range(q.size(2)):
                keys = may_attend[b, i].nonzero().squeeze(1)
                if len(keys):
                    scores = k[b, h // group, keys] @ q[b, h, i] * scale
                    out[b, h, i] = torch.softmax(scores, 0) @ v[b, h // group, keys]
    return out


@given(
    queries=st.integers(1, 6), keys=st.integers(1, 6), kv_heads=st.integers(1, 2), group=st.integers(1, 3),
    head_dim=st.integers(1, 5), causal=st.booleans(), masked=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
def test_equals_attention_by_hand(
    queries: int, keys: int, kv_heads: int, group: int, head_dim: int, causal: bool, masked: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    q = torch.randn(2, kv_heads * group, queries, head_dim, dtype=torch.float64)
    k, v = torch.randn(2, 2, kv_heads, keys, head_dim, dtype=torch.float64)
    may_attend = torch.rand(2, queries, keys) < 0.5 if masked else torch.ones(2, queries, keys, dtype=torch.bool)
    allowed = may_attend.clone()
    if causal:  # the last query stands at the last key
        for i in range(queries):
            allowed[:, i, max(0, i + keys - queries + 1) :] = False
    out = attention_reference(q, k, v, may_attend[:, None] if masked else None, causal, scale=0.7)
    torch.testing.assert_close(out, attention_by_hand(q, k, v, allowed, 0.7))


def test_default_scale_and_causality_are_torchs() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(
        attention_reference(q, k, v, causal=True), F.scaled_dot_product_attention(q, k, v, is_causal=True)
    )


def test_a_query_without_keys_gives_zero_and_clean_gradients() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    may_attend = torch.tensor([[True, False, False], [False, False, False], [True, True, False]])
    out = attention_reference(q, k, v, may_attend)
    out.sum().backward()
    assert out[0, 0, 1].eq(0).all()
    assert all(t.grad is not None and t.grad.isfinite().all() for t in (q, k, v))
    assert q.grad is not None and q.grad[0, 0, 1].eq(0).all()


def test_gradient_of_the_docstring() -> None:
    torch.manual_seed(0)
    q = torch.randn(1, 4, 5, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(1, 2, 5, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    do = torch.randn(1, 4, 5, 8, dtype=torch.float64)
    o = attention_reference(q, k, v, causal=True)
    o.backward(do)
    scale, past = 1 / math.sqrt(8), torch.ones(5, 5, dtype=torch.bool).tril()
    keys, values = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    p = torch.softmax((scale * q @ keys.mT).masked_fill(~past, -math.inf), -1)
    ds = p * (do @ values.mT - (o * do).sum(-1, keepdim=True))

    def per_kv_head(grad: Tensor) -> Tensor:
        return grad.view(1, 2, 2, 5, 8).sum(2)

    torch.testing.assert_close(q.grad, scale * ds @ keys)
    torch.testing.assert_close(k.grad, per_kv_head(scale * ds.mT @ q))
    torch.testing.assert_close(v.grad, per_kv_head(p.mT @ do))
