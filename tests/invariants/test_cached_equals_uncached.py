"""Invariant: a model with a cache gives the logits of one without, however tokens are fed and wherever they lie."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.config import ModelConfig
from instructgpt.model import Feed, PagedCache, Sequences, Table, Transformer, resolve_backend

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
    rows = Sequences(model.config, 2, 16, dtype=torch.float64, block_size=3)
    logits = [model(piece, cache=rows.feed(piece.size(1))) for piece in ids.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(logits, dim=1), model(ids))


@st.composite
def schedules(draw: st.DrawFn) -> tuple[int, list[list[int]], list[list[int]]]:
    """A block size, the blocks of up to 5 sequences of 16 tokens, and how many tokens of each every step feeds."""
    rows, size = draw(st.integers(1, 5)), draw(st.sampled_from([1, 3, 4]))
    each = -(-16 // size)
    # In order, as an allocator would have it, or in none.
    order = draw(st.sampled_from([None, "mixed"])) and draw(st.permutations(range(rows * each)))
    blocks = list(order or range(rows * each))
    counts = st.lists(st.sampled_from([0, 1, 1, 1, 1, 2, 5]), min_size=rows, max_size=rows)
    return size, [blocks[r * each : (r + 1) * each] for r in range(rows)], draw(st.lists(counts, max_size=9))


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("backend", ["naive", "sdpa"])
@given(schedule=schedules(), shared=st.integers(0, 9), seed=st.integers(0, 99))
def test_sequences_side_by_side(kind: str, backend: str, schedule, shared: int, seed: int) -> None:
    """Whatever else is fed, wherever the blocks lie, and whoever shares the first of them."""
    torch.manual_seed(seed)
    size, blocks, steps = schedule
    model, ids = build(kind, backend), torch.randint(40, (len(blocks), 16))
    cache = PagedCache(model.config, len(blocks) * len(blocks[0]), size, dtype=torch.float64)
    full = shared // size  # blocks of the first that all others begin with
    ids[1:, : full * size] = ids[0, : full * size]
    first = Table(blocks[0][:full])
    tables = [first, *(Table(blocks[0][:full]) for _ in blocks[1:])]
    for table, own in zip(tables, blocks):
        for block in own[full:]:
            table.append(block)
    alone, fed = model(ids), [full * size] * len(blocks)
    if full:
        model(ids[:1, : fed[0]], cache=Feed(cache, [first], [0], [fed[0]]))
    for counts in steps:
        counts = [min(count, 16 - done) for count, done in zip(counts, fed)]
        rows = sorted((r for r, count in enumerate(counts) if count), key=lambda r: counts[r] != 1)
        if not rows:
            continue
        feed = Feed(cache, [tables[r] for r in rows], [fed[r] for r in rows], [counts[r] for r in rows])
        flat = torch.cat([ids[r, fed[r] : fed[r] + counts[r]] for r in rows])[None]
        expected = torch.cat([alone[r, fed[r] : fed[r] + counts[r]] for r in rows])[None]
        torch.testing.assert_close(model(flat, cache=feed), expected)
        fed = [done + count for done, count in zip(fed, counts)]


def test_what_stands_beyond_the_end_does_not_matter() -> None:
    model = build("llama", "sdpa")
    outputs = []
    for stale in (0.0, 9.0):
        rows = Sequences(model.config, 3, 16, dtype=torch.float64)
        for held in (rows.cache.keys, rows.cache.values, rows.cache.unmixed):
            held.fill_(stale)
        model(torch.arange(9)[None], cache=rows.feed([2, 4, 3]))
        outputs.append(model(torch.tensor([[5, 6, 7]]), cache=rows.feed(1)))
    assert torch.equal(*outputs)
