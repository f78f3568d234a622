"""Sampling with min-p."""

from __future__ import annotations

import torch

from instructgpt.course.exercise import Check, Exercise, Mistake, numbers


def _logits(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


LOGITS = ("logits",)

EXERCISE = Exercise(
    place=420,
    title="Sampling: min-p",
    about="Min-p keeps what is not much less probable than the best token: at least p times as probable. Its "
    "bar is high "
    "where the model is sure, and low where it is not.",
    target="instructgpt.generation.logits.min_p",
    checks=(
        Check(
            "0.6, 0.3, 0.1 with p = 0.4: what has at least 0.24",
            {"logits": _logits([0.6, 0.3, 0.1]), "p": 0.4},
            _logits([0.6, 0.3, 0]),
            changes=LOGITS,
        ),
        Check(
            "the best has little: 0.3, 0.28, 0.22, 0.2 with p = 0.7",
            {"logits": _logits([0.3, 0.28, 0.22, 0.2]), "p": 0.7},
            _logits([0.3, 0.28, 0.22, 0]),
            changes=LOGITS,
        ),
        Check("p = 1: the best stays", {"logits": _logits([0.2, 0.8]), "p": 1.0}, _logits([0, 0.8]), changes=LOGITS),
        Check(
            "the same with all logits 5 higher",
            {"logits": _logits([0.6, 0.3, 0.1]) + 5, "p": 0.4},
            _logits([0.6, 0.3, 0]) + 5,
            changes=LOGITS,
        ),
        Check(
            "each row has a best token of its own",
            {"logits": _logits([0.9, 0.1], [0.01, 0.005]), "p": 0.4},
            _logits([0.9, 0], [0.01, 0.005]),
            changes=LOGITS,
        ),
        Check("logits of a thousand", {"logits": 1000 + numbers(2, 9), "p": 0.3}, changes=LOGITS),
        Check("float32 stays float32", {"logits": numbers(2, 9, dtype=torch.float32), "p": 0.3}, changes=LOGITS),
        Check(
            "two are the best, with p = 1",
            {"logits": _logits([0.4, 0.4, 0.2]), "p": 1.0},
            _logits([0.4, 0.4, 0]),
            changes=LOGITS,
        ),
        Check(
            "each row has a p of its own",
            {"logits": numbers(2, 9), "p": torch.tensor([[0.1], [0.6]]).double()},
            changes=LOGITS,
        ),
    ),
    mistakes=(
        Mistake(
            "p is compared with the probability itself, not with its share of the best one's",
            "logits.amax(-1, keepdim=True) + p.log()",
            "logits.logsumexp(-1, keepdim=True) + p.log()",
        ),
        Mistake(
            "the best logit is multiplied by p: a share of a probability is a difference of logits",
            "logits.amax(-1, keepdim=True) + p.log()",
            "logits.amax(-1, keepdim=True) * p",
        ),
        Mistake(
            "the best token goes, too, with p = 1: what is equal to the bar should stay", "logits < ", "logits <= "
        ),
        Mistake(
            "all rows are measured by the best token of one of them", "logits.amax(-1, keepdim=True)", "logits.amax()"
        ),
        Mistake(
            "exp overflows: compare logits, or take softmax, which subtracts their maximum",
            "logits < logits.amax(-1, keepdim=True) + p.log()",
            "logits.exp() < logits.exp().amax(-1, keepdim=True) * p * (1 - 1e-6)",
        ),
        Mistake("all rows have the p of the first", "+ p.log()", "+ p.flatten()[0].log()"),
        Mistake(
            "only one of several best ones stays: what is equal to the bar should stay",
            "return logits.masked_fill_(logits < logits.amax(-1, keepdim=True) + p.log(), -math.inf)",
            "is_best = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, logits.argmax(-1, keepdim=True), True)\n"
            "    return logits.masked_fill_((logits <= logits.amax(-1, keepdim=True) + p.log()) & ~is_best, -math.inf)",
        ),
        Mistake("the bar is a share of 1 - p", "p = torch.as_tensor(p,", "p = torch.as_tensor(1 - p,"),
        Mistake("p is added to the logit, not its logarithm", "+ p.log()", "- p"),
        Mistake(
            "the bar is a share of the mean probability, not of the best one's",
            "logits.amax(-1, keepdim=True)",
            "logits.softmax(-1).mean(-1, keepdim=True).log() + logits.logsumexp(-1, keepdim=True)",
        ),
        Mistake("what is left out gets the logit 0, which is a logit like any other", "-math.inf)", "0.0)"),
        Mistake("what is left out gets a logit that is only low: it is to be -∞", "-math.inf)", "-1e9)"),
        Mistake(
            "what stays is scaled anew: the logits are to be what they were", "-math.inf)", "-math.inf).log_softmax(-1)"
        ),
        Mistake(
            "the result is in float64, whatever the logits are in",
            "return logits.masked_fill_",
            "return logits.double().masked_fill_",
        ),
        Mistake("this keeps what is improbable: the comparison is the wrong way round", "logits < ", "logits > "),
    ),
    hints=(
        "Probabilities are exp(logit) divided by one sum for all tokens. What does the ratio of two of them need?",
        "probability ≥ p · best probability is, in logits, logit ≥ best logit + log p. The sum drops out.",
        "amax over the last dimension with keepdim=True; make p a tensor, for it may be one (R, 1); fill -∞ where the "
        "logit is smaller.",
    ),
)
