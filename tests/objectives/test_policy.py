"""The mathematics of policy gradients, against numbers computed by hand and against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from instructgpt.objectives.lm import Loss
from instructgpt.objectives.policy import (
    GRPOTerms,
    PPOTerms,
    adapt_coefficient,
    best_of,
    clipped_surrogate,
    clipped_value_losses,
    explained_variance,
    generalized_advantages,
    group_advantages,
    grpo_loss,
    kl_k1,
    kl_k3,
    ppo_loss,
    rewards_at_end,
    rewards_with_kl,
    whiten,
    with_pretraining,
)

LN2 = math.log(2)


def tensor(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@st.composite
def answers_in_rows(draw: st.DrawFn) -> Tensor:
    """`is_answer` (B, T): one stretch a row, with padding of any length on either side; rarely none."""
    T = draw(st.integers(1, 9))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, T - 1))
        end = draw(st.integers(start, T))
        rows.append([start <= t < end for t in range(T)])
    return torch.tensor(rows)


# ---- rewards


@given(is_answer=answers_in_rows())
def test_the_reward_sits_on_the_end_token_for_every_padding_side_and_length(is_answer: Tensor) -> None:
    scores = torch.arange(1.0, 1 + len(is_answer))
    rewards = rewards_at_end(scores, is_answer)
    for row, score, mask in zip(rewards, scores, is_answer):
        expected = [0.0] * len(mask)
        if mask.any():
            expected[int(mask.nonzero()[-1])] = float(score)
        assert row.tolist() == expected


def test_the_kl_penalty_is_on_every_token_of_the_answer_and_the_score_on_the_last() -> None:
    is_answer = torch.tensor([[False, True, True, False]])
    policy, reference = tensor([9.0, -1.0, -2.0, 9.0]), tensor([0.0, -1.5, -1.0, 0.0])
    rewards = rewards_with_kl(tensor(5.0), policy, reference, is_answer, 0.1)
    torch.testing.assert_close(rewards, tensor([0.0, -0.05, 5.1, 0.0]))


def test_k1_and_k3_by_hand() -> None:
    policy, reference = tensor(math.log(0.5), math.log(0.5)), tensor(math.log(0.25), math.log(0.75))
    torch.testing.assert_close(kl_k1(policy, reference), tensor(LN2, -math.log(1.5)))
    torch.testing.assert_close(kl_k3(policy, reference), tensor(0.5 - 1 + LN2, 1.5 - 1 - math.log(1.5)))


@given(seed=st.integers(0, 1000))
def test_both_estimators_have_the_true_kl_as_their_mean_and_k3_is_never_negative(seed: int) -> None:
    policy, reference = drawn(7, seed=seed).log_softmax(0), drawn(7, seed=seed + 1).log_softmax(0)
    true = (policy.exp() * (policy - reference)).sum()
    for estimate in (kl_k1, kl_k3):
        torch.testing.assert_close((policy.exp() * estimate(policy, reference)).sum(), true)
    assert (kl_k3(policy, reference) >= 0).all()


def test_the_coefficient_follows_the_measured_kl() -> None:
    assert adapt_coefficient(0.2, kl=6.6, target=6.0) == pytest.approx(0.2 * (1 + 0.1 * 0.1))
    assert adapt_coefficient(0.2, kl=60.0, target=6.0) == pytest.approx(0.2 * 1.02), "cut off at 20%"
    assert adapt_coefficient(0.2, kl=-1.0, target=6.0) == pytest.approx(0.2 * 0.98)
    assert adapt_coefficient(0.2, kl=6.0, target=6.0) == 0.2


# ---- advantages


def test_gae_by_hand() -> None:
    """γ = 0.5, λ = 0.5; δ = (0 + 0.5·2 - 1, 0 + 0.5·4 - 2, 8 - 4) = (0, 0, 4)."""
    is_answer = torch.tensor([[True, True, True, False]])
    rewards, values = tensor([0.0, 0.0, 8.0, 0.0]), tensor([1.0, 2.0, 4.0, 100.0])
    result = generalized_advantages(rewards, values, is_answer, discount=0.5, decay=0.5)
    torch.testing.assert_close(result.advantages, tensor([0.25, 1.0, 4.0, 0.0]))
    torch.testing.assert_close(result.returns, tensor([1.25, 3.0, 8.0, 0.0]))


def test_gae_with_lambda_one_is_the_return_minus_the_value() -> None:
    is_answer, rewards, values = torch.ones(2, 5, dtype=torch.bool), drawn(2, 5), drawn(2, 5, seed=1)
    advantages, returns = generalized_advantages(rewards, values, is_answer, discount=1.0, decay=1.0)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns, to_go)
    torch.testing.assert_close(advantages, to_go - values)


@given(is_answer=answers_in_rows(), seed=st.integers(0, 1000))
def test_advantages_are_zero_off_the_answer_and_do_not_depend_on_where_it_lies(is_answer: Tensor, seed: int) -> None:
    rewards, values = drawn(*is_answer.shape, seed=seed), drawn(*is_answer.shape, seed=seed + 1)
    advantages, returns = generalized_advantages(rewards, values, is_answer, 0.9, 0.8)
    assert (advantages[~is_answer] == 0).all() and (returns[~is_answer] == 0).all()
    for row, mask in enumerate(is_answer):
        if mask.any():
            alone = torch.ones(1, int(mask.sum()), dtype=torch.bool)
            expected = generalized_advantages(rewards[row, mask][None], values[row, mask][None], alone, 0.9, 0.8)
            torch.testing.assert_close(advantages[row, mask][None], expected.advantages)
    white = whiten(advantages, is_answer)
    assert (white[~is_answer] == 0).all()
    if is_answer.sum() > 1:
        assert float(white[is_answer].mean()) == pytest.approx(0.0, abs=1e-6)
        assert float(white[is_answer].std(unbiased=False)) == pytest.approx(1.0, rel=1e-3)


def test_whitening_by_hand_and_without_the_shift() -> None:
    is_answer = torch.tensor([[True, True, False]])
    torch.testing.assert_close(whiten(tensor([1.0, 5.0, 99.0]), is_answer), tensor([-1.0, 1.0, 0.0]))
    torch.testing.assert_close(whiten(tensor([1.0, 5.0, 99.0]), is_answer, shift=False), tensor([2.0, 4.0, 0.0]))
    assert (whiten(tensor([1.0]), torch.tensor([[False]])) == 0).all()


def test_group_advantages_by_hand() -> None:
    scores = tensor(1.0, 0.0, 0.0, 1.0, 0.5, 0.5, 0.5, 0.5)
    centred = tensor(0.5, -0.5, -0.5, 0.5, 0, 0, 0, 0)
    torch.testing.assert_close(group_advantages(scores, 4, normalise=False), centred)
    torch.testing.assert_close(group_advantages(scores, 4), centred / (math.sqrt(4 * 0.25 / 3) + 1e-4))


@given(groups=st.integers(1, 5), group=st.integers(2, 6), normalise=st.booleans(), seed=st.integers(0, 1000))
def test_the_advantages_of_a_group_sum_to_zero(groups: int, group: int, normalise: bool, seed: int) -> None:
    advantages = group_advantages(drawn(groups * group, seed=seed), group, normalise).view(groups, group)
    assert advantages.sum(1).abs().max() < 1e-9 and advantages.abs().max() > 1e-3


@pytest.mark.parametrize(("scores", "group"), [(4, 1), (6, 4)])
def test_a_group_of_one_or_in_pieces_is_refused(scores: int, group: int) -> None:
    with pytest.raises(ValueError, match=f"{scores} scores in groups of {group}"):
        group_advantages(torch.zeros(scores), group)


# ---- losses


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [
        (1.0, 2.0, -2.0),
        (1.1, 2.0, -2.2),
        (1.5, 2.0, -2.4),  # clipped: more of a good thing is not rewarded
        (0.5, 2.0, -1.0),  # not clipped: a good token made rarer is felt
        (0.5, -2.0, 1.6),  # clipped
        (1.5, -2.0, 3.0),  # not clipped
    ],
)
def test_the_clipped_surrogate_by_hand(ratio: float, advantage: float, loss: float) -> None:
    result = clipped_surrogate(tensor(math.log(ratio)), tensor(0.0), tensor(advantage), 0.2)
    torch.testing.assert_close(result, tensor(loss))


def test_value_losses_by_hand() -> None:
    values, old, returns = tensor(1.0, 1.0, 0.1), tensor(0.0, 0.0, 0.0), tensor(2.0, 0.0, 1.0)
    torch.testing.assert_close(clipped_value_losses(values, old, returns, clip=0.0), tensor(0.5, 0.5, 0.405))
    # The first moved towards its return by more than 0.2, which does not count; the second moved away, which does.
    torch.testing.assert_close(clipped_value_losses(values, old, returns, clip=0.2), tensor(1.62, 0.5, 0.405))


def test_ppo_loss_by_hand() -> None:
    zeros = tensor(0.0, 0.0)
    loss = ppo_loss(
        tensor(math.log(1.5), 0.0), tensor(0.0, 1.0), tensor(0.3, 0.7), zeros, zeros, tensor(2.0, 1.0), zeros + 1,
        PPOTerms(value_clip=0.0, value_coefficient=0.1, entropy_coefficient=0.01),
    )  # fmt: skip
    assert float(loss.total) == pytest.approx(-2.4 - 1.0 + 0.1 * 0.5 - 0.01)
    assert float(loss.weight) == 2
    metrics = {name: float(value) for name, value in loss.metrics.items()}
    assert metrics["clip_fraction"] == 1 and metrics["ratio"] == pytest.approx(2.5)
    assert metrics["entropy"] == pytest.approx(1.0) and metrics["value_loss"] == pytest.approx(0.5)
    assert metrics["kl_to_old"] == pytest.approx(0.5 - math.log(1.5))


GRPO_ANSWERS = torch.tensor([0, 0, 0, 1])
"""An answer of three tokens, and one of one."""


@pytest.mark.parametrize(
    ("length", "total", "weight"),
    [("answer", -(2 + 2 + 2) / 3 + 3, 2), ("constant", (-6 + 3) / 10, 2), ("token", -6 + 3, 4)],
)
def test_grpo_loss_by_hand_in_its_three_averages(length: str, total: float, weight: float) -> None:
    zeros, advantages = torch.zeros(4, dtype=torch.float64), tensor(2.0, 2.0, 2.0, -3.0)
    terms = GRPOTerms(kl_coefficient=0.0, length=length)  # pyright: ignore[reportArgumentType]
    loss = grpo_loss(zeros, zeros + 0.5, zeros, zeros, advantages, GRPO_ANSWERS, 10, terms)
    assert (float(loss.total), float(loss.weight)) == (pytest.approx(total), weight)
    means = {name: float(value) / weight for name, value in loss.metrics.items()}
    assert means["entropy"] == pytest.approx(0.5) and means["ratio"] == pytest.approx(1.0), "means over tokens"


def test_grpos_kl_term_is_k3_in_the_loss() -> None:
    zeros = torch.zeros(4, dtype=torch.float64)
    terms = GRPOTerms(kl_coefficient=0.5, length="token")
    loss = grpo_loss(zeros, zeros, zeros, zeros - LN2, zeros, GRPO_ANSWERS, 10, terms)
    assert float(loss.total) == pytest.approx(4 * 0.5 * (LN2 - 0.5))


def test_pretraining_adds_gamma_times_its_mean() -> None:
    policy = Loss(tensor(6.0)[0], tensor(3.0)[0], {"x": tensor(1.0)[0]})
    mixed = with_pretraining(policy, Loss(tensor(40.0)[0], tensor(8.0)[0]), coefficient=0.1)
    assert float(mixed.total / mixed.weight) == pytest.approx(6 / 3 + 0.1 * 40 / 8)
    assert float(mixed.metrics["pretraining_loss"] / mixed.weight) == pytest.approx(5.0)
    assert float(with_pretraining(policy, Loss(tensor(0.0)[0], tensor(0.0)[0]), 1.0).total) == 6.0


# ---- gradients, each against float64 finite differences


def ppo_of(entropy_coefficient: float) -> Callable[..., Tensor]:
    terms = PPOTerms(entropy_coefficient=entropy_coefficient)
    old, old_values, advantages, returns = (drawn(6, seed=seed) for seed in range(10, 14))
    return lambda logprobs, values, entropy: (
        ppo_loss(logprobs, values, entropy, old, old_values, advantages, returns, terms).total
    )


def grpo_of(length: str) -> Callable[..., Tensor]:
    terms = GRPOTerms(length=length)  # pyright: ignore[reportArgumentType]
    old, reference, advantages = (drawn(6, seed=seed) for seed in range(10, 13))
    answers = torch.tensor([0, 0, 1, 1, 1, 2])
    return lambda logprobs: grpo_loss(logprobs, old, old, reference, advantages, answers, 8, terms).total


def mixed_of(policy: Tensor, text: Tensor) -> Tensor:
    weight = tensor(6.0)[0]
    return with_pretraining(Loss(policy.square().sum(), weight), Loss(text.exp().sum(), weight), 0.3).total


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        pytest.param(kl_k1, 2, id="k1"),
        pytest.param(kl_k3, 2, id="k3"),
        pytest.param(lambda x: clipped_surrogate(x, drawn(6, seed=7), drawn(6, seed=8), 0.2), 1, id="surrogate"),
        pytest.param(lambda x: clipped_value_losses(x, drawn(6, seed=7), drawn(6, seed=8), 0.2), 1, id="clipped value"),
        pytest.param(lambda x: clipped_value_losses(x, drawn(6, seed=7), drawn(6, seed=8), 0.0), 1, id="value"),
        pytest.param(ppo_of(0.0), 3, id="ppo"),
        pytest.param(ppo_of(0.1), 3, id="ppo with entropy"),
        pytest.param(grpo_of("answer"), 1, id="grpo"),
        pytest.param(grpo_of("constant"), 1, id="Dr. GRPO"),
        pytest.param(grpo_of("token"), 1, id="grpo by token"),
        pytest.param(mixed_of, 2, id="ptx"),
    ],
)
def test_gradients_are_those_of_finite_differences(function: Callable[..., Tensor], arguments: int) -> None:
    inputs = tuple(drawn(6, seed=number).requires_grad_() for number in range(arguments))
    assert torch.autograd.gradcheck(function, inputs)


def test_the_gradient_at_ratio_one_is_the_policy_gradient() -> None:
    logprobs, advantages = drawn(5).requires_grad_(), drawn(5, seed=1)
    clipped_surrogate(logprobs, logprobs.detach(), advantages, 0.2).sum().backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, -advantages)


# ---- measures and selection


def test_explained_variance() -> None:
    returns = tensor(1.0, 2.0, 3.0)
    assert explained_variance(returns + 5, returns) == pytest.approx(1.0)
    assert explained_variance(torch.zeros(3), returns) == pytest.approx(0.0)
    assert explained_variance(-returns, returns) == pytest.approx(-3.0)
    assert explained_variance(returns, torch.ones(3)) == 0.0


def test_best_of_takes_the_first_of_the_best_in_each_group() -> None:
    assert best_of(tensor(1.0, 3.0, 3.0, 9.0, 0.0, 9.0), 3).tolist() == [1, 3]
