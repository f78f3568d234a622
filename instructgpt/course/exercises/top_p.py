"""Nucleus sampling."""

from __future__ import annotations

import math

import torch

from instructgpt.course.exercise import Check, Exercise, Mistake, numbers


def _logits(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


LOGITS = ("logits",)

EXERCISE = Exercise(
    place=410,
    title="Sampling: top-p",
    about="Of a model's next tokens, top-p keeps the nucleus: the fewest, most probable ones that together reach the "
    "probability p. Where the model is sure that is one token, where it is not, many.",
    target="instructgpt.generation.logits.top_p",
    checks=(
        Check(
            "0.5, 0.3, 0.2 with p = 0.7: two tokens",
            {"logits": _logits([0.5, 0.3, 0.2]), "p": 0.7},
            _logits([0.5, 0.3, 0]),
            changes=LOGITS,
        ),
        Check(
            "in another order", {"logits": _logits([0.2, 0.5, 0.3]), "p": 0.7}, _logits([0, 0.5, 0.3]), changes=LOGITS
        ),
        Check(
            "a small p: the most probable token stays",
            {"logits": _logits([0.3, 0.6, 0.1]), "p": 0.01},
            _logits([0, 0.6, 0]),
            changes=LOGITS,
        ),
        Check(
            "logits that are no logarithms of probabilities",
            {"logits": _logits([0.5, 0.3, 0.2]) + 3, "p": 0.7},
            _logits([0.5, 0.3, 0]) + 3,
            changes=LOGITS,
        ),
        Check(
            "of equal ones the first",
            {"logits": torch.zeros(1, 4).double(), "p": 0.3},
            torch.tensor([[0.0, 0.0, -math.inf, -math.inf]]).double(),
            changes=LOGITS,
        ),
        Check(
            "two rows, each with a p of its own",
            {"logits": _logits([0.5, 0.3, 0.2], [0.1, 0.2, 0.7]), "p": torch.tensor([[0.9], [0.6]]).double()},
            _logits([0.5, 0.3, 0.2], [0, 0, 0.7]),
            changes=LOGITS,
        ),
        Check("fifty tokens, three rows", {"logits": numbers(3, 50), "p": 0.8}, changes=LOGITS),
        Check(
            "one that was ruled out before stays so",
            {"logits": _logits([0.0, 0.4, 0.6]), "p": 1.0},
            _logits([0, 0.4, 0.6]),
            changes=LOGITS,
        ),
    ),
    mistakes=(
        Mistake(
            "the token that reaches p is left out: what stays has less than p together",
            "(ranked.cumsum(-1) - ranked < p)",
            "(ranked.cumsum(-1) < p)",
        ),
        Mistake(
            "one token too many stays",
            "(ranked.cumsum(-1) - ranked < p)",
            "(torch.nn.functional.pad((ranked.cumsum(-1) - ranked < p)[..., :-1], (1, 0), value=True))",
        ),
        Mistake(
            "this keeps the least probable tokens: they are sorted the wrong way", "descending=True", "descending=False"
        ),
        Mistake(
            "this compares each token's own probability with p, not their sum",
            "(ranked.cumsum(-1) - ranked < p)",
            "(ranked >= p)",
        ),
        Mistake(
            "exp of the logits is taken for a probability: it is not divided by the sum",
            "probabilities = logits.softmax(-1)",
            "probabilities = logits.exp()",
        ),
        Mistake(
            "the places are those in the sorted order: they are not led back to the tokens",
            "tokens.gather(-1, order)",
            "tokens",
        ),
        Mistake(
            "what is left out gets the logit 0, which is a logit like any other",
            "masked_fill_(inside == 0, -math.inf)",
            "masked_fill_(inside == 0, 0.0)",
        ),
    ),
    hints=(
        "Sort the probabilities, the largest first, and add them up. Which tokens come before p is reached?",
        "A token stays if the sum of those before it, without itself, is below p: so the first always stays, "
        "and the one "
        "that reaches p too.",
        "sort(descending=True, stable=True) gives the order; scatter what is outside back to the tokens' places, and "
        "fill -∞ in there. A token of no probability stays outside.",
    ),
    without=("_likely",),
)
