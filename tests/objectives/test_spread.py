"""What is divided by a spread: exactly nothing where there is none, whatever the rounding; and what may overflow."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.objectives.policy import (
    adapt_coefficient,
    clipped_surrogate,
    deviations,
    explained_variance,
    group_advantages,
    kl_k3,
    whiten,
)

FLOATS = st.floats(-(2.0**99), 2.0**99, width=32)
DTYPES = st.sampled_from([torch.float32, torch.float64])


@given(FLOATS, st.integers(2, 33), DTYPES)
def test_equal_values_have_no_deviation(value: float, count: int, dtype: torch.dtype) -> None:
    values = torch.full((count,), value, dtype=dtype)
    centred, deviation = deviations(values)
    assert not centred.any() and not deviation.any()
    assert explained_variance(torch.arange(float(count)), values.float()) == 0.0
    assert not whiten(values[None].float(), torch.ones(1, count, dtype=torch.bool)).any()


@given(FLOATS, st.integers(2, 16), st.booleans(), DTYPES)
def test_a_group_that_agrees_has_no_advantage(value: float, group: int, normalise: bool, dtype: torch.dtype) -> None:
    scores = torch.cat([torch.full((group,), value, dtype=dtype), torch.arange(group, dtype=dtype)])
    advantages = group_advantages(scores, group, normalise)
    assert not advantages[:group].any(), "not even what rounding leaves: Adam makes it as large as any"
    assert advantages[group:].abs().sum() > 0 and advantages.dtype == dtype


@pytest.mark.parametrize("value", [0.1, 0.9, 1 / 3, 1e-38, -0.7, 1e30, 16777217.0])
@pytest.mark.parametrize("count", [3, 7, 8, 100, 256])
def test_values_whose_mean_is_another_float(value: float, count: int) -> None:
    scores = torch.full((count,), value)
    assert not group_advantages(scores, count).any() and float(deviations(scores.double()).deviation) == 0.0
    nudged = scores.clone()
    nudged[0] = torch.nextafter(nudged[0], torch.tensor(math.inf))  # as another row of a reward model's batch gives it
    assert float(deviations(nudged).deviation) == 0.0


@pytest.mark.parametrize(("values", "expected"), [([0.0, 1.0], 0.5), ([1e6, 1e6 + 2], 1.0), ([1e-30, 3e-30], 1e-30)])
def test_real_differences_are_kept(values: list[float], expected: float) -> None:
    centred, deviation = deviations(torch.tensor(values))
    assert float(deviation) == pytest.approx(expected, rel=1e-3) and centred[0] == -centred[1] != 0
    assert deviations(torch.tensor([1e30, -1e30])).deviation.isfinite().all(), "no square overflows"


def test_what_is_no_number_stays_visible() -> None:
    assert deviations(torch.tensor([1.0, math.nan, 1.0])).deviation.isnan().all()
    assert group_advantages(torch.tensor([1.0, math.nan]), 2).isnan().any()


@pytest.mark.parametrize("advantage", [2.0, 0.0])
@pytest.mark.parametrize("nats", [100.0, 1000.0, 3e38])
def test_a_ratio_beyond_floats_is_cut_where_the_objective_cuts_it(advantage: float, nats: float) -> None:
    logprobs = torch.tensor([nats, 0.0], requires_grad=True)
    losses = clipped_surrogate(logprobs, torch.zeros(2), torch.tensor([advantage, 1.0]), 0.2)
    assert losses.tolist() == pytest.approx([-1.2 * advantage, -1.0])
    losses.sum().backward()
    assert logprobs.grad is not None and logprobs.grad.tolist() == [0.0, -1.0]


def test_a_ratio_on_the_other_side_keeps_its_gradient() -> None:
    logprobs = torch.tensor([50.0, -100.0, 100.0], requires_grad=True)
    losses = clipped_surrogate(logprobs, torch.zeros(3), torch.tensor([-1.0, -1.0, -1.0]), 0.2)
    assert losses[0].item() == pytest.approx(math.exp(50), rel=1e-5) and losses[1].item() == pytest.approx(0.8)
    assert losses[2].item() == math.inf, "it has no bound: the step is skipped"
    losses[:2].sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist()[:2] == [pytest.approx(math.exp(50), rel=1e-5), 0.0]


@given(st.floats(-5, 5), st.floats(-2, 2), st.floats(0.01, 3))
def test_the_surrogate_is_the_papers(log_ratio: float, advantage: float, clip: float) -> None:
    ratio = math.exp(log_ratio)
    expected = -min(ratio * advantage, min(max(ratio, 1 - clip), 1 + clip) * advantage)
    args = (torch.tensor([x], dtype=torch.float64) for x in (log_ratio, 0.0, advantage))
    assert clipped_surrogate(*args, clip).item() == pytest.approx(expected, abs=1e-9)


@given(st.floats(-20, 20))
def test_k3_is_precise_near_zero(log_ratio: float) -> None:
    k3 = kl_k3(torch.tensor(0.0), torch.tensor(log_ratio)).item()
    exact = math.expm1(log_ratio) - log_ratio
    assert k3 == pytest.approx(exact, rel=1e-5, abs=1e-6 * abs(log_ratio))


@pytest.mark.parametrize(("kl", "expected"), [(math.nan, 1.0), (math.inf, 1.02), (-math.inf, 0.98), (1e300, 1.02)])
def test_a_kl_that_is_no_number_moves_nothing(kl: float, expected: float) -> None:
    assert adapt_coefficient(1.0, kl, 0.5) == pytest.approx(expected)
