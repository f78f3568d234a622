"""Cross-entropy with positions that do not count."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from instructgpt.course.exercise import Check, Exercise, Mistake, gradient, numbers


def _row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def _losses(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _in_16_bits(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0,
                ignore_index: int = -100) -> Tensor:  # fmt: skip
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(wide, targets, None, None, ignore_index, None, "none", label_smoothing)
    return (losses + z_loss * wide.logsumexp(-1).square() * (targets != ignore_index)).to(logits.dtype)


ONE = torch.tensor([0])
MIXED = torch.tensor([1, -100, 3, 0])

EXERCISE = Exercise(
    place=150,
    title="Cross-entropy, some positions ignored",
    about="How surprised a model is by each token that came: minus the logarithm of the probability it gave. "
    "Prompts and "
    "padding are marked with a target that says: no loss here.",
    target="kernels.cross_entropy.cross_entropy_reference",
    checks=(
        Check("two equal logits: log 2", {"logits": _row(0, 0), "targets": ONE}, _losses(math.log(2))),
        Check("probability 3/4: log 4/3", {"logits": _row(math.log(3), 0), "targets": ONE}, _losses(math.log(4 / 3))),
        Check("an ignored position has the loss 0", {"logits": _row(1, 2), "targets": ONE - 100}, _losses(0.0)),
        Check(
            "another number says: ignored", {"logits": _row(1, 2), "targets": ONE + 7, "ignore_index": 7}, _losses(0.0)
        ),
        Check("four rows, one ignored", {"logits": numbers(4, 5), "targets": MIXED}),
        Check("logits of a thousand", {"logits": _row(1000, 0), "targets": ONE + 1}, _losses(1000.0)),
        Check(
            "label smoothing of 0.1",
            {"logits": _row(2, 0), "targets": ONE, "label_smoothing": 0.1},
            _losses(math.log(math.e**2 + 1) - 0.9 * 2 - 0.1 * 1),
        ),
        Check(
            "z-loss",
            {"logits": _row(2, 0), "targets": ONE, "z_loss": 0.5},
            _losses(math.log(math.e**2 + 1) - 2 + 0.5 * math.log(math.e**2 + 1) ** 2),
        ),
        Check("the gradient; 0 where ignored", {"logits": numbers(4, 5), "targets": MIXED}, look=gradient("logits")),
        Check(
            "logits in float16: a loss in float32",
            {"logits": numbers(2, 50, dtype=torch.float16), "targets": torch.tensor([3, 49])},
        ),
        Check(
            "smoothing and z-loss, one of three rows ignored",
            {"logits": numbers(3, 5), "targets": torch.tensor([1, -100, 3]), "label_smoothing": 0.2, "z_loss": 0.1},
        ),
        Check(
            "a token of the vocabulary says: ignored",
            {"logits": numbers(2, 5), "targets": torch.tensor([0, 4]), "ignore_index": 0},
        ),
        Check(
            "the gradient with smoothing and z-loss",
            {"logits": numbers(4, 5), "targets": MIXED, "label_smoothing": 0.2, "z_loss": 0.1},
            look=gradient("logits"),
        ),
    ),
    mistakes=(
        Mistake("an ignored position has a loss, as if its target were token 0", ".masked_fill(is_ignored, 0.0)", ""),
        Mistake(
            "this is one mean where a loss for each row is asked for, and it divides by the number of rows, "
            "ignored ones "
            "included",
            ".masked_fill(is_ignored, 0.0)",
            ".masked_fill(is_ignored, 0.0).mean()",
        ),
        Mistake(
            "this is the sum where a loss for each row is asked for",
            ".masked_fill(is_ignored, 0.0)",
            ".masked_fill(is_ignored, 0.0).sum()",
        ),
        Mistake(
            "exp overflows: the maximum is not subtracted first",
            "torch.logsumexp(logits, dim=-1)",
            "logits.exp().sum(-1).log()",
        ),
        Mistake("the smoothing takes the sum of the logits, not their mean", "logits.mean(-1)", "logits.sum(-1)"),
        Mistake(
            "the target's own share stays 1 when a part of it is smoothed away",
            "(1 - label_smoothing) * target",
            "target",
        ),
        Mistake("the z-loss is of lse, not of its square", "lse.square()", "lse"),
        Mistake(
            "an ignored position keeps its z-loss",
            "return ((losses + z_loss * lse.square()) * one_or_nan).masked_fill(is_ignored, 0.0)",
            "return (losses * one_or_nan).masked_fill(is_ignored, 0.0) + z_loss * lse.square()",
        ),
        Mistake(
            "there is no gradient: the logits are detached",
            "is_ignored = targets ==",
            "logits = logits.detach()\n    is_ignored = targets ==",
        ),
        Mistake("the z-loss has no gradient: it is detached", "lse.square()", "lse.square().detach()"),
        Mistake("`z_loss` is ignored", "z_loss * lse", "0.0 * lse"),
        Mistake(
            "`label_smoothing` is ignored",
            "losses = lse - (1 - label_smoothing) * target",
            "losses = lse - target",
            (("if label_smoothing:", "if False:"),),
        ),
        Mistake(
            "what is smoothed away is spread over the other tokens alone: the target is one of the V, too",
            "logits.mean(-1)",
            "(logits.sum(-1) - target) / (logits.size(-1) - 1)",
        ),
        Mistake(
            "whatever is no token is ignored, and `ignore_index` is not looked at",
            "is_ignored = targets == ignore_index",
            "is_ignored = (targets < 0) | (targets >= logits.size(-1))",
        ),
        Mistake(
            "ignored rows are left out: there is to be a loss for each row, and 0 for these",
            ".masked_fill(is_ignored, 0.0)",
            "[~is_ignored]",
        ),
        Mistake(
            "this is in bits, not in nats",
            ".masked_fill(is_ignored, 0.0)",
            ".masked_fill(is_ignored, 0.0) / 0.6931471805599453",
        ),
        Mistake("the loss has the 16 bits of its logits", function=_in_16_bits),
        Mistake("float64 becomes float32", "torch.promote_types(logits.dtype, torch.float32)", "torch.float32"),
        Mistake(
            "16 bits are computed with as they are",
            "logits = logits.to(torch.promote_types(logits.dtype, torch.float32))",
            "logits = logits * 1",
        ),
        Mistake("`ignore_index` is taken to be -100 always", "targets == ignore_index", "targets == -100"),
        Mistake("the sign is wrong: this grows with the probability", "return ((losses", "return -((losses"),
    ),
    hints=(
        "-log softmax(x)_t is lse - x_t with lse = log Σ exp(x_j). `torch.logsumexp` and `gather` are all it takes.",
        "-100 is no index: replace ignored targets by a harmless one before gathering, and their losses by 0 after.",
        "Smoothing ε: lse - (1-ε)·x_t - ε·mean_j x_j. z-loss: z·lse² on top. Half-precision logits become float32 "
        "first, float64 stays.",
    ),
)
