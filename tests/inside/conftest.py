"""Random models of every kind that a config can name, in float64, and a text."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from instructgpt.config import ModelConfig
from instructgpt.model.transformer import Transformer
from instructgpt.text.tokenizer import Tokenizer
from tests.random_models import talkative

SMALL = ModelConfig(vocab_size=40, context=32, layers=2, width=24, heads=4)
SHAPES = {
    "llama": replace(SMALL, kv_heads=2, tie_embeddings=False),
    "tiny": replace(SMALL, qk_norm=True, qk_window=4),
    "gpt2": replace(SMALL, mlp="gelu", norm="layernorm", position="learned", bias=True),
    "wide heads": replace(SMALL, head_dim=10, kv_heads=1, qkv_bias=True, qk_window=2),
}


@pytest.fixture(params=list(SHAPES))
def model(request: pytest.FixtureRequest) -> Transformer:
    return random_model(SHAPES[request.param])


def random_model(shape: ModelConfig, seed: int = 0) -> Transformer:
    model = talkative(shape, seed)
    with torch.no_grad():  # what is drawn as 0 or 1 would hide that it is left out
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    return model.requires_grad_(False)


@pytest.fixture
def ids() -> Tensor:
    return text()


def text(seed: int = 0, length: int = 9) -> Tensor:
    return torch.randint(40, (length,), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    lines = [f"the cat number {i} saw {i * 7} red birds near the old house. 猫看见鸟。" for i in range(60)]
    return Tokenizer.train(lines, vocab_size=340)
