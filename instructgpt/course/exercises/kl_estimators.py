"""Estimating a KL divergence from one sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from instructgpt.course.exercise import Check, Exercise, Holds, Mistake, gradient, numbers


def _expected(function: Callable[..., Any], given: dict[str, Any]) -> float:
    """The mean of the estimate over what the policy samples."""
    policy, reference = given["policy"], given["reference"]
    return float((policy * function(policy.log(), reference.log())).sum())


def _case(ratio: float) -> dict[str, Any]:
    """ratio: π_ref / π."""
    return {"logprobs": torch.tensor([-1.0]).double(), "reference": torch.tensor([-1.0 + math.log(ratio)]).double()}


def _is(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


POLICY, REFERENCE = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.2, 0.6]).double()
KL = float((POLICY * (POLICY / REFERENCE).log()).sum())

EXERCISE = Exercise(
    place=560,
    title="KL from one sample: k3",
    about="How far a policy is from its reference is a mean over all tokens, and only the sampled one is at "
    "hand. Of the "
    "estimators with the right mean, k3 is never negative and varies less than the difference of logarithms, k1.",
    target="instructgpt.objectives.policy.kl_k3",
    checks=(
        Check("both models agree: 0", _case(1.0), _is(0.0)),
        Check("the reference finds the token twice as likely: 1 - log 2", _case(2.0), _is(1 - math.log(2))),
        Check("the reference finds it half as likely: log 2 - 1/2", _case(0.5), _is(math.log(2) - 0.5)),
        Check(
            "its mean over what the policy samples is the KL", {"policy": POLICY, "reference": REFERENCE}, KL, _expected
        ),
        Check(
            "it is never negative",
            {"logprobs": numbers(50), "reference": numbers(50, seed=1)},
            Holds("at least 0", lambda value: bool((value >= 0).all())),
        ),
        Check(
            "a tiny difference in float32: half its square",
            {"logprobs": torch.tensor([0.0]), "reference": torch.tensor([2.0**-13])},
            torch.tensor([2.0**-27]),
            tolerance=1e-9,
        ),
        Check("the gradient", {"logprobs": numbers(5), "reference": numbers(5, seed=1)}, look=gradient("logprobs")),
    ),
    mistakes=(
        Mistake(
            "this is k1, the difference of logarithms: right in the mean, but often negative",
            "log_ratio.expm1() - log_ratio",
            "-log_ratio",
        ),
        Mistake(
            "this is k2, half the square: near the KL only where the two are close",
            "log_ratio.expm1() - log_ratio",
            "log_ratio.square() / 2",
        ),
        Mistake(
            "the ratio is upside down: it is the reference's probability over the policy's",
            "reference - logprobs",
            "logprobs - reference",
        ),
        Mistake(
            "this is the size of k1: never negative, but wrong in the mean",
            "log_ratio.expm1() - log_ratio",
            "log_ratio.abs()",
        ),
        Mistake(
            "k1 is cut off at 0: never negative, but wrong in the mean",
            "log_ratio.expm1() - log_ratio",
            "(-log_ratio).clamp(min=0)",
        ),
        Mistake("this is half of it", "log_ratio.expm1() - log_ratio", "(log_ratio.expm1() - log_ratio) / 2"),
        Mistake(
            "this is one mean where a value for each token is asked for",
            "log_ratio.expm1() - log_ratio",
            "(log_ratio.expm1() - log_ratio).mean()",
        ),
        Mistake(
            "this weighs the difference of logarithms by the probability: being sampled is a weight already",
            "log_ratio.expm1() - log_ratio",
            "logprobs.exp() * -log_ratio",
        ),
        Mistake("the ratio has no gradient: it is detached", "log_ratio.expm1()", "log_ratio.detach().expm1()"),
        Mistake("the logarithm has no gradient: it is detached", "- log_ratio\n", "- log_ratio.detach()\n"),
        Mistake("there is no gradient at all", "reference - logprobs", "(reference - logprobs).detach()"),
        Mistake("the log-ratio is cut off", "reference - logprobs", "(reference - logprobs).clamp(-1, 1)"),
        Mistake(
            "log-probabilities are taken for probabilities", "reference - logprobs", "(reference / logprobs).log()"
        ),
        Mistake("the 1 is not subtracted: this is 1 where both agree", "log_ratio.expm1()", "log_ratio.exp()"),
        Mistake(
            "e^x - 1 loses its digits where x is small: `expm1` keeps them",
            "log_ratio.expm1() - log_ratio",
            "log_ratio.exp() - 1 - log_ratio",
        ),
        Mistake("the logarithm has the wrong sign", "log_ratio.expm1() - log_ratio", "log_ratio.expm1() + log_ratio"),
    ),
    hints=(
        "r - 1 - log r with r = π_ref(a) / π(a). What is log r, in terms of what you are given?",
        "log r is the reference's log-probability less the policy's. Think about what happens to the digits of r - 1 "
        "where r is almost 1.",
        "torch.expm1 computes e^x - 1 with all its digits, for x = log r.",
    ),
)
