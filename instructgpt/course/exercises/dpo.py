"""Direct preference optimisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from instructgpt.course.exercise import Check, Exercise, Mistake, gradient_at, numbers
from instructgpt.data.comparisons import Pairs

ONE = Pairs(torch.tensor([0]), torch.tensor([1]), torch.ones(1).double())
THREE = Pairs(torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2]), torch.full((3,), 1 / 3).double())

UNLIKE = Pairs(
    torch.tensor([0, 0, 1, 3]), torch.tensor([1, 2, 2, 4]), torch.tensor([1 / 3, 1 / 3, 1 / 3, 1.0]).double()
)


def _loss(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """Total and weight; metrics are left to you."""
    loss = function(**given)
    return {"total": loss.total, "weight": loss.weight}


def _gradient(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    policy = given["policy"].clone().requires_grad_()
    total = function(**{**given, "policy": policy}).total
    return gradient_at(total, policy)


def _is(total: float, weight: float = 1.0) -> dict[str, torch.Tensor]:
    return {"total": torch.tensor(total).double(), "weight": torch.tensor(weight).double()}


def _logprobs(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


EXERCISE = Exercise(
    place=520,
    title="DPO",
    about="The best policy for a reward and a KL has the reward β·log π/π_ref, so the policy itself can be "
    "trained as a "
    "reward model. What counts is how much further it has moved towards the better answer than towards the worse one.",
    target="instructgpt.objectives.preference.dpo_loss",
    checks=(
        Check(
            "the policy is the reference still: log 2",
            {"policy": _logprobs(-5, -9), "reference": _logprobs(-5, -9), "pairs": ONE, "beta": 0.1},
            _is(math.log(2)),
            _loss,
        ),
        Check(
            "both shifts alike: log 2",
            {"policy": _logprobs(-3, -7), "reference": _logprobs(-5, -9), "pairs": ONE, "beta": 0.5},
            _is(math.log(2)),
            _loss,
        ),
        Check(
            "a difference of shifts of 2 · log 3 at β = 1/2: log 4/3",
            {
                "policy": _logprobs(-4 + math.log(3), -6 - math.log(3)),
                "reference": _logprobs(-4, -6),
                "pairs": ONE,
                "beta": 0.5,
            },
            _is(math.log(4 / 3)),
            _loss,
        ),
        Check(
            "a quarter of the comparisons taken to be the wrong way round",
            {
                "policy": _logprobs(-4 + math.log(3), -6),
                "reference": _logprobs(-4, -6),
                "pairs": ONE,
                "beta": 1.0,
                "label_noise": 0.25,
            },
            _is(0.75 * math.log(4 / 3) + 0.25 * math.log(4)),
            _loss,
        ),
        Check(
            "three answers to a prompt",
            {"policy": numbers(3), "reference": numbers(3, seed=1), "pairs": THREE, "beta": 0.3},
            look=_loss,
        ),
        Check(
            "far off: a large loss, not an infinite one",
            {"policy": _logprobs(-9000, -1), "reference": _logprobs(-1, -1), "pairs": ONE, "beta": 0.5},
            _is(4499.5),
            _loss,
        ),
        Check(
            "comparisons that weigh unlike each other, a tenth of them the wrong way round, β = 0.3",
            {"policy": numbers(5), "reference": numbers(5, seed=1), "pairs": UNLIKE, "beta": 0.3, "label_noise": 0.1},
            look=_loss,
        ),
        Check(
            "the gradient, some the wrong way round",
            {"policy": numbers(5), "reference": numbers(5, seed=1), "pairs": UNLIKE, "beta": 2.0, "label_noise": 0.1},
            look=_gradient,
        ),
        Check(
            "the gradient",
            {"policy": numbers(3), "reference": numbers(3, seed=1), "pairs": THREE, "beta": 0.3},
            look=_gradient,
        ),
    ),
    mistakes=(
        Mistake(
            "the reference is missing: an answer that was likely from the start counts as learnt",
            "_difference(policy - reference, pairs)",
            "_difference(policy, pairs)",
        ),
        Mistake("β is missing", "beta * _difference", "_difference"),
        Mistake(
            "β divides the margin; it multiplies it",
            "beta * _difference(policy - reference, pairs)",
            "_difference(policy - reference, pairs) / beta",
        ),
        Mistake(
            "policy and reference are exchanged: this moves away from the better answer",
            "_difference(policy - reference, pairs)",
            "_difference(reference - policy, pairs)",
        ),
        Mistake(
            "`label_noise` is ignored",
            "-(1 - label_noise) * F.logsigmoid(margins) - label_noise * F.logsigmoid(-margins)",
            "-F.logsigmoid(margins)",
        ),
        Mistake(
            "the share of comparisons that are the right way round is not made smaller: 1 - ε is missing",
            "-(1 - label_noise) * F.logsigmoid(margins)",
            "-F.logsigmoid(margins)",
        ),
        Mistake(
            "the logarithm of a sigmoid that has become 0 is infinite: take logsigmoid",
            "* F.logsigmoid(margins) - label_noise * F.logsigmoid(-margins)",
            "* torch.sigmoid(margins).log() - label_noise * F.logsigmoid(-margins)",
        ),
        Mistake(
            "where the comparison is taken to be the wrong way round, β is missing",
            "label_noise * F.logsigmoid(-margins)",
            "label_noise * F.logsigmoid(-margins / beta)",
        ),
        Mistake(
            "the wrong way round is taken away: it is to be added",
            "- label_noise * F.logsigmoid(-margins)",
            "+ label_noise * F.logsigmoid(-margins)",
        ),
        Mistake(
            "the total is a mean over comparisons, whatever they weigh",
            "return _loss(losses, margins, pairs, policy, reference)",
            "return Loss(losses.mean(), pairs.weight.sum())",
        ),
        Mistake(
            "comparisons weigh alike: a prompt with many answers then weighs more than one with few",
            "return _loss(losses, margins, pairs, policy, reference)",
            "return Loss(losses.sum(), torch.tensor(float(len(losses))).double())",
        ),
        Mistake(
            "the weight is the number of comparisons: it is the sum of their weights",
            "return _loss(losses, margins, pairs, policy, reference)",
            "return Loss((losses * pairs.weight).sum(), torch.tensor(float(len(losses))).double())",
        ),
        Mistake(
            "a pair's loss is multiplied by its weight twice: `_loss` does that already",
            "return _loss(losses,",
            "return _loss(losses * pairs.weight,",
        ),
        Mistake("the loss is divided by β", "return _loss(losses,", "return _loss(losses / beta,"),
        Mistake(
            "these are differences of probabilities, not of their logarithms",
            "_difference(policy - reference, pairs)",
            "_difference(policy.exp() - reference.exp(), pairs)",
        ),
        Mistake(
            "this is IPO's square, which wants a margin of 1/2β",
            "losses = -(1 - label_noise) * F.logsigmoid(margins) - label_noise * F.logsigmoid(-margins)",
            "losses = (margins / beta - 1 / (2 * beta)).square()",
        ),
        Mistake(
            "this is a hinge, not the logarithm of a probability",
            "losses = -(1 - label_noise) * F.logsigmoid(margins) - label_noise * F.logsigmoid(-margins)",
            "losses = (1 - margins).clamp(min=0)",
        ),
        Mistake(
            "the margins are cut off, and large losses with them",
            "beta * _difference(policy - reference, pairs)",
            "(beta * _difference(policy - reference, pairs)).clamp(-50, 50)",
        ),
        Mistake(
            "the total has no gradient: the margins are detached",
            "beta * _difference(policy - reference, pairs)",
            "beta * _difference(policy - reference, pairs).detach()",
        ),
        Mistake(
            "the worse answer is given no gradient: it is detached",
            "_difference(policy - reference, pairs)",
            "((policy - reference)[pairs.better] - (policy - reference)[pairs.worse].detach())",
        ),
        Mistake(
            "the reference's gap is held against the policy's as a floor of 0: margins below 0 are cut off",
            "beta * _difference(policy - reference, pairs)",
            "beta * _difference(policy - reference, pairs).clamp(min=0)",
        ),
    ),
    hints=(
        "The reward of an answer is β times how much likelier the policy finds it than the reference does. "
        "Then it is the "
        "reward model's loss.",
        "Both log-probabilities are of whole answers, one an answer of the batch: subtract the reference "
        "first, then take "
        "better minus worse by the indices of `pairs`.",
        "-(1-ε)·log σ(m) - ε·log σ(-m) with F.logsigmoid; each pair counts with pairs.weight, and the loss's weight is "
        "their sum: `_loss` does that.",
    ),
    helpers=("instructgpt.objectives.lm:Loss",),
)
