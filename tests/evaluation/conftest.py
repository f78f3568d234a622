from __future__ import annotations

import pytest
import torch

from instructgpt.config import ModelConfig
from instructgpt.model.transformer import Transformer
from instructgpt.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    lines = [f"the cat number {i} saw {i * 7} red birds near the old house. 猫看见鸟。" for i in range(60)]
    return Tokenizer.train(lines, vocab_size=340)


@pytest.fixture
def model(tokenizer: Tokenizer) -> Transformer:
    model = Transformer(ModelConfig(tokenizer.vocab_size, context=512, layers=1, width=16, heads=2)).double()
    model.reset(torch.Generator().manual_seed(0))
    return model.eval()
