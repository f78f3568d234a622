from __future__ import annotations

import torch

from instructgpt.config import ModelConfig
from instructgpt.model.attention import Attention, Scope
from instructgpt.model.backend import sdpa
from kernels import rope_table


def build(heads: int, kv_heads: int, qk_norm: bool = False) -> Attention:
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=9, width=24, heads=heads, kv_heads=kv_heads, head_dim=6, qk_norm=qk_norm)
    return Attention(config, sdpa(), layer=0).double()


SCOPE = Scope(None, rope_table(torch.arange(5)[None], 6, 1e4, torch.float64), torch.arange(5)[None], None)


def test_grouped_heads_equal_repeated_heads() -> None:
    grouped, full = build(4, 2), build(4, 4)
    full.output.load_state_dict(grouped.output.state_dict())
    q, k, v = grouped.qkv.weight.detach().split((24, 12, 12))
    repeat = [w.view(2, 6, 24).repeat_interleave(2, 0).view(24, 24) for w in (k, v)]
    full.qkv.weight.data = torch.cat([q, *repeat])
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    torch.testing.assert_close(grouped(x, SCOPE), full(x, SCOPE))


def test_qk_norm_ignores_the_length_of_queries_and_keys() -> None:
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    for qk_norm in (True, False):
        attention = build(4, 2, qk_norm)
        before = attention(x, SCOPE)
        attention.qkv.weight.data[: 24 + 12] *= 50
        assert torch.allclose(attention(x, SCOPE), before, rtol=1e-2) == qk_norm


def test_one_token_gives_its_own_value() -> None:
    attention = build(4, 4)
    x = torch.randn(2, 1, 24, dtype=torch.float64)
    scope = Scope(None, rope_table(torch.tensor([[7]]), 6, 1e4, torch.float64), torch.tensor([[7]]), None)
    torch.testing.assert_close(attention(x, scope), attention.output(x @ attention.qkv.weight[48:].mT))
