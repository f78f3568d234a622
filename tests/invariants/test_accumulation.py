"""Gradients of accumulated micro-batches equal those of the one large batch, however unevenly answers are spread."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.config import ModelConfig
from instructgpt.data.batch import Batch
from instructgpt.model.backend import naive
from instructgpt.model.transformer import Transformer
from instructgpt.objectives.lm import next_token_loss

T, VOCAB = 12, 11


def batch_of(seed: int, answer_lengths: list[int]) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    B = len(answer_lengths)
    ids, targets = (torch.randint(0, VOCAB, (B, T), generator=generator) for _ in range(2))
    is_target = torch.arange(T)[None] >= T - torch.tensor(answer_lengths)[:, None]
    return Batch(ids, targets, is_target, torch.arange(T).expand(B, T), torch.zeros(B, T, dtype=torch.long))


def rows(batch: Batch, chosen: slice) -> Batch:
    return Batch(*(getattr(batch, n)[chosen] for n in ("ids", "targets", "is_target", "positions", "documents")))


def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(ModelConfig(vocab_size=VOCAB, context=T, layers=2, width=16, heads=2), naive()).double()


@given(
    lengths=st.lists(st.integers(0, T), min_size=2, max_size=5),
    cuts=st.sets(st.integers(1, 4), max_size=3),
    seed=st.integers(0, 99),
)
def test_accumulation_equals_the_large_batch(lengths: list[int], cuts: set[int], seed: int) -> None:
    batch, B = batch_of(seed, lengths), len(lengths)
    large, small = model(), model()
    loss = next_token_loss(large, batch)
    (loss.total / max(loss.weight, 1)).backward()

    borders = [0, *sorted(c for c in cuts if c < B), B]
    parts = [next_token_loss(small, rows(batch, slice(a, b))) for a, b in pairwise(borders)]
    for part in parts:
        part.total.backward()
    weight = sum(float(part.weight) for part in parts)
    assert weight == float(loss.weight) == sum(lengths)
    for (name, one), two in zip(large.named_parameters(), small.parameters()):
        assert one.grad is not None and two.grad is not None
        torch.testing.assert_close(two.grad / max(weight, 1), one.grad, rtol=1e-10, atol=1e-10, msg=name)


def test_a_batch_with_nothing_to_train_on_gives_zero() -> None:
    network = model()
    loss = next_token_loss(network, batch_of(0, [0, 0]))
    assert loss.total.item() == 0.0 and loss.weight.item() == 0.0
    loss.total.backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


def test_mean_of_means_would_be_wrong() -> None:
    """What the sums are for: averaging the two halves' means weighs a token of the short answer ten times as much."""
    batch = batch_of(1, [1, 10])
    network = model()
    halves = [next_token_loss(network, rows(batch, slice(i, i + 1))) for i in range(2)]
    whole = next_token_loss(network, batch)
    mean = (whole.total / whole.weight).item()
    of_means = sum((h.total / h.weight).item() for h in halves) / 2
    of_sums = (sum(h.total for h in halves) / sum(h.weight for h in halves)).item()
    assert abs(of_sums - mean) < 1e-12 < abs(of_means - mean)
