from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from instructgpt.generation import logits as logits_rules
from instructgpt.generation.logits import (
    apply_temperature,
    draw,
    log_probabilities,
    min_p,
    punish,
    top_k,
    top_p,
)
from instructgpt.generation.sampling import NOT_A_NUMBER, SamplingConfig, SamplingRows

# Tenths: some tie, and none differ by rounding alone.
rows = st.lists(st.integers(-80, 80).map(lambda tenths: tenths / 10), min_size=2, max_size=12)


def number(seed: int) -> Tensor:
    """The first random number of a seed, (1,)."""
    return torch.rand(1, generator=torch.Generator().manual_seed(seed))


def kept(logits: Tensor) -> list[int]:
    return (logits[0] > -math.inf).nonzero().flatten().tolist()


@given(rows, st.integers(1, 15))
def test_top_k_keeps_the_k_largest_and_their_ties(row: list[float], k: int):
    threshold = sorted(row, reverse=True)[k - 1] if 0 < k < len(row) else -math.inf
    logits = top_k(torch.tensor([row]), k)
    assert kept(logits) == [i for i, logit in enumerate(row) if logit >= threshold]
    assert [logits[0, i].item() for i in kept(logits)] == pytest.approx([row[i] for i in kept(logits)])


@given(rows, st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_tokens_that_reach_p(row: list[float], p: float):
    logits = torch.tensor([row], dtype=torch.float64)
    probabilities = logits.softmax(-1)[0].tolist()
    nucleus = kept(top_p(logits.clone(), p))
    masses = [probabilities[i] for i in nucleus]
    assert sum(masses) >= p - 1e-9
    assert sum(masses) - min(masses) < p + 1e-9
    assert min(masses) >= max((q for i, q in enumerate(probabilities) if i not in nucleus), default=0.0)


def test_top_p_by_hand():
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    assert kept(top_p(logits.clone(), 0.4)) == [1]
    assert kept(top_p(logits.clone(), 0.6)) == [1, 3]
    assert kept(top_p(logits.clone(), 0.8)) == [1, 2, 3]
    assert kept(top_p(logits.clone(), 1.0)) == [0, 1, 2, 3]
    assert kept(top_p(logits.clone(), 1e-12)) == [1]


@given(rows, st.floats(0.01, 0.99))
def test_min_p_keeps_what_is_not_too_far_below_the_best(row: list[float], p: float):
    logits = torch.tensor([row], dtype=torch.float64)
    probabilities = logits.softmax(-1)[0].tolist()
    for i, probability in enumerate(probabilities):
        if abs(probability - p * max(probabilities)) > 1e-9:
            assert (i in kept(min_p(logits.clone(), p))) == (probability > p * max(probabilities))


@given(st.lists(rows, min_size=2, max_size=5), st.data())
def test_each_row_has_a_rule_of_its_own(several: list[list[float]], data: st.DataObject):
    width = max(map(len, several))
    logits = torch.tensor([row + [-9.0] * (width - len(row)) for row in several], dtype=torch.float64)
    rules: list[tuple[Any, Any]] = [
        (top_k, st.integers(1, 15)),
        (top_p, st.floats(0.01, 0.99)),
        (min_p, st.floats(0, 1)),
    ]
    for rule, values in rules:
        each = [data.draw(values) for _ in several]
        together = rule(logits.clone(), torch.tensor(each)[:, None].double())
        assert torch.equal(together, torch.cat([rule(row[None].clone(), value) for row, value in zip(logits, each)]))


def test_the_nucleus_is_the_same_where_few_are_candidates_and_where_all_are(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    for spread in (0.01, 1, 5, 20):
        logits = (torch.randn(3, 500, generator=generator, dtype=torch.float64) * spread).round(decimals=2)
        p = torch.tensor([[0.2], [0.9], [0.999999]], dtype=torch.float64)
        found = top_p(logits.clone(), p)
        with monkeypatch.context() as patch:
            patch.setattr(logits_rules, "_likely", lambda q, _: (q, torch.arange(500).expand(3, 500)))
            assert torch.equal(found, top_p(logits.clone(), p))


def punished(logits: list[float], ids: list[int], **settings: float) -> list[float]:
    rules = SamplingRows.of([SamplingConfig(**settings)])  # pyright: ignore[reportArgumentType]
    generated = rules.generated([ids])
    assert generated is not None and rules.punished is not None
    return punish(torch.tensor([logits], dtype=torch.float64), generated, rules.punished)[0].tolist()


def test_the_repetition_penalty_divides_positive_and_multiplies_negative_logits_once():
    assert punished([3.0, -2.0, 1.0, -1.0], [0, 1, 0], repetition_penalty=2.0) == [1.5, -4.0, 1.0, -1.0]


def test_presence_counts_once_and_frequency_each_time():
    ids = [1, 3, 1, 1]
    assert punished([1.0, 1.0, 1.0, 1.0], ids, presence_penalty=0.5) == [1.0, 0.5, 1.0, 0.5]
    assert punished([1.0, 1.0, 1.0, 1.0], ids, frequency_penalty=0.5) == [1.0, -0.5, 1.0, 0.5]
    assert punished([1.0, 4.0, 1.0, 1.0], ids, frequency_penalty=-0.25, presence_penalty=1.0) == [1.0, 3.75, 1.0, 0.25]
    both = punished([1.0, 4.0, -1.0, -2.0], ids, repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.5)
    assert both == [1.0, 0.25, -1.0, -4.75]
    assert punished([1.0, 4.0], [], frequency_penalty=2.0) == [1.0, 4.0]


def test_temperature_divides_differences():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert apply_temperature(logits, 0.5).tolist() == [[-4.0, 0.0, -2.0]]


def test_draws_follow_the_probabilities():
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0], dtype=torch.float64)
    count = 20_000
    counts = torch.zeros(5, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(count // 100):
        counts += draw(probabilities.log().expand(100, 5), torch.rand(100, generator=generator)).bincount(minlength=5)
    assert counts[[1, 4]].tolist() == [0, 0]
    # Five standard deviations of a binomial.
    assert ((counts / count - probabilities).abs() <= 5 * (probabilities * (1 - probabilities) / count).sqrt()).all()


@given(st.integers(0, 10**6), st.integers(0, 7))
def test_what_has_no_probability_is_never_drawn(seed: int, allowed: int):
    logits = torch.full((1, 8), -math.inf, dtype=torch.float64)
    logits[0, allowed] = 0.0
    assert draw(logits, number(seed)).tolist() == [allowed]


@pytest.mark.parametrize(("u", "token"), [(0.0, 1), (1 - 2**-24, 3)])
def test_the_extreme_numbers_draw_the_first_and_the_last_possible_token(u: float, token: int, monkeypatch):
    for total in (1.0, 0.3, 7.7):  # softmax sums to 1 only up to rounding
        logits = torch.tensor([[-math.inf, 0.0, 0.0, 1.0, -math.inf]], dtype=torch.float64)
        monkeypatch.setattr(Tensor, "softmax", lambda self, dim, total=total: self.exp() * total)
        assert draw(logits, torch.tensor([u])).tolist() == [token]


def test_log_probabilities_by_hand():
    logits = torch.tensor([[0.1, 0.6, 0.3], [0.25, 0.25, 0.5]], dtype=torch.float64).log() + 7
    chosen, top, likeliest = log_probabilities(logits, torch.tensor([0, 2]), 2)
    assert chosen.exp().tolist() == pytest.approx([0.1, 0.5]) and chosen.dtype == torch.float32
    assert top.exp().flatten().tolist() == pytest.approx([0.6, 0.3, 0.5, 0.25])
    assert likeliest[0].tolist() == [1, 2] and likeliest[1, 0].item() == 2
    assert log_probabilities(logits, torch.tensor([0, 2]))[1].shape == (2, 0)
    assert log_probabilities(logits, torch.tensor([0, NOT_A_NUMBER]), 9)[1].shape == (2, 3)
