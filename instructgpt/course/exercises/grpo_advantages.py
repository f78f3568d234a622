"""GRPO's advantages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from instructgpt.course.exercise import Check, Exercise, Mistake, numbers, refusal


def _scores(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _zeros(function: Callable[..., Any], given: dict[str, Any]) -> str:
    """Whether all is 0; rounding may be left of what is not divided."""
    return "zeros" if function(**given).abs().max() < 1e-6 else "not all are 0"


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
        Check(
            "all alike in float32, where the mean of three times 0.9 is not 0.9: zeros",
            {"scores": _scores(0.9, 0.9, 0.9, 13.7, 13.7, 13.7).float(), "group": 3},
            "zeros",
            _zeros,
        ),
        Check(
            "a prompt whose answers are alike beside one whose are not, in float32",
            {"scores": _scores(0.1, 0.1, 0.1, 0, 0, 1).float(), "group": 3},
            torch.tensor([0, 0, 0, -1, -1, 2]) / 3**0.5,
            tolerance=NEAR,
        ),
        Check("not divided, ten times as far apart", {"scores": 10 * numbers(8), "group": 4, "normalise": False}),
        Check("four prompts of three answers", {"scores": numbers(12), "group": 3}, tolerance=NEAR),
        Check(
            "the sum over each group is 0",
            {"scores": numbers(8), "group": 4},
            [0.0, 0.0],
            lambda function, given: function(**given).view(2, 4).sum(1).tolist(),
        ),
        Check(
            "a group that is not whole: a ValueError", {"scores": _scores(1, 0, 1), "group": 2}, "ValueError", refusal
        ),
        Check("groups of one: a ValueError", {"scores": _scores(1, 0, 1), "group": 1}, "ValueError", refusal),
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
        Mistake(
            "where all answers are alike rounding is divided by rounding: their mean is not what they are "
            "(`deviations` sees that)",
            "centred, deviation = deviations(scores.view(-1, group), unbiased=True)",
            "rows = scores.view(-1, group)\n"
            "    centred, deviation = rows - rows.mean(-1, keepdim=True), rows.std(-1, keepdim=True)",
            (("deviation + 1e-4", "deviation + 1e-6"),),
        ),
        Mistake(
            "this divides by the variance, not by its root",
            "centred / (deviation + 1e-4)",
            "centred / (deviation.square() + 1e-4)",
        ),
        Mistake(
            "this divides by the deviation of the whole batch",
            "centred / (deviation + 1e-4)",
            "centred / (scores.std() + 1e-4)",
        ),
        Mistake("what is added to the deviation is not small beside it", "deviation + 1e-4", "deviation + 0.1"),
        Mistake(
            "an answer is compared with the mean of the others, not with that of all",
            "return centred.flatten()",
            "return (centred * (group / (group - 1))).flatten()",
        ),
        Mistake(
            "an answer is compared with the median of its group, not with the mean",
            "centred, deviation = deviations(scores.view(-1, group), unbiased=True)",
            "rows = scores.view(-1, group)\n    _, deviation = deviations(rows, unbiased=True)\n"
            "    centred = rows - rows.median(-1, keepdim=True).values",
        ),
        Mistake(
            "the result is (prompts, group): it is to be as long as the scores",
            "return centred.flatten()",
            "return centred",
        ),
        Mistake("the result is in float64, whatever the scores are in", ".to(scores.dtype)", ""),
        Mistake("a group of one answer is not refused", "group < 2 or", ""),
        Mistake(
            "groups that are not whole are not refused, and the rest is left out",
            "group < 2 or len(scores) % group:",
            "group < 2:",
            (("scores.view(-1", "scores[: len(scores) // group * group].view(-1"),),
        ),
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
        "Add something small to the deviation before dividing. That alone leaves a group of three times 0.9 with "
        "rounding divided by rounding: look at what `deviations` gives for it. Refuse what is not whole before all "
        "else; flatten at the end.",
    ),
)
