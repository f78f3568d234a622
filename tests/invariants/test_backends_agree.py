"""Invariant: the sdpa and triton backends compute what the naive one does, in logits, losses and every gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.config import ModelConfig
from instructgpt.model import Transformer
from instructgpt.model.backend import naive, sdpa

configs = st.builds(
    lambda kv_heads, group, half_head_dim, **rest: ModelConfig(
        heads=kv_heads * group, kv_heads=kv_heads, head_dim=2 * half_head_dim, vocab_size=30, context=16, **rest
    ),
    kv_heads=st.integers(1, 2), group=st.integers(1, 3), half_head_dim=st.integers(1, 4), layers=st.integers(1, 2),
    width=st.integers(4, 24), mlp=st.sampled_from(["gelu", "swiglu"]), norm=st.sampled_from(["layernorm", "rmsnorm"]),
    position=st.sampled_from(["learned", "rope"]), bias=st.booleans(), tie_embeddings=st.booleans(),
    qk_norm=st.booleans(),
)  # fmt: skip


@given(config=configs, tokens=st.integers(1, 16), packed=st.booleans(), seed=st.integers(0, 999))
def test_naive_equals_sdpa(config: ModelConfig, tokens: int, packed: bool, seed: int) -> None:
    torch.manual_seed(seed)
    models = [Transformer(config, backend()).double() for backend in (naive, sdpa)]
    for ours, theirs in zip(models[0].parameters(), models[1].parameters()):
        ours.data += 0.2 * torch.randn_like(ours)
        theirs.data.copy_(ours)
    ids, targets = torch.randint(30, (2, tokens)), torch.randint(30, (2 * tokens,))
    documents = torch.randint(2, (2, tokens)).cummax(1).values if packed else None
    results = []
    for model in models:
        hidden = model.hidden(ids, documents=documents)
        losses = model.token_losses(hidden.flatten(0, 1), targets, label_smoothing=0.1)
        logprobs, entropy = model.token_logprobs(hidden.flatten(0, 1), targets, with_entropy=True)
        (losses.sum() + 0.3 * logprobs.square().sum() - 0.1 * entropy.sum()).backward()
        results.append([
            model.head(hidden).detach(), losses.detach(), logprobs.detach(), entropy.detach(),
            *(p.grad for p in model.parameters()),
        ])  # fmt: skip
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)
