from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from instructgpt.errors import UserError
from instructgpt.generation.sampling import (
    SamplingConfig,
    apply_temperature,
    draw,
    min_p,
    repetition_penalty,
    sample,
    top_k,
    top_p,
)

# Tenths: some tie, and none differ by rounding alone.
rows = st.lists(st.integers(-80, 80).map(lambda tenths: tenths / 10), min_size=2, max_size=12)


def numbers(count: int, seed: int = 0) -> Tensor:
    """The first number of as many seeds."""
    return torch.cat([torch.rand(1, generator=torch.Generator().manual_seed(seed + i)) for i in range(count)])


def kept(logits: Tensor) -> list[int]:
    return (logits[0] > -math.inf).nonzero().flatten().tolist()


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0}, {"temperature": -0.1}, {"temperature": math.nan}, {"temperature": math.inf},
        {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"min_p": -0.1}, {"min_p": 1.5}, {"repetition_penalty": 0.0},
        {"seed": -1}, {"stop": ("",)}, {"stop": "text"},
    ],
)  # fmt: skip
def test_a_wrong_setting_is_told_with_its_value(wrong: dict[str, Any]):
    ((name, value),) = wrong.items()
    with pytest.raises(UserError, match=name) as error:
        SamplingConfig(**wrong)
    assert repr(value) in str(error.value) or str(value) in str(error.value)


@given(rows, st.integers(0, 15))
def test_top_k_keeps_the_k_largest_and_their_ties(row: list[float], k: int):
    threshold = sorted(row, reverse=True)[k - 1] if 0 < k < len(row) else -math.inf
    logits = top_k(torch.tensor([row]), k)
    assert kept(logits) == [i for i, logit in enumerate(row) if logit >= threshold]
    assert [logits[0, i].item() for i in kept(logits)] == pytest.approx([row[i] for i in kept(logits)])


@given(rows, st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_tokens_that_reach_p(row: list[float], p: float):
    logits = torch.tensor([row], dtype=torch.float64)
    probabilities = logits.softmax(-1)[0].tolist()
    nucleus = kept(top_p(logits, p))
    masses = [probabilities[i] for i in nucleus]
    assert sum(masses) >= p - 1e-9
    assert sum(masses) - min(masses) < p + 1e-9
    assert min(masses) >= max((q for i, q in enumerate(probabilities) if i not in nucleus), default=0.0)


def test_top_p_by_hand():
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    assert kept(top_p(logits, 0.4)) == [1]
    assert kept(top_p(logits, 0.6)) == [1, 3]
    assert kept(top_p(logits, 0.8)) == [1, 2, 3]
    assert kept(top_p(logits, 1.0)) == [0, 1, 2, 3]
    assert kept(top_p(logits, 1e-12)) == [1]


@given(rows, st.floats(0.01, 0.99))
def test_min_p_keeps_what_is_not_too_far_below_the_best(row: list[float], p: float):
    logits = torch.tensor([row], dtype=torch.float64)
    probabilities = logits.softmax(-1)[0].tolist()
    for i, probability in enumerate(probabilities):
        if abs(probability - p * max(probabilities)) > 1e-9:
            assert (i in kept(min_p(logits, p))) == (probability > p * max(probabilities))


def test_min_p_0_and_top_p_1_and_top_k_0_change_nothing():
    logits = torch.randn(3, 9)
    assert all(torch.equal(f(logits, off), logits) for f, off in ((min_p, 0.0), (top_p, 1.0), (top_k, 0)))


def test_the_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    logits = torch.tensor([[3.0, -2.0, 1.0, -1.0]])
    is_generated = torch.tensor([[True, True, False, False]])
    assert repetition_penalty(logits, is_generated, 2.0).tolist() == [[1.5, -4.0, 1.0, -1.0]]


def test_temperature_divides_differences():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert apply_temperature(logits, 0.5).tolist() == [[-4.0, 0.0, -2.0]]


@pytest.mark.parametrize("temperature", [1e-320, 1e-30, 1e-3])
def test_a_tiny_temperature_is_greedy_not_a_crash(temperature: float):
    logits = torch.tensor([[1.0, 900.0, 800.0, -math.inf]])
    config = SamplingConfig(temperature=temperature)
    assert sample(logits, config, numbers(1)).tolist() == [1]


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
    assert draw(logits, numbers(1, seed)).tolist() == [allowed]


@pytest.mark.parametrize(("u", "token"), [(0.0, 1), (1 - 2**-24, 3)])
def test_the_extreme_numbers_draw_the_first_and_the_last_possible_token(u: float, token: int, monkeypatch):
    for total in (1.0, 0.3, 7.7):  # softmax sums to 1 only up to rounding
        logits = torch.tensor([[-math.inf, 0.0, 0.0, 1.0, -math.inf]], dtype=torch.float64)
        monkeypatch.setattr(Tensor, "softmax", lambda self, dim, total=total: self.exp() * total)
        assert draw(logits, torch.tensor([u])).tolist() == [token]


@given(st.integers(0, 1000), st.integers(1, 6))
def test_a_row_is_sampled_as_if_it_were_alone(seed: int, count: int):
    logits = torch.randn(count, 11, generator=torch.Generator().manual_seed(seed))
    config = SamplingConfig(temperature=0.8, top_k=7, top_p=0.9, min_p=0.02)
    together = sample(logits, config, numbers(count, seed)).tolist()
    alone = [sample(logits[i : i + 1], config, numbers(count, seed)[i : i + 1]).item() for i in range(count)]
    assert together == alone


def test_greedy_takes_the_largest_logit_and_needs_no_numbers():
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 2.0, -math.inf]])
    assert sample(logits, SamplingConfig()).tolist() == [1, 0]


def test_greedy_heeds_the_repetition_penalty():
    logits, is_generated = torch.tensor([[0.0, 2.0, 1.5]]), torch.tensor([[False, True, False]])
    assert sample(logits, SamplingConfig(repetition_penalty=1.2), None, is_generated).tolist() == [1]
    assert sample(logits, SamplingConfig(repetition_penalty=1.5), None, is_generated).tolist() == [2]


def test_top_p_is_of_what_top_k_leaves():
    # Of the best two, 0.4 and 0.3, the first alone has 0.57 of the mass: enough for 0.5, not without top-k.
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    config = SamplingConfig(temperature=1.0, top_k=2, top_p=0.5)
    assert {sample(logits, config, numbers(1, seed)).item() for seed in range(50)} == {0}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_no_number_has_no_token_and_leaves_the_others_alone(temperature: float):
    logits = torch.tensor([[0.0, math.nan, 1.0], [-math.inf, 3.0, -math.inf], [math.nan] * 3])
    assert sample(logits, SamplingConfig(temperature=temperature), numbers(3)).tolist() == [-1, 1, -1]
