"""GRPO's advantages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from instructgpt.course.exercise import Check, Exercise, Mistake, numbers


def _scores(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _refusal(function: Callable[..., Any], given: dict[str, Any]) -> str:
    try:
        function(**given)
    except ValueError:
        return "ValueError"
    return "no error"


NEAR = 1e-3
"""The small number that a deviation of 0 is kept from is yours to choose."""

EXERCISE = Exercise(
    place=550,
    title="GRPO's advantages",
    about="Without a value function, an answer's advantage is how much better it scored than the other answers "
    "to the same "
    "prompt. Where all answers score alike there is nothing to learn, and the advantages are 0.",
    target="instructgpt.objectives.policy.group_advantages",
    checks=(
        Check(
            "right and wrong, not divided",
            {"scores": _scores(1, 0), "group": 2, "normalise": False},
            _scores(0.5, -0.5),
        ),
        Check(
            "right and wrong: the deviation of two is √½",
            {"scores": _scores(1, 0), "group": 2},
            _scores(0.5**0.5, -(0.5**0.5)),
            tolerance=NEAR,
        ),
        Check(
            "two prompts of two answers: neighbours belong together",
            {"scores": _scores(1, 0, 5, 4), "group": 2, "normalise": False},
            _scores(0.5, -0.5, 0.5, -0.5),
        ),
        Check("all answers alike: zeros, not 0/0", {"scores": _scores(0.9, 0.9, 0.9), "group": 3}, _scores(0, 0, 0)),
        Check("four prompts of three answers", {"scores": numbers(12), "group": 3}, tolerance=NEAR),
        Check(
            "the sum over each group is 0",
            {"scores": numbers(8), "group": 4},
            [0.0, 0.0],
            lambda function, given: function(**given).view(2, 4).sum(1).tolist(),
        ),
        Check(
            "a group that is not whole: a ValueError", {"scores": _scores(1, 0, 1), "group": 2}, "ValueError", _refusal
        ),
        Check("groups of one: a ValueError", {"scores": _scores(1, 0, 1), "group": 1}, "ValueError", _refusal),
    ),
    mistakes=(
        Mistake(
            "the deviation is divided by n where n - 1 is meant: in small groups that is a lot",
            "unbiased=True",
            "unbiased=False",
        ),
        Mistake(
            "the mean is over the whole batch: prompts are compared with each other",
            "deviations(scores.view(-1, group), unbiased=True)",
            "deviations(scores.view(1, -1), unbiased=True)",
        ),
        Mistake(
            "each group takes answers of different prompts: those of a prompt are neighbours",
            "deviations(scores.view(-1, group), unbiased=True)",
            "deviations(scores.view(group, -1).T, unbiased=True)",
            (("return centred.flatten()", "return centred.T.flatten()"),),
        ),
        Mistake("where all answers are alike this is 0/0", "centred / (deviation + 1e-4)", "centred / deviation"),
        Mistake("`normalise` is ignored: this divides always", "if normalise:", "if True:"),
        Mistake("this never divides by the deviation", "if normalise:", "if False:"),
        Mistake(
            "the mean is not subtracted",
            "centred = centred / (deviation + 1e-4)",
            "centred = scores.view(-1, group) / (deviation + 1e-4)",
            (("return centred", "return (centred if normalise else scores)"),),
        ),
        Mistake(
            "groups that are not whole, or have one answer, are not refused",
            "raise ValueError(",
            "return torch.zeros_like(scores)\n        raise ValueError(",
        ),
    ),
    hints=(
        "(score - mean) / deviation, both of the group. What shape do the scores need for that to be one line?",
        "view(-1, group) makes a prompt's answers a row. The deviation is the unbiased one, as torch.std gives it.",
        "Add something small to the deviation before dividing, which leaves groups without differences at 0. "
        "Refuse what "
        "is not whole before anything else; flatten at the end.",
    ),
)
