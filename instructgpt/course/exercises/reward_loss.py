"""The reward model's loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from instructgpt.course.exercise import Check, Exercise, Mistake, gradient_at, numbers
from instructgpt.data.comparisons import Pairs


def _pairs(better: list[int], worse: list[int], weight: float = 1.0) -> Pairs:
    return Pairs(torch.tensor(better), torch.tensor(worse), torch.full((len(better),), weight).double())


def _loss(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """Total and weight; metrics are left to you."""
    loss = function(**given)
    return {"total": loss.total, "weight": loss.weight}


def _gradient(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    rewards = given["rewards"].clone().requires_grad_()
    total = function(rewards, given["pairs"]).total
    return gradient_at(total, rewards)


def _is(total: float, weight: float) -> dict[str, torch.Tensor]:
    return {"total": torch.tensor(total).double(), "weight": torch.tensor(weight).double()}


def _rewards(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


ONE = _pairs([0], [1])
THREE = _pairs([0, 0, 1], [1, 2, 2], 1 / 3)

EXERCISE = Exercise(
    place=510,
    title="The reward model's loss",
    about="People say which of two answers is better, and a reward model learns numbers that explain it: the "
    "probability "
    "that an answer wins is σ of the difference of rewards. All answers to a prompt together weigh 1.",
    target="instructgpt.objectives.preference.reward_loss",
    checks=(
        Check("equal rewards: log 2", {"rewards": _rewards(3, 3), "pairs": ONE}, _is(math.log(2), 1.0), _loss),
        Check(
            "the better answer is ahead by log 3: log 4/3",
            {"rewards": _rewards(math.log(3), 0), "pairs": ONE},
            _is(math.log(4 / 3), 1.0),
            _loss,
        ),
        Check(
            "three answers to one prompt weigh 1 together",
            {"rewards": _rewards(2, 2, 2), "pairs": THREE},
            _is(math.log(2), 1.0),
            _loss,
        ),
        Check(
            "a prompt with three answers and one with two",
            {
                "rewards": numbers(5),
                "pairs": Pairs(
                    torch.tensor([0, 0, 1, 3]),
                    torch.tensor([1, 2, 2, 4]),
                    torch.tensor([1 / 3, 1 / 3, 1 / 3, 1.0]).double(),
                ),
            },
            look=_loss,
        ),
        Check(
            "hopelessly behind: a large loss, not an infinite one",
            {"rewards": _rewards(-1000, 1000), "pairs": ONE},
            _is(2000.0, 1.0),
            _loss,
        ),
        Check("the gradient", {"rewards": numbers(3), "pairs": THREE}, look=_gradient),
    ),
    mistakes=(
        Mistake(
            "the sign is wrong: this prefers the worse answer",
            "rewards[pairs.better] - rewards[pairs.worse]",
            "rewards[pairs.worse] - rewards[pairs.better]",
        ),
        Mistake(
            "this is minus the probability: the logarithm is missing",
            "-F.logsigmoid(margins)",
            "-torch.sigmoid(margins)",
        ),
        Mistake(
            "the logarithm of a sigmoid that has become 0 is infinite: take logsigmoid",
            "-F.logsigmoid(margins)",
            "-torch.sigmoid(margins).log()",
        ),
        Mistake(
            "pairs weigh alike: a prompt with many answers then weighs more than one with few",
            "return _loss(-F.logsigmoid(margins), margins, pairs)",
            "return Loss(-F.logsigmoid(margins).sum(), torch.tensor(float(len(margins))).double())",
        ),
        Mistake(
            "the total is a mean already: it is to be a sum, with its weight beside it",
            "return _loss(-F.logsigmoid(margins), margins, pairs)",
            "return Loss((-F.logsigmoid(margins) * pairs.weight).sum() / pairs.weight.sum() / len(margins), "
            "pairs.weight.sum())",
        ),
        Mistake(
            "the weight is the number of comparisons: it is the sum of their weights",
            "return _loss(-F.logsigmoid(margins), margins, pairs)",
            "return Loss((-F.logsigmoid(margins) * pairs.weight).sum(), torch.tensor(float(len(margins))).double())",
        ),
        Mistake(
            "the total is divided by its weight already: it is to be a sum, with its weight beside it",
            "return _loss(-F.logsigmoid(margins), margins, pairs)",
            "return Loss((-F.logsigmoid(margins) * pairs.weight).sum() / pairs.weight.sum(), pairs.weight.sum())",
        ),
        Mistake(
            "the total is a mean over comparisons, whatever they weigh",
            "return _loss(-F.logsigmoid(margins), margins, pairs)",
            "return Loss(-F.logsigmoid(margins).mean(), pairs.weight.sum())",
        ),
        Mistake(
            "the margins are weighed, not their losses",
            "return _loss(-F.logsigmoid(margins), margins, pairs)",
            "return Loss(-F.logsigmoid(margins * pairs.weight).sum(), pairs.weight.sum())",
        ),
        Mistake(
            "a pair's loss is multiplied by its weight twice: `_loss` does that already",
            "-F.logsigmoid(margins)",
            "-F.logsigmoid(margins) * pairs.weight",
        ),
        Mistake(
            "something small is added before the logarithm, which cuts large losses off: take logsigmoid",
            "-F.logsigmoid(margins)",
            "-(torch.sigmoid(margins) + 1e-10).log()",
        ),
        Mistake(
            "the margins are cut off, and large losses with them",
            "rewards[pairs.better] - rewards[pairs.worse]",
            "(rewards[pairs.better] - rewards[pairs.worse]).clamp(-50, 50)",
        ),
        Mistake(
            "the worse answer is given no gradient: it is detached",
            "rewards[pairs.worse]",
            "rewards[pairs.worse].detach()",
        ),
        Mistake(
            "the total has no gradient",
            "rewards[pairs.better] - rewards[pairs.worse]",
            "(rewards[pairs.better] - rewards[pairs.worse]).detach()",
        ),
        Mistake(
            "each answer is judged by itself: what counts is the difference of rewards",
            "-F.logsigmoid(margins)",
            "(-F.logsigmoid(rewards[pairs.better]) - F.logsigmoid(-rewards[pairs.worse]))",
        ),
        Mistake(
            "neighbours are compared: `pairs.worse` says with which answer",
            "rewards[pairs.worse]",
            "rewards[(pairs.better + 1) % len(rewards)]",
        ),
        Mistake(
            "all answers compete at once: this is a softmax over the batch",
            "-F.logsigmoid(margins)",
            "-rewards.log_softmax(0)[pairs.better]",
        ),
        Mistake(
            "this is a hinge, not the logarithm of a probability",
            "-F.logsigmoid(margins)",
            "(1 - margins).clamp(min=0)",
        ),
    ),
    hints=(
        "Bradley and Terry: P(better beats worse) = σ(r_better - r_worse), and the loss is minus its logarithm.",
        "pairs.better and pairs.worse are indices into rewards. Each pair counts with pairs.weight; the loss's "
        "weight is "
        "the sum of these.",
        "F.logsigmoid is exact where the sigmoid is 0. Return Loss(total, weight), or let `_loss` make both, with the "
        "metrics, from losses, margins and pairs.",
    ),
    helpers=("instructgpt.objectives.lm:Loss",),
)
