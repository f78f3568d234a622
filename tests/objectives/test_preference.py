"""The losses of compared answers, by hand and against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from instructgpt.config import ModelConfig
from instructgpt.data.comparisons import Pairs, Ranked, collate_comparisons
from instructgpt.data.tokens import Tokens
from instructgpt.model.backend import naive
from instructgpt.model.transformer import Transformer
from instructgpt.objectives.lm import Loss
from instructgpt.objectives.preference import (
    answer_logprobs,
    dpo_loss,
    ipo_loss,
    orpo_loss,
    reward_loss,
    simpo_loss,
)


def pairs(*found: tuple[int, int, float]) -> Pairs:
    better, worse, weight = zip(*found)
    return Pairs(torch.tensor(better), torch.tensor(worse), torch.tensor(weight))


ONE = pairs((0, 1, 1.0))
# A ranking of three, 0 before 1 before 2, and a pair, 3 before 4.
MANY = pairs((0, 1, 1 / 3), (0, 2, 1 / 3), (1, 2, 1 / 3), (3, 4, 1.0))


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_reward_loss_by_hand() -> None:
    # σ(ln 3) = 3/4: rewards that differ by ln 3 are right three times of four.
    loss = reward_loss(double(1 + math.log(3), 1), ONE)
    assert loss.total.item() == pytest.approx(-math.log(3 / 4)) and loss.weight.item() == 1
    assert loss.metrics["accuracy"].item() == 1 and loss.metrics["margin"].item() == pytest.approx(math.log(3))


def test_a_ranking_weighs_as_much_as_a_pair() -> None:
    rewards = double(2.0, 1.0, 0.0, 0.0, 4.0)
    loss = reward_loss(rewards, MANY)
    of_ranking = sum(math.log(1 + math.exp(-d)) for d in (1, 2, 1)) / 3
    assert loss.total.item() == pytest.approx(of_ranking + math.log(1 + math.exp(4)))
    assert loss.weight.item() == pytest.approx(2), "two prompts"
    assert loss.metrics["accuracy"].item() == pytest.approx(1.0), "all of the ranking, none of the pair"


def test_a_tie_is_half_right_and_costs_ln_2() -> None:
    loss = reward_loss(double(0.5, 0.5), ONE)
    assert loss.total.item() == pytest.approx(math.log(2)) and loss.metrics["accuracy"].item() == 0.5


def test_dpo_by_hand() -> None:
    # Shifts: chosen -1 - (-2) = 1, rejected -5 - (-3) = -2; the margin is beta · 3.
    loss = dpo_loss(double(-1, -5), double(-2, -3), ONE, beta=0.5)
    assert loss.total.item() == pytest.approx(math.log(1 + math.exp(-1.5)))
    expected = dict(chosen_logprob=-1, rejected_logprob=-5, chosen_shift=1, rejected_shift=-2, margin=1.5, accuracy=1)
    assert {name: value.item() for name, value in loss.metrics.items()} == pytest.approx(expected)


def test_dpo_with_label_noise_has_its_least_loss_where_it_says() -> None:
    """Conservative DPO stops at a margin of log((1-ε)/ε): there its gradient is zero."""
    noise = 0.2
    policy = double(math.log((1 - noise) / noise), 0).requires_grad_()
    dpo_loss(policy, double(0, 0), ONE, beta=1.0, label_noise=noise).total.backward()
    assert policy.grad is not None and policy.grad.abs().max() < 1e-12
    loss = dpo_loss(double(2, 0), double(0, 0), ONE, beta=1.0, label_noise=noise).total.item()
    assert loss == pytest.approx(0.8 * math.log(1 + math.exp(-2)) + 0.2 * math.log(1 + math.exp(2)))


def test_dpo_sees_only_the_difference() -> None:
    """Why both log-probabilities may fall: pushing both down alike changes nothing."""
    before = dpo_loss(double(-1, -5), double(-2, -3), ONE, beta=0.5)
    after = dpo_loss(double(-11, -15), double(-2, -3), ONE, beta=0.5)
    assert after.total.item() == pytest.approx(before.total.item())
    assert after.metrics["chosen_shift"].item() == -9


def test_ipo_by_hand() -> None:
    assert ipo_loss(double(-1, -5), double(-2, -3), ONE, beta=0.1).total.item() == pytest.approx((3 - 5) ** 2)
    assert ipo_loss(double(-1, -8), double(-2, -4), ONE, beta=0.1).total.item() == pytest.approx(0), "5 is the target"


def test_simpo_by_hand() -> None:
    loss = simpo_loss(double(-2, -9), double(2, 3), ONE, beta=2.0, target_margin=0.5)  # means -1 and -3
    assert loss.total.item() == pytest.approx(math.log(1 + math.exp(-(4 - 0.5))))
    assert loss.metrics["margin"].item() == pytest.approx(4)


def test_orpo_by_hand() -> None:
    # Mean probabilities 1/2 and 1/4: odds 1 and 1/3, whose ratio is 3.
    loss = orpo_loss(double(2 * math.log(0.5), 3 * math.log(0.25)), double(2, 3), ONE, ratio_weight=0.1)
    assert loss.total.item() == pytest.approx(math.log(2) - 0.1 * math.log(3 / 4))


def test_orpo_of_a_certain_answer_is_finite() -> None:
    policy = double(0, -1).requires_grad_()
    loss = orpo_loss(policy, double(1, 1), ONE, ratio_weight=0.1)
    loss.total.backward()
    assert loss.total.isfinite() and policy.grad is not None and policy.grad.isfinite().all()


LENGTHS = double(1, 2, 3, 4, 5)
OBJECTIVES: dict[str, Callable[[Tensor], Loss]] = {
    "reward": lambda x: reward_loss(x, MANY),
    "dpo": lambda x: dpo_loss(x, x.detach().flip(0), MANY, 0.3),
    "dpo, noise": lambda x: dpo_loss(x, x.detach().flip(0), MANY, 0.3, 0.1),
    "ipo": lambda x: ipo_loss(x, x.detach().flip(0), MANY, 0.3),
    "simpo": lambda x: simpo_loss(x, LENGTHS, MANY, 2.0, 0.5),
    "orpo": lambda x: orpo_loss(x, LENGTHS, MANY, 0.5),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@given(values=st.lists(st.floats(-8, -0.1), min_size=5, max_size=5))
def test_gradient_is_that_of_finite_differences(name: str, values: list[float]) -> None:
    x = double(*values).requires_grad_()
    reference = x.detach().clone()
    objective = OBJECTIVES[name]
    objective(x).total.backward()
    step = 1e-5
    for i in range(5):
        # The reference of DPO stays where it was: only the policy is moved.
        change = torch.zeros(5, dtype=torch.float64)
        change[i] = step
        up, down = (_moved(name, reference, sign * change) for sign in (1, -1))
        assert x.grad is not None
        assert x.grad[i].item() == pytest.approx((up - down) / (2 * step), rel=1e-5, abs=1e-7)


def _moved(name: str, start: Tensor, change: Tensor) -> float:
    moved = start + change
    if name.startswith(("dpo", "ipo")):
        arguments = {"dpo": (dpo_loss, (0.3,)), "dpo, noise": (dpo_loss, (0.3, 0.1)), "ipo": (ipo_loss, (0.3,))}
        function, settings = arguments[name]
        return function(moved, start.flip(0), MANY, *settings).total.item()
    return OBJECTIVES[name](moved).total.item()


@given(values=st.lists(st.floats(-50, 0), min_size=5, max_size=5), shift=st.floats(-20, 20))
def test_sums_of_parts_are_the_sum_of_the_whole(values: list[float], shift: float) -> None:
    whole = dpo_loss(double(*values), double(*values) + shift, MANY, 0.1)
    ranking = pairs((0, 1, 1 / 3), (0, 2, 1 / 3), (1, 2, 1 / 3))
    parts = [
        dpo_loss(double(*values[a:b]), double(*values[a:b]) + shift, p, 0.1)
        for a, b, p in ((0, 3, ranking), (3, 5, ONE))
    ]
    assert sum(part.total.item() for part in parts) == pytest.approx(whole.total.item(), rel=1e-6)
    assert sum(part.weight.item() for part in parts) == pytest.approx(whole.weight.item())
    for name, value in whole.metrics.items():
        assert sum(part.metrics[name].item() for part in parts) == pytest.approx(value.item(), abs=1e-6)


def test_answer_logprobs_are_sums_over_the_answer_and_its_end() -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=13, context=16, layers=2, width=16, heads=2), naive()).double()
    generator = torch.Generator().manual_seed(1)
    answers = [torch.randint(0, 13, (n,), generator=generator).int().numpy() for n in (5, 9, 3, 7)]
    prompts = (2, 2, 1, 1)
    items = [Tokens(ids, (torch.arange(len(ids)) >= p).numpy()) for ids, p in zip(answers, prompts)]
    batch = collate_comparisons([Ranked(tuple(items[:2])), Ranked(tuple(items[2:]))], context=16)
    found = answer_logprobs(model, batch)
    for ids, prompt, value in zip(answers, prompts, found):
        logits = model(torch.from_numpy(ids).long()[None])[0].log_softmax(-1)
        alone = sum(logits[t - 1, int(ids[t])].item() for t in range(prompt, len(ids)))
        assert value.item() == pytest.approx(alone, abs=1e-9)
    assert batch.lengths.tolist() == [len(ids) - prompt for ids, prompt in zip(answers, prompts)]
