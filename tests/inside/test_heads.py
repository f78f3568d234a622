from __future__ import annotations

import pytest
import torch

from instructgpt.inside.heads import copying, prefix_matching, score
from instructgpt.inside.trace import record
from instructgpt.model.transformer import Transformer
from tests.inside.conftest import SMALL, random_model


def pattern(period: int, back: int) -> torch.Tensor:
    """(T, T): each token looks `back` tokens back, or at the first."""
    T = 2 * period
    attention = torch.zeros(T, T)
    attention[torch.arange(T), (torch.arange(T) - back).clamp(min=0)] = 1
    return attention


@pytest.mark.parametrize("period", [2, 5, 25])
def test_a_head_that_looks_behind_the_same_token_scores_1(period: int):
    assert float(prefix_matching(pattern(period, period - 1), period)) == 1


@pytest.mark.parametrize(("back", "name"), [(25, "at the same token"), (1, "at the one before"), (0, "at itself")])
def test_one_that_looks_elsewhere_scores_0(back: int, name: str):
    assert float(prefix_matching(pattern(25, back), 25)) == 0


def test_one_that_looks_everywhere_scores_little():
    uniform = torch.ones(50, 50).tril()
    uniform /= uniform.sum(-1, keepdim=True)
    assert 0.02 < float(prefix_matching(uniform, 25)) < 0.04
    both = torch.stack([uniform, pattern(25, 24)])
    assert prefix_matching(both, 25).shape == (2,)


@torch.no_grad()
@pytest.mark.parametrize(("sign", "least", "most"), [(1.0, 0.8, 1.0), (-1.0, 0.0, 0.2)])
def test_what_a_head_says_of_what_it_sees(sign: float, least: float, most: float):
    """Head 1 of layer 0 says `sign` times the embedding of what came next, through the 6 dimensions that it has."""
    model = random_model(SMALL)
    inward = torch.linalg.qr(torch.randn(24, 6, dtype=torch.float64))[0]  # (C, D)
    model.blocks[0].attention.output.weight[:, 6:12] = sign * inward  # pyright: ignore
    trace = record(model, torch.arange(5).repeat(2))
    trace.heads[0][:, 6:12] = model.embedding.weight[trace.ids.roll(-1)] @ inward
    found = copying(model, trace, 5)
    assert found.shape == (SMALL.layers, SMALL.heads)
    assert least < float(found[0, 1]) < most


@torch.no_grad()
def test_a_head_that_says_nothing_copies_as_luck_would():
    model = random_model(SMALL)
    model.blocks[1].attention.output.weight[:, :6] = 0  # pyright: ignore
    found = copying(model, record(model, torch.arange(5).repeat(2)), 5)
    assert float(found[1, 0]) == 0.5


def test_scores_of_every_kind_of_model(model: Transformer):
    found = score(model, range(2, 40))
    assert found.induction.shape == found.copying.shape == (2, 4)
    assert ((found.induction >= 0) & (found.induction <= 1)).all() and (
        (found.copying >= 0) & (found.copying <= 1)
    ).all()
    again = score(model, range(2, 40))
    assert torch.equal(found.induction, again.induction) and torch.equal(found.copying, again.copying)
