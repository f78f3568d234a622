from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.func import functional_call

from instructgpt.config import ModelConfig
from instructgpt.model import Sequences, Transformer
from instructgpt.model.attention import Attention, Scope
from instructgpt.model.backend import naive
from instructgpt.model.short_conv import ShortConv

CONFIG = ModelConfig(vocab_size=30, context=16, layers=1, width=8, heads=2, qk_window=3)
X = torch.tensor([[[1.0, 1.0], [10.0, 2.0], [100.0, 3.0], [1000.0, 4.0]]])


def by_hand() -> ShortConv:
    """Two channels: half the vector before and a tenth of the one before that; minus the vector before, and nothing."""
    conv = ShortConv(channels=2, window=3)
    conv.weight.data = torch.tensor([[0.5, -1.0], [0.1, 0.0]])
    return conv


def test_by_hand() -> None:
    mixed = by_hand()(X, torch.arange(4)[None])
    torch.testing.assert_close(mixed, torch.tensor([[[1.0, 1.0], [10.5, 1.0], [105.1, 1.0], [1051.0, 1.0]]]))


def test_a_document_does_not_see_the_one_before() -> None:
    mixed = by_hand()(X, torch.tensor([[0, 1, 0, 1]]))
    torch.testing.assert_close(mixed, torch.tensor([[[1.0, 1.0], [10.5, 1.0], [100.0, 3.0], [1050.0, 1.0]]]))


@pytest.mark.parametrize("pieces", [[4], [1, 1, 1, 1], [3, 1], [1, 3]])
def test_a_cache_remembers_what_stands_before(pieces: list[int]) -> None:
    torch.manual_seed(0)
    conv = ShortConv(16, 3)
    conv.weight.data.normal_()
    x = torch.randn(2, 4, 16)
    rows = Sequences(CONFIG, rows=2, capacity=4, block_size=2)
    mixed = []
    for piece in x.split(pieces, dim=1):
        flat = piece.reshape(1, -1, 16)
        mixed.append(conv.after(flat, rows.feed(piece.size(1)).follow(0, flat)).view_as(piece))
    torch.testing.assert_close(torch.cat(mixed, dim=1), conv(x, torch.arange(4)[None]))


def test_a_key_finds_what_stands_after_the_same_word() -> None:
    """One head of two channels, values the input itself, keys little but the vector before: the last token, which is
    like the first, attends to the second."""
    config = ModelConfig(vocab_size=9, width=2, heads=1, qk_window=2).resolved()
    attention = Attention(config, naive(), layer=0)
    attention.qkv.weight.data = torch.cat([20 * torch.eye(2), torch.eye(2), torch.eye(2)])
    attention.output.weight.data = torch.eye(2)
    attention.qk_conv.weight.data = torch.tensor([[0.0, 0.0, 9.0, 9.0]])  # queries stay, keys become their neighbours'
    x = torch.tensor([[[1.0, 0.0], [0.0, 0.9], [0.0, 0.3], [1.0, 0.0]]])
    scope = Scope(naive().visibility(4, 4, None, x.device), None, torch.arange(4)[None], None)
    torch.testing.assert_close(attention(x, scope)[0, 3], torch.tensor([0.0, 0.9]))


def test_a_model_without_it_has_none() -> None:
    plain = Transformer(ModelConfig(vocab_size=30, context=16, layers=1, width=8, heads=2))
    assert not any("conv" in name for name, _ in plain.named_parameters())
    weight = Transformer(CONFIG).get_parameter("blocks.0.attention.qk_conv.weight")
    assert weight.shape == (2, 16) and weight.std() > 0.1


def test_gradients() -> None:
    torch.manual_seed(0)
    conv = ShortConv(3, 4).double()
    x = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)

    def mix(x: Tensor, weight: Tensor, positions: Tensor) -> Tensor:
        return functional_call(conv, {"weight": weight}, (x, positions))

    packed = torch.tensor([[0, 1, 2, 3, 0, 1], [0, 0, 1, 0, 1, 2]])
    assert gradcheck(lambda x, w: mix(x, w, packed), (x, weight))
    assert gradcheck(lambda x, w: mix(x, w, torch.arange(6)[None]), (x, weight))


@pytest.mark.parametrize("T", [1, 2, 3])
def test_shorter_than_the_window(T: int) -> None:
    conv = ShortConv(2, 4)
    conv.weight.data.fill_(1.0)
    mixed = conv(X[:, :T], torch.arange(T)[None])
    torch.testing.assert_close(mixed, X[:, :T].cumsum(1))
