"""A model is an ordinary object: copied, pickled or saved whole, it computes what it did, and is its own."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from instructgpt.config import ModelConfig
from instructgpt.model.backend import naive, resolve_backend, sdpa, triton
from instructgpt.model.heads import RewardModel, ValueHead
from instructgpt.model.quantize import quantize
from instructgpt.model.transformer import Transformer

IDS = torch.arange(12).view(1, 12) % 7


def pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


def saved(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = (copy.deepcopy, pickled, saved)


def transformer(backend: str, **settings: Any) -> Transformer:
    torch.manual_seed(0)
    shape = ModelConfig(vocab_size=16, context=16, layers=1, width=32, heads=2, **settings)
    return Transformer(shape, resolve_backend(backend, torch.device("cpu"))).eval()


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("backend", ["naive", "sdpa", pytest.param("triton", marks=pytest.mark.skipif(
    torch.cuda.is_available(), reason="the interpreter is for machines without a GPU"))])  # fmt: skip
@pytest.mark.parametrize("settings", [{}, {"norm": "layernorm", "position": "learned", "mlp": "gelu", "bias": True}])
def test_a_copy_computes_the_same(copied: Callable[[Any], Any], backend: str, settings: dict[str, Any]) -> None:
    model = transformer(backend, **settings)
    with torch.no_grad():
        before = model(IDS)
        again = copied(model)
        assert torch.equal(again(IDS), before) and again.backend.name == backend
        next(again.parameters()).add_(1.0)
        assert torch.equal(model(IDS), before), "the copy's weights are its own"


@pytest.mark.parametrize("copied", COPIES)
def test_heads_and_quantized_models(copied: Callable[[Any], Any]) -> None:
    reward, value = RewardModel(transformer("sdpa")).eval(), ValueHead(32)
    last = torch.zeros_like(IDS, dtype=torch.bool)
    last[0, -1] = True
    with torch.no_grad():
        assert torch.equal(copied(reward).score([IDS[0].tolist()]), reward.score([IDS[0].tolist()]))
        assert torch.equal(copied(value)(torch.ones(3, 32)), value(torch.ones(3, 32)))
        small = quantize(transformer("sdpa"), "int8", group=32)
        assert torch.equal(copied(small)(IDS), small(IDS))


def test_a_copy_is_trained_alone() -> None:
    model = transformer("sdpa").train()
    again = pickled(model)
    again(IDS).sum().backward()
    assert all(p.grad is None for p in model.parameters()) and any(p.grad is not None for p in again.parameters())
    assert isinstance(again, nn.Module)


@pytest.mark.parametrize("backend", [naive(), sdpa(), triton()], ids=lambda backend: backend.name)
def test_backends_are_records_that_can_be_copied(backend: Any) -> None:
    assert pickled(backend) == backend == copy.deepcopy(backend)
