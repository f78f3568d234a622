"""FLOPs are counted as the project counts them beforehand, optimizer included, and end a run."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from instructgpt.config import ModelConfig
from instructgpt.course.race.meter import Meter, Metered, Spent
from instructgpt.data.packing import PackedStream
from instructgpt.data.tokens import Tokens
from instructgpt.model.backend import resolve_backend
from instructgpt.model.counts import training_flops_per_token
from instructgpt.model.transformer import Transformer
from instructgpt.training.muon import orthogonalize

SHAPES = (
    ModelConfig(vocab_size=50, context=64, layers=2, width=32, heads=2),
    ModelConfig(
        vocab_size=50, context=64, layers=1, width=32, heads=2, mlp="gelu", norm="layernorm", position="learned",
        bias=True, tie_embeddings=False,
    ),
)  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_training_step_costs_what_the_counts_say(shape: ModelConfig) -> None:
    model = Transformer(shape, resolve_backend("sdpa", torch.device("cpu")))
    ids = torch.randint(50, (2, 65))
    with Meter() as meter, FlopCounterMode(display=False) as pytorchs:
        F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    # Attention's backward computes the scores anew: 7 products in all where the counts have 6.
    product = 2 * 2 * 64 * shape.layers * 32 * 64
    assert meter.flops == pytest.approx(2 * 64 * training_flops_per_token(shape, 64) + product, rel=1e-3)
    assert pytorchs.get_total_flops() <= meter.flops


def test_the_optimizer_counts_too() -> None:
    with Meter() as meter:
        orthogonalize(torch.randn(3, 8, 16), 2)
    assert meter.flops == 2 * 3 * 2 * (8 * 16 * 8 + 8 * 8 * 8 + 8 * 8 * 16)


class Numbers:
    def __getitem__(self, index: int) -> Tokens:
        return Tokens.of_text(torch.arange(9, dtype=torch.int32).numpy())


def test_a_stream_ends_when_flops_or_time_are_spent() -> None:
    meter = Meter()
    stream = Metered(PackedStream(Numbers(), 8, 1), meter, 10.0, 100.0)
    next(stream)
    meter.flops = 10
    with pytest.raises(Spent, match="FLOPs"):
        next(stream)
    with pytest.raises(Spent, match="time"):
        next(Metered(PackedStream(Numbers(), 8, 1), Meter(), 10.0, 0.0))
