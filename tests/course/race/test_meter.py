"""FLOPs are counted as the project counts them beforehand, optimizer included, and end a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from instructgpt.config import ModelConfig
from instructgpt.course.race.meter import Meter, Metered, Spent
from instructgpt.data.packing import PackedStream
from instructgpt.data.tokens import Tokens
from instructgpt.errors import UserError
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


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_product_counts_in_every_mode_and_by_every_name(mode: Any) -> None:
    x, w = torch.randn(5, 6), torch.randn(7, 6)
    ways = (lambda: F.linear(x, w), lambda: F.linear(x, w, torch.randn(7)), lambda: x @ w.T, lambda: w @ x.T,
            lambda: torch.einsum("bi,oi->bo", x, w))  # fmt: skip
    for way in ways:
        with Meter() as meter, mode():
            way()
        assert meter.flops == 2 * 5 * 6 * 7


@pytest.mark.parametrize(("layer", "gates"), [(nn.LSTM, 4), (nn.GRU, 3)])
def test_a_recurrent_layer_counts_as_its_products(layer: Any, gates: int) -> None:
    """Two matrices by each of 20 tokens; backward twice that, but for gradients that nobody asks for."""
    model, x = layer(8, 16, batch_first=True), torch.randn(2, 10, 8, requires_grad=True)
    forward = 2 * 20 * gates * 16 * (8 + 16)
    with Meter() as meter:
        y, _ = model(x)
    assert meter.flops == forward
    with meter:
        y.sum().backward()
    assert meter.flops == pytest.approx(3 * forward, rel=0.05)


@torch.library.custom_op("tests_race::product", mutates_args=())
def product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x @ y


def test_operators_that_may_hide_products_are_refused() -> None:
    x = torch.randn(1, 4, 8)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    with torch.no_grad(), Meter():
        with pytest.raises(UserError, match=r"FLOPs of tests_race\.product\.default are not counted"):
            product(x[0], x[0].T)
        with pytest.raises(UserError, match=r"FLOPs of aten\._native_multi_head_attention"):
            attention(x, x, x, need_weights=False)


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
