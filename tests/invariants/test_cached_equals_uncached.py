"""Invariant: a model with a cache gives the logits of a model without, however the tokens are fed and padded."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.config import ModelConfig
from instructgpt.model import KVCache, Transformer, resolve_backend

CONFIGS = {
    "llama": ModelConfig(vocab_size=40, context=16, layers=2, width=24, heads=4, kv_heads=2, head_dim=6, qk_norm=True),
    "gpt2": ModelConfig(
        vocab_size=40, context=16, layers=2, width=24, heads=4, mlp="gelu", norm="layernorm", position="learned",
        bias=True,
    ),
    "convolution": ModelConfig(vocab_size=40, context=16, layers=2, width=24, heads=4, kv_heads=2, qk_window=4),
}  # fmt: skip


def build(kind: str, backend: str) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(CONFIGS[kind], resolve_backend(backend, torch.device("cpu"))).double()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.requires_grad_(False)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("backend", ["naive", "sdpa"])
@given(
    pieces=st.lists(st.integers(1, 5), min_size=1, max_size=5).filter(lambda p: sum(p) <= 16), seed=st.integers(0, 99)
)
def test_tokens_fed_in_pieces(kind: str, backend: str, pieces: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    model, ids = build(kind, backend), torch.randint(40, (2, sum(pieces)))
    cache = KVCache(model.config, 2, 16, dtype=torch.float64)
    logits = [model(piece, cache=cache) for piece in ids.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(logits, dim=1), model(ids))


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("backend", ["naive", "sdpa"])
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), pad=st.integers(0, 39), seed=st.integers(0, 99))
def test_prompts_of_unequal_length(kind: str, backend: str, lengths: list[int], pad: int, seed: int) -> None:
    """Left-padded, prefilled, decoded and then cut down to chosen rows: each row equals its tokens alone."""
    torch.manual_seed(seed)
    model, rows = build(kind, backend), [torch.randint(40, (length + 4,)) for length in lengths]
    longest = max(lengths)
    pads = [longest - length for length in lengths]
    padded = torch.stack([torch.cat([torch.full((p,), pad), row]) for p, row in zip(pads, rows)])
    alone = [model(row[None])[0] for row in rows]

    cache = KVCache(model.config, len(rows), longest + 4, dtype=torch.float64, pad_lengths=pads)
    prefill = model(padded[:, :longest], cache=cache)
    for row, p, expected in zip(prefill, pads, alone):
        torch.testing.assert_close(row[p:], expected[: longest - p])
    for step in range(longest, longest + 2):
        decoded = model(padded[:, step : step + 1], cache=cache)[:, 0]
        torch.testing.assert_close(decoded, torch.stack([a[step - p] for a, p in zip(alone, pads)]))

    kept = torch.tensor([len(rows) - 1, 0, 0])  # drops the middle, reorders, repeats
    cache.select(kept)
    decoded = model(padded[kept, longest + 2 :], cache=cache)
    torch.testing.assert_close(decoded, torch.stack([alone[i][-2:] for i in kept]))


def test_what_stands_in_the_padding_does_not_matter() -> None:
    model = build("llama", "sdpa")
    outputs = []
    for pad in (0, 39):
        cache = KVCache(model.config, 1, 8, dtype=torch.float64, pad_lengths=[3])
        outputs.append(model(torch.tensor([[pad, pad, pad, 5, 6]]), cache=cache)[:, 3:])
    assert torch.equal(*outputs)
