from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from instructgpt.config import ModelConfig
from instructgpt.model import Feed, PagedCache, Sequences, Table

CONFIG = ModelConfig(vocab_size=9, context=16, layers=3, width=24, heads=4, kv_heads=2)


def test_a_tables_runs_are_neighbours_that_follow_each_other() -> None:
    table = Table([4, 5, 9])
    assert table.runs[:2] == [(4, 2), (9, 1)] and table.pieces(10, 4) == [(16, 8), (36, 2)]
    version = table.version
    table.append(10)  # what was shared is a run of its own, whatever comes after
    assert table.runs == [(4, 2), (9, 1), (10, 1)] and table.version > version
    version = table.version
    table.append(11)
    assert table.runs[-1] == (10, 2) and table.version == version
    table.append(2)
    assert table.blocks == [4, 5, 9, 10, 11, 2] and table.version > version
    assert table.pieces(21, 4) == [(16, 8), (36, 4), (40, 8), (8, 1)]
    assert table.pieces(12, 4) == [(16, 8), (36, 4)]


def test_a_feed_says_where_each_token_stands_and_goes() -> None:
    cache = PagedCache(replace(CONFIG, qk_window=3), blocks=8, block_size=4)
    feed = Feed(cache, [Table([5, 1]), Table([2])], starts=[3, 0], counts=[2, 3])
    assert feed.positions.tolist() == [[3, 4, 0, 1, 2]]
    assert feed.slots.tolist() == [23, 4, 8, 9, 10]
    assert feed.before is not None and feed.is_before is not None
    assert feed.before[:2].tolist() == [[22, 21], [23, 22]] and feed.before[4].tolist() == [9, 8]
    assert feed.is_before[..., 0].tolist() == [[1, 1], [1, 1], [0, 0], [1, 0], [1, 1]]
    assert feed.decoding == 0 and Feed(cache, [Table([5, 1])] * 2, [3, 6], [1, 2]).decoding == 1


def test_what_is_written_is_found_by_slot() -> None:
    cache = PagedCache(CONFIG, blocks=4, block_size=2, dtype=torch.bfloat16)
    feed = Feed(cache, [Table([3]), Table([0, 1])], [1, 1], [1, 2])
    k = torch.arange(3.0).view(1, 1, 3, 1).expand(1, 2, 3, 6)
    feed.write(2, k, -k)
    assert cache.keys[2, :, 0, 0].tolist() == [0, 1, 2, 0, 0, 0, 0, 0] and not cache.keys[:2].any()
    assert torch.equal(cache.values, -cache.keys)
    cache.copy([1, 3], [2, 0])
    assert cache.keys[2, :, 1, 5].tolist() == [0, 0, 2, 0, 2, 0, 0, 0]


def test_sequences_refuse_what_does_not_fit_with_both_numbers() -> None:
    rows = Sequences(CONFIG, rows=2, capacity=5, block_size=2)
    assert rows.feed([3, 0]).positions.tolist() == [[0, 1, 2]]
    assert rows.feed(2).positions.tolist() == [[3, 4, 0, 1]] and rows.lengths == [5, 2]
    with pytest.raises(ValueError, match="holds 5 tokens a row and 6 were given"):
        rows.feed(1)


def test_no_gradient_goes_through_a_cache() -> None:
    rows = Sequences(CONFIG, rows=1, capacity=4)
    rows.feed(1).write(0, torch.ones(1, 2, 1, 6, requires_grad=True), torch.ones(1, 2, 1, 6))
    assert not rows.cache.keys.requires_grad


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_that_was_never_written_is_not_taken() -> None:
    """A cache of 2 GB, of which one block is used."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    cache = PagedCache(replace(CONFIG, qk_window=3), blocks=1 << 17, block_size=32)
    assert cache.bytes > 2 << 30
    Feed(cache, [Table([1 << 16])], [0], [2]).write(1, torch.ones(1, 2, 2, 6), torch.ones(1, 2, 2, 6))
    first = (1 << 16) * 32
    assert cache.keys[1, first - 1 : first + 3, 0, 0].tolist() == [0, 1, 1, 0]
    assert resident() - before < 64 << 20
