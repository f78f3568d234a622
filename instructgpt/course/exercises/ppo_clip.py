"""PPO's clipped objective."""

from __future__ import annotations

from typing import Any

import torch

from instructgpt.course.exercise import Check, Exercise, Mistake, gradient, numbers


def _case(ratio: float, advantage: float, clip: float = 0.2) -> dict[str, Any]:
    def of(value: float) -> torch.Tensor:
        return torch.tensor([value], dtype=torch.float64)

    return {"logprobs": of(-1.0) + of(ratio).log(), "old_logprobs": of(-1.0), "advantages": of(advantage), "clip": clip}


def _is(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


FAR = {**_case(1.0, 1.0), "logprobs": torch.tensor([1000.0]).double()}
MANY = {"logprobs": numbers(20) / 2, "old_logprobs": numbers(20, seed=1) / 2, "advantages": numbers(20, seed=2),
        "clip": 0.2}  # fmt: skip

EXERCISE = Exercise(
    place=540,
    title="PPO's clip",
    about="A batch of answers is trained on several times, so the policy moves away from the one that sampled "
    "them. The "
    "clip takes the profit out of moving a token's probability by more than ε, and never hides a loss.",
    target="instructgpt.objectives.policy.clipped_surrogate",
    checks=(
        Check("the policy has not moved: minus the advantage", _case(1.0, 2.0), _is(-2.0)),
        Check("a good token, half as likely again: cut off at 1.2", _case(1.5, 1.0), _is(-1.2)),
        Check("a good token that became less likely is felt in full", _case(0.5, 1.0), _is(-0.5)),
        Check("a bad token, half as likely: cut off at 0.8", _case(0.5, -1.0), _is(0.8)),
        Check("a bad token that became likelier is felt in full", _case(1.5, -1.0), _is(1.5)),
        Check("where it is cut off there is no gradient", _case(1.5, 1.0), _is(0.0), gradient("logprobs")),
        Check("a ratio of e^1001, cut off", FAR, _is(-1.2)),
        Check("its gradient is 0, and a number", FAR, _is(0.0), gradient("logprobs")),
        Check("twenty tokens", MANY),
        Check("their gradient", MANY, look=gradient("logprobs")),
        Check("a clip of 3 leaves the ratio free downwards", _case(1e-4, -1000.0, 3.0), _is(0.1)),
    ),
    mistakes=(
        Mistake(
            "the ratio is clipped on both sides, without the minimum: a loss beyond the clip is not felt",
            "torch.where(advantages >= 0, log_ratio.clamp(max=math.log1p(clip)), log_ratio.clamp(min=least))",
            "log_ratio.clamp(least, math.log1p(clip))",
        ),
        Mistake(
            "the sign is wrong: this is the objective, and a loss is to be made smaller", "return -(cut", "return (cut"
        ),
        Mistake(
            "the ratio is cut off below at 1 / (1 + ε); it is 1 - ε",
            "least = math.log1p(-clip) if clip < 1 else -math.inf",
            "least = -math.log1p(clip)",
        ),
        Mistake(
            "this is one mean where a value for each token is asked for",
            "return -(cut.exp() * advantages)",
            "return -(cut.exp() * advantages).mean()",
        ),
        Mistake(
            "this is the sum where a value for each token is asked for",
            "return -(cut.exp() * advantages)",
            "return -(cut.exp() * advantages).sum()",
        ),
        Mistake(
            "the gradient goes on where the ratio is cut off: only its value is",
            "return -(cut.exp()",
            "cut = log_ratio + (cut - log_ratio).detach()\n    return -(cut.exp()",
        ),
        Mistake("there is no gradient: the ratio is detached", "return -(cut.exp()", "return -(cut.exp().detach()"),
        Mistake(
            "the ratio is 1: it is taken of the policy and itself",
            "logprobs - old_logprobs",
            "logprobs - logprobs.detach()",
        ),
        Mistake("the ratio is 1 plus the difference: exp is missing", "return -(cut.exp()", "return -((1 + cut)"),
        Mistake("the advantage has lost its sign", "cut.exp() * advantages)", "cut.exp() * advantages.abs())"),
        Mistake("ε is taken to be 0.2 always", "log_ratio = logprobs", "clip = 0.2\n    log_ratio = logprobs"),
        Mistake(
            "an ε of 1 or more is a logarithm of what has none: it leaves the ratio free downwards",
            "math.log1p(-clip) if clip < 1 else -math.inf",
            "math.log(max(1 - clip, 1e-3))",
        ),
        Mistake(
            "where a token is bad and likelier its loss is cut off, too: only what would pay is",
            "log_ratio.clamp(min=least)",
            "log_ratio.clamp(least, math.log1p(clip))",
        ),
        Mistake(
            "where a token is good and less likely its loss is cut off, too: only what would pay is",
            "log_ratio.clamp(max=math.log1p(clip))",
            "log_ratio.clamp(least, math.log1p(clip))",
        ),
        Mistake("nothing is clipped", "return -(cut.exp()", "return -(log_ratio.exp()"),
        Mistake("the ratio is upside down: old over new", "logprobs - old_logprobs", "old_logprobs - logprobs"),
        Mistake(
            "this is the larger of the two, an optimist: it is to be the smaller", "advantages >= 0", "advantages < 0"
        ),
        Mistake(
            "the logarithm of the ratio is cut off at ±ε, not the ratio at 1 ± ε",
            "log_ratio.clamp(max=math.log1p(clip))",
            "log_ratio.clamp(max=clip)",
            (("least = math.log1p(-clip) if clip < 1 else -math.inf", "least = -clip"),),
        ),
        Mistake(
            "the exponential overflows before it is cut off: infinite where it does not matter, and no number in "
            "its gradient",
            "torch.where(advantages >= 0, log_ratio.clamp(max=math.log1p(clip)), log_ratio.clamp(min=least))",
            "torch.minimum(log_ratio.exp() * advantages, log_ratio.exp().clamp(1 - clip, 1 + clip) * advantages)",
            (("return -(cut.exp() * advantages)", "return -cut"),),
        ),
        Mistake(
            "the gradient of logprobs / old_logprobs is taken: the ratio is that of probabilities, exp of a difference",
            "log_ratio = logprobs - old_logprobs",
            "log_ratio = (logprobs / old_logprobs).abs().log()",
        ),
    ),
    hints=(
        "-min(r·Â, clip(r, 1-ε, 1+ε)·Â) with r = exp(logprobs - old_logprobs). When does the minimum choose which?",
        "With Â ≥ 0 it is r cut off above, at 1 + ε; with Â < 0 it is r cut off below, at 1 - ε.",
        "Cut the log-ratio off, at log(1 ± ε), before the exponential: where e^1001 is infinite its gradient times 0 "
        "would be NaN. log(1 - ε) is -∞ for ε ≥ 1. (`math.log1p`, `clamp`, `torch.where`.)",
    ),
)
