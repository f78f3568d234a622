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
        Check(
            "the first two of four equal ones have just p = 1/2",
            {"logits": torch.zeros(1, 4).double(), "p": 0.5},
            torch.tensor([[0.0, 0.0, -math.inf, -math.inf]]).double(),
            changes=LOGITS,
        ),
        Check("logits of a thousand", {"logits": 1000 + numbers(2, 9), "p": 0.6}, changes=LOGITS),
        Check("float32 stays float32", {"logits": numbers(2, 9, dtype=torch.float32), "p": 0.6}, changes=LOGITS),
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
            "one more stays where those before it have p already: the fewest that reach p are kept",
            "(ranked.cumsum(-1) - ranked < p)",
            "(ranked.cumsum(-1) - ranked <= p)",
        ),
        Mistake(
            "exp overflows: the logits are to go through softmax, which subtracts their maximum",
            "probabilities = logits.softmax(-1)",
            "probabilities = logits.exp() / logits.exp().sum(-1, keepdim=True)",
        ),
        Mistake(
            "all rows have the p of the first",
            "(ranked.cumsum(-1) - ranked < p)",
            "(ranked.cumsum(-1) - ranked < (p[:1] if isinstance(p, Tensor) else p))",
        ),
        Mistake(
            "all that are as probable as the last of the nucleus stay: of equal ones the first",
            "return logits.masked_fill_(inside == 0, -math.inf)",
            "least = probabilities.masked_fill(inside == 0, 2.0).amin(-1, keepdim=True)\n"
            "    return logits.masked_fill_(probabilities < least, -math.inf)",
        ),
        Mistake(
            "of equal ones the last stay: of equal ones the first",
            "likely.sort(dim=-1, descending=True, stable=True)",
            "likely.sort(dim=-1, stable=True)",
            (("(ranked.cumsum(-1) - ranked < p)", "(ranked.flip(-1).cumsum(-1).flip(-1) - ranked < p)"),),
        ),
        Mistake(
            "the probabilities go over the rows, not over the tokens",
            "probabilities = logits.softmax(-1)",
            "probabilities = logits.softmax(0)",
        ),
        Mistake(
            "the result is probabilities: it is to be the logits",
            "return logits.masked_fill_(inside == 0, -math.inf)",
            "return probabilities.masked_fill_(inside == 0, 0.0)",
        ),
        Mistake(
            "what stays is scaled anew: the logits are to be what they were",
            "return logits.masked_fill_(inside == 0, -math.inf)",
            "return logits.masked_fill_(inside == 0, -math.inf).log_softmax(-1)",
        ),
        Mistake(
            "the result is in float64, whatever the logits are in",
            "return logits.masked_fill_",
            "return logits.double().masked_fill_",
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
        Mistake("what is left out gets a logit that is only low: it is to be -∞", "-math.inf)", "-1e9)"),
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
