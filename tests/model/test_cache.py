from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from instructgpt.config import ModelConfig
from instructgpt.model import KVCache

CONFIG = ModelConfig(vocab_size=9, context=16, layers=3, width=24, heads=4, kv_heads=2)


def filled(cache: KVCache, tokens: int) -> None:
    """Fills the next slots with numbers that name layer, row and slot."""
    for layer in range(3):
        slots = torch.arange(cache.length, cache.length + tokens).view(1, 1, tokens, 1)
        rows = torch.arange(cache.batch).view(-1, 1, 1, 1)
        k = (100 * layer + 10 * rows + slots).expand(-1, 2, -1, 6).float()
        keys, values = cache.append(layer, k, -k)
        assert keys.shape == values.shape == (cache.batch, 2, cache.length + tokens, 6)
        assert torch.equal(keys[:, :, -tokens:], k) and torch.equal(values, -keys)
    cache.advance(tokens)


def test_append_gives_all_that_is_held() -> None:
    cache = KVCache(CONFIG, batch=2, capacity=8)
    filled(cache, 5)
    filled(cache, 1)
    assert cache.length == 6 and cache.capacity == 8 and cache.batch == 2
    assert cache.keys[2, 1, 0, :6, 0].tolist() == [210, 211, 212, 213, 214, 215]


def test_a_full_cache_refuses_with_both_numbers() -> None:
    cache = KVCache(CONFIG, batch=1, capacity=4)
    filled(cache, 4)
    with pytest.raises(ValueError, match="holds 4 tokens a row and 5 were given"):
        filled(cache, 1)


def test_positions_and_documents_tell_padding() -> None:
    cache = KVCache(CONFIG, batch=2, capacity=8, pad_lengths=[0, 2])
    assert cache.positions(4).tolist() == [[0, 1, 2, 3], [0, 0, 0, 1]]
    documents = cache.documents(4)
    assert documents is not None and documents.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    filled(cache, 4)
    assert cache.positions(1).tolist() == [[4], [2]]
    documents = cache.documents(1)
    assert documents is not None and documents.tolist() == [[1] * 5, [0, 0, 1, 1, 1]]


def test_without_padding_there_are_no_documents() -> None:
    assert KVCache(CONFIG, batch=2, capacity=8).documents(3) is None
    assert KVCache(CONFIG, batch=2, capacity=8, pad_lengths=[0, 0]).documents(3) is None


def test_pad_lengths_must_be_one_a_row() -> None:
    with pytest.raises(ValueError, match="1 pad lengths for a batch of 2"):
        KVCache(CONFIG, batch=2, capacity=8, pad_lengths=[3])


def test_select_keeps_drops_and_repeats_rows() -> None:
    cache = KVCache(CONFIG, batch=3, capacity=4, pad_lengths=[0, 1, 2])
    filled(cache, 3)
    cache.select(torch.tensor([2, 0, 2, 2]))
    assert cache.batch == 4 and cache.length == 3
    assert cache.keys[1, :, 0, 0, 0].tolist() == [120, 100, 120, 120]
    assert cache.values[1, :, 0, 0, 0].tolist() == [-120, -100, -120, -120]
    assert cache.pad_lengths is not None and cache.pad_lengths.tolist() == [2, 0, 2, 2]


def test_select_takes_the_recent_queries_and_keys_along() -> None:
    cache = KVCache(replace(CONFIG, qk_window=3), batch=2, capacity=4)
    x = torch.arange(4.0).view(2, 2, 1).expand(-1, -1, cache.recent.size(-1))
    assert cache.follow(1, x[:, :1])[0, :, 0].tolist() == [0, 0]  # none before the first
    assert cache.follow(1, x[:, 1:])[1, :, 0].tolist() == [0, 2]
    assert not cache.recent[0].any()  # of another layer
    cache.select(torch.tensor([1, 1, 0]))
    assert cache.recent[1, :, :, 0].tolist() == [[2, 3], [2, 3], [0, 1]]


def test_dtype() -> None:
    cache = KVCache(CONFIG, batch=1, capacity=4, dtype=torch.bfloat16)
    keys, _ = cache.append(0, torch.ones(1, 2, 1, 6), torch.ones(1, 2, 1, 6))
    assert keys.dtype == torch.bfloat16


def fixed_step(cache: KVCache, number: float) -> None:
    for layer in range(3):
        k = torch.full((cache.batch, 2, 1, 6), number + layer)
        keys, values = cache.append(layer, k, -k)
        assert keys.data_ptr() == cache.keys[layer].data_ptr() and keys.shape == values.shape == (cache.batch, 2, 8, 6)
    cache.advance(1)


def test_a_fixed_cache_steps_on_the_same_addresses() -> None:
    cache = KVCache(CONFIG, batch=2, capacity=8, pad_lengths=[0, 2], fixed=True)
    filled(cache, 3)
    addresses = [cache.keys.data_ptr(), cache.values.data_ptr(), cache.slot.data_ptr()]  # type: ignore[union-attr]
    for step in range(2):
        starts, ends, slots = cache.span()
        assert starts is not None and ends is not None and slots == 8
        assert starts.tolist() == [0, 2] and ends.tolist() == [4 + step] * 2
        assert cache.positions(1).tolist() == [[3 + step], [1 + step]]
        fixed_step(cache, 1000.0 * (step + 1))
    assert cache.length == 5 and cache.slot is not None and cache.slot.tolist() == [5]
    assert cache.keys[1, 0, 0, :, 0].tolist() == [100, 101, 102, 1001, 2001, 0, 0, 0]
    assert addresses == [cache.keys.data_ptr(), cache.values.data_ptr(), cache.slot.data_ptr()]
    fixed_step(cache, 0.0)
    fixed_step(cache, 0.0)
    fixed_step(cache, 0.0)
    with pytest.raises(ValueError, match="holds 8 tokens a row and 9 were given"):
        fixed_step(cache, 0.0)


@pytest.mark.parametrize("pads", [None, [2, 0]])
def test_a_cache_loads_a_smaller_one(pads: list[int] | None) -> None:
    small, large = KVCache(CONFIG, 2, 5, pad_lengths=pads), KVCache(CONFIG, 4, 8, pad_lengths=[1, 1, 1, 1], fixed=True)
    filled(small, 4)
    filled(large, 6)
    large.load(small)
    assert large.length == 4 and large.slot is not None and large.slot.tolist() == [4]
    assert large.pad_lengths is not None and large.pad_lengths.tolist() == [*(pads or [0, 0]), 0, 0]
    assert torch.equal(large.keys[:, :2, :, :4], small.keys[:, :, :, :4])
    assert torch.equal(large.values[:, :2, :, :4], small.values[:, :, :, :4])
    with pytest.raises(ValueError, match="4 rows of 4 tokens do not fit in 2 of 5"):
        small.load(large)


def test_a_cache_that_selects_shares_nothing() -> None:
    cache = KVCache(CONFIG, batch=2, capacity=8, fixed=True)
    filled(cache, 2)
    part = copy.copy(cache)
    part.select(torch.tensor([1]))
    fixed_step(part, 5.0)
    assert cache.length == 2 and cache.slot is not None and cache.slot.tolist() == [2] and cache.batch == 2
    assert not cache.keys[:, :, :, 2].any()
