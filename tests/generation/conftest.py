"""A tokenizer of a few hundred tokens, and a random model that says many different things."""

from __future__ import annotations

import pytest

from instructgpt.config import ModelConfig
from instructgpt.model.transformer import Transformer
from instructgpt.text.tokenizer import Tokenizer
from tests.random_models import talkative


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    lines = [f"the cat number {i} saw {i * 7} red birds near the old house. 猫看见鸟。" for i in range(60)]
    return Tokenizer.train(lines, vocab_size=360)


@pytest.fixture
def model(tokenizer: Tokenizer) -> Transformer:
    """float64, so that only a wrong result differs; 24 embeddings more than tokens; ends its answers now and then."""
    vocab_size = tokenizer.vocab_size + 24
    config = ModelConfig(vocab_size, context=48, layers=2, width=32, heads=4, kv_heads=2, tie_embeddings=False)
    return talkative(config, ends={tokenizer.end: 2})
