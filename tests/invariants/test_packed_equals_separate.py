"""Invariant: documents packed into one row give the logits and gradients each gives alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.config import ModelConfig
from instructgpt.model import Transformer, resolve_backend

CONFIGS = {
    "llama": ModelConfig(vocab_size=40, context=24, layers=2, width=24, heads=4, kv_heads=2, head_dim=6, qk_norm=True),
    "gpt2": ModelConfig(
        vocab_size=40, context=24, layers=2, width=24, heads=4, mlp="gelu", norm="layernorm", position="learned",
        bias=True,
    ),
    "convolution": ModelConfig(vocab_size=40, context=24, layers=2, width=24, heads=4, kv_heads=2, qk_window=4),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("backend", ["naive", "sdpa"])
@given(
    lengths=st.lists(st.integers(1, 8), min_size=1, max_size=5).filter(lambda p: sum(p) <= 20),
    padding=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_logits_and_gradients(kind: str, backend: str, lengths: list[int], padding: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = Transformer(CONFIGS[kind], resolve_backend(backend, torch.device("cpu"))).double()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    documents = [torch.randint(40, (length,)) for length in lengths]
    upstream = [torch.randn(length, 40, dtype=torch.float64) for length in lengths]

    separate = [model(document[None])[0] for document in documents]
    torch.autograd.backward(separate, upstream)
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()

    row = torch.cat([*documents, torch.zeros(padding, dtype=torch.long)])
    numbers = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)] + [torch.full((padding,), -1)])
    positions = torch.cat([torch.arange(n) for n in [*lengths, padding]])
    packed = model(row[None], positions[None], numbers[None])[0, : sum(lengths)]
    torch.testing.assert_close(packed, torch.cat(separate))
    packed.backward(torch.cat(upstream))
    for parameter, gradient in zip(model.parameters(), expected):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_token_of_one_document_does_not_reach_another() -> None:
    model = Transformer(CONFIGS["llama"])
    ids = torch.arange(10)[None]
    documents = torch.tensor([[0] * 4 + [1] * 6])
    changed = ids.clone()
    changed[0, 3] = 33
    before, after = model(ids, documents=documents), model(changed, documents=documents)
    assert torch.equal(before[:, 4:], after[:, 4:])
    assert not torch.equal(before[:, 3], after[:, 3])
