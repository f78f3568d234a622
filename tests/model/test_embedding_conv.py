from __future__ import annotations

import pytest
import torch

from instructgpt.config import ModelConfig
from instructgpt.model import KVCache, Transformer
from instructgpt.model.embedding_conv import EmbeddingConv

CONFIG = ModelConfig(vocab_size=30, context=16, layers=1, width=8, heads=2, embedding_window=3)


def by_hand() -> EmbeddingConv:
    """Two channels: half the token before and a tenth of the one before that; minus the token before, and nothing."""
    conv = EmbeddingConv(width=2, window=3)
    conv.weight.data = torch.tensor([[0.5, -1.0], [0.1, 0.0]])
    return conv


def test_by_hand() -> None:
    x = torch.tensor([[[1.0, 1.0], [10.0, 2.0], [100.0, 3.0], [1000.0, 4.0]]])
    mixed = by_hand()(x, torch.tensor([[0, 1, 2, 3]]))
    torch.testing.assert_close(mixed, torch.tensor([[[1.0, 1.0], [10.5, 1.0], [105.1, 1.0], [1051.0, 1.0]]]))


def test_a_document_does_not_see_the_one_before() -> None:
    x = torch.tensor([[[1.0, 1.0], [10.0, 2.0], [100.0, 3.0], [1000.0, 4.0]]])
    mixed = by_hand()(x, torch.tensor([[0, 1, 0, 1]]))
    torch.testing.assert_close(mixed, torch.tensor([[[1.0, 1.0], [10.5, 1.0], [100.0, 3.0], [1050.0, 1.0]]]))


@pytest.mark.parametrize("pieces", [[4], [1, 1, 1, 1], [3, 1], [1, 3]])
def test_a_cache_remembers_the_tokens_before(pieces: list[int]) -> None:
    torch.manual_seed(0)
    conv = EmbeddingConv(8, 3)
    conv.weight.data.normal_()
    x = torch.randn(2, 4, 8)
    cache = KVCache(CONFIG, batch=2, capacity=4)
    mixed = []
    for piece in x.split(pieces, dim=1):
        mixed.append(conv(piece, cache.positions(piece.size(1)), cache))
        cache.advance(piece.size(1))
    torch.testing.assert_close(torch.cat(mixed, dim=1), conv(x, torch.arange(4)[None]))


def test_a_model_without_it_has_none() -> None:
    plain = Transformer(ModelConfig(vocab_size=30, context=16, layers=1, width=8, heads=2))
    assert not any("conv" in name for name, _ in plain.named_parameters())
    weight = Transformer(CONFIG).embedding_conv.weight
    assert weight.shape == (2, 8) and weight.std() > 0.1
