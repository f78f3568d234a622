from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from instructgpt.config import MODEL_PRESETS, ModelConfig
from instructgpt.model import PagedCache, Transformer
from instructgpt.model.backend import naive
from instructgpt.model.counts import (
    cache_memory,
    count_parameters,
    forward_flops_per_token,
    recomputed_flops_per_token,
    training_flops_per_token,
)
from instructgpt.training.optimizer import is_hidden_matrix

configs = st.builds(
    lambda heads, group, head_dim, **rest: ModelConfig(
        heads=heads * group, kv_heads=heads, head_dim=2 * head_dim, vocab_size=30, context=16, **rest
    ),
    heads=st.integers(1, 2), group=st.integers(1, 3), head_dim=st.integers(1, 4), layers=st.integers(1, 3),
    width=st.integers(4, 24), mlp=st.sampled_from(["gelu", "swiglu"]), norm=st.sampled_from(["layernorm", "rmsnorm"]),
    mlp_width=st.integers(4, 40), position=st.sampled_from(["learned", "rope"]), bias=st.booleans(),
    qkv_bias=st.booleans(), tie_embeddings=st.booleans(), qk_norm=st.booleans(), qk_window=st.integers(1, 4),
)  # fmt: skip


@given(config=configs)
def test_parameters_are_the_models(config: ModelConfig) -> None:
    model = dict(Transformer(config).named_parameters())
    count = count_parameters(config)
    assert count.total == sum(p.numel() for p in model.values())
    matrices = {n: p for n, p in model.items() if is_hidden_matrix(n, p)}
    assert count.matrices == sum(p.numel() for p in matrices.values())
    assert count.embeddings == sum(p.numel() for n, p in model.items() if "embedding" in n or n == "head_weight")


def test_gpt2_has_124_million_parameters() -> None:
    assert count_parameters(replace(MODEL_PRESETS["gpt2"], vocab_size=50257)).total == 124_439_808


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Counts the products of the equations alone: the reference makes others, which keep masked NaN apart."""
    attention = importlib.import_module("kernels.attention")  # the package's name is that of the function
    plain = {"_scores": lambda a, b, counts: a @ b.mT, "_sums": lambda weights, b, counts: weights @ b}
    with mock.patch.multiple(attention, **plain), FlopCounterMode(display=False) as counter:
        yield counter


@given(config=configs, rows=st.integers(1, 2), tokens=st.integers(1, 16))
def test_flops_are_those_counted_in_the_model(config: ModelConfig, rows: int, tokens: int) -> None:
    model, ids = Transformer(config, naive()), torch.zeros(rows, tokens, dtype=torch.long)
    with counting() as forward:
        logits = model(ids)
    with counting() as backward:
        logits.sum().backward()
    assert forward.get_total_flops() == forward_flops_per_token(config, tokens) * rows * tokens
    total = forward.get_total_flops() + backward.get_total_flops()
    assert total == training_flops_per_token(config, tokens) * rows * tokens


def test_flops_of_a_partial_head() -> None:
    config = ModelConfig(vocab_size=30, context=16, layers=1, width=16, heads=2)
    model, ids = Transformer(config, naive()), torch.zeros(2, 8, dtype=torch.long)
    with counting() as counter:
        model.head(model.hidden(ids)[:, ::4])
    assert counter.get_total_flops() == forward_flops_per_token(config, 8, head_share=0.25) * 16


@given(config=configs, tokens=st.integers(1, 16))
def test_flops_that_checkpointing_adds(config: ModelConfig, tokens: int) -> None:
    model, ids, spent = Transformer(config, naive()), torch.zeros(2, tokens, dtype=torch.long), {}
    for how in ("none", "blocks"):
        model.checkpoint(how)
        with counting() as counter:
            model(ids).sum().backward()
        spent[how] = counter.get_total_flops()
    assert spent["blocks"] - spent["none"] == recomputed_flops_per_token(config, tokens) * 2 * tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cache_memory_is_what_the_cache_holds(dtype: torch.dtype) -> None:
    config = ModelConfig(vocab_size=40, layers=2, width=32, heads=4, kv_heads=2, qk_window=4)
    cache = PagedCache(config, blocks=3, block_size=7, dtype=dtype)
    held = sum(tensor.nbytes for tensor in (cache.keys, cache.values, cache.unmixed))
    assert cache_memory(config, 21, dtype) == held == cache.bytes
    plain = PagedCache(replace(config, qk_window=1), blocks=3, block_size=7, dtype=dtype)
    assert cache_memory(replace(config, qk_window=1), 21, dtype) == plain.bytes
