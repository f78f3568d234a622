"""A tokenizer of a few hundred tokens, in two languages."""

from __future__ import annotations

import pytest

from instructgpt.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([f"the cat number {i} saw {i * 7} red birds. 猫看见鸟。" for i in range(60)], vocab_size=340)
