"""Weights in 8 and 4 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from instructgpt.course.exercise import Check, Exercise, Holds, Mistake, numbers, part, refusal
from kernels import dequantize


def _row(*values: float, width: int = 32) -> Tensor:
    return torch.tensor([[*values, *[0.0] * (width - len(values))]])


def _first(count: int) -> Callable[..., Any]:
    """The first integers of each row, and the scales."""
    return part(lambda result: {"integers": result[0][:, :count].tolist(), "scales": result[1]})


def _error(function: Callable[..., Any], given: dict[str, Any]) -> float:
    """The largest error of a weight, in steps of its group: its largest weight over the largest integer."""
    weight, highest = given["weight"], 2 ** (given["bits"] - 1) - 1
    packed, scales = function(**given)

    def largest(x: Tensor) -> Tensor:
        return x.view(len(weight), -1, given["group"]).abs().amax(-1)  # (M, groups)

    found = dequantize(packed, scales, given["bits"]).double()
    weight = F.pad(weight, (0, found.size(-1) - weight.size(-1))).double()
    return float((largest(found - weight) / (largest(weight) / highest)).max())


def _error_as_stored(function: Callable[..., Any], given: dict[str, Any]) -> float:
    """The largest difference of an integer of 8 bits from what it stands for, weight over scale."""
    integers, scales = function(**given)
    exact = given["weight"].double().view(*scales.shape, -1) / scales[..., None]
    return float((integers.view(exact.shape) - exact).abs().max())


HALF = Holds("at most 0.5", lambda value: value <= 0.5001)
GROUPS = torch.cat([numbers(2, 32, dtype=torch.float32), 100 * numbers(2, 32, seed=1, dtype=torch.float32)], dim=1)
KINDS = part(lambda result: [str(result[0].dtype), list(result[0].shape), str(result[1].dtype), list(result[1].shape)])

EXERCISE = Exercise(
    place=720,
    title="Weights in 8 bits",
    about="Generation waits for weights to come out of memory, so fewer bytes are less time. Neighbours share "
    "a scale, by "
    "which their integers are multiplied to get the weight back.",
    target="kernels.quantized_linear.quantize",
    checks=(
        Check(
            "the largest becomes 127, 0.5 half of it, up to rounding",
            {"weight": _row(1.27, -0.5, 0.004), "bits": 8, "group": 32},
            {"integers": [[127, -50, 0]], "scales": torch.tensor([[0.01]])},
            _first(3),
        ),
        Check(
            "the largest is negative",
            {"weight": _row(-2.54, 1.0), "bits": 8, "group": 32},
            {"integers": [[-127, 50]], "scales": torch.tensor([[0.02]])},
            _first(2),
        ),
        Check(
            "0.006 is nearer to 0.01 than to 0",
            {"weight": _row(1.27, 0.006), "bits": 8, "group": 32},
            {"integers": [[127, 1]], "scales": torch.tensor([[0.01]])},
            _first(2),
        ),
        Check(
            "a row of zeros",
            {"weight": _row(0.0), "bits": 8, "group": 32},
            {"integers": [[0, 0]], "scales": torch.tensor([[0.0]])},
            _first(2),
        ),
        Check(
            "a group of small weights beside one of large ones: the error, in steps",
            {"weight": GROUPS, "bits": 8, "group": 32},
            HALF,
            _error,
        ),
        Check(
            "4 bits: 7 is the largest; 8 is added, and neighbours at half a group share a byte",
            {"weight": _row(0.7, -0.3), "bits": 4, "group": 32},
            {"integers": [[15 + 128, 5 + 128]], "scales": torch.tensor([[0.1]])},
            _first(2),
        ),
        Check(
            "4 bits: a row of zeros",
            {"weight": _row(0.0), "bits": 4, "group": 32},
            {"integers": [[8 + 128, 8 + 128]], "scales": torch.tensor([[0.0]])},
            _first(2),
        ),
        Check("4 bits: the error, in steps", {"weight": GROUPS, "bits": 4, "group": 32}, HALF, _error),
        Check(
            "a width that no group divides is filled up with zeros",
            {"weight": numbers(3, 40, dtype=torch.float32), "bits": 8, "group": 32},
            look=KINDS,
        ),
        Check(
            "a width that no group divides: the error, in steps",
            {"weight": numbers(3, 40, dtype=torch.float32), "bits": 8, "group": 32},
            HALF,
            _error,
        ),
        Check(
            "bfloat16: the error with the scale as it is stored, in steps of that",
            {"weight": numbers(8, 64, dtype=torch.bfloat16), "bits": 8, "group": 32},
            HALF,
            _error_as_stored,
        ),
        Check(
            "4 bits, two groups of 64",
            {"weight": numbers(2, 128, dtype=torch.float32), "bits": 4},
            HALF,
            lambda function, given: _error(function, {**given, "group": 64}),
        ),
        Check("3 bits: a ValueError", {"weight": _row(1.0), "bits": 3, "group": 32}, "ValueError", refusal),
        Check(
            "groups of 48: a ValueError",
            {"weight": _row(1.0, width=48), "bits": 8, "group": 48},
            "ValueError",
            refusal,
        ),
        Check(
            "scales have the dtype of the weight",
            {"weight": numbers(3, 64, dtype=torch.bfloat16), "bits": 4, "group": 64},
            look=KINDS,
        ),
    ),
    mistakes=(
        Mistake(
            "one scale is shared by all of the matrix, so small weights beside large ones are lost",
            "wide.abs().amax(-1)",
            "wide.abs().amax().expand(M, wide.size(1))",
        ),
        Mistake("this cuts off where it should round", ".round()", ".trunc()"),
        Mistake(
            "neither other bits nor groups of other sizes are refused",
            "if bits not in BITS or group not in GROUPS:",
            "if M == 0:",
            (("M, K = weight.shape", "pass"), ("if M == 0", "M, K = weight.shape\n    if M == 0")),
        ),
        Mistake("other bits are not refused as a ValueError", "bits not in BITS or", ""),
        Mistake("groups of other sizes are not refused as a ValueError", " or group not in GROUPS", ""),
        Mistake(
            "the integers are made with the scale as it was before it was stored in fewer bits",
            "step = scales.float()[..., None]",
            "step = (wide.abs().amax(-1) / highest)[..., None]",
        ),
        Mistake(
            "this computes in the weight's own 16 bits",
            "weight.detach().float()",
            "weight.detach()",
            (("scales.float()[..., None]", "scales[..., None]"),),
        ),
        Mistake("the scales are in float32, whatever the weight is in", ".to(weight.dtype)", ""),
        Mistake(
            "the scale is inverted: the integers are multiplied by it to get the weight back",
            "integers = torch.where(step",
            "scales = torch.where(scales > 0, 1 / scales, 0.0)\n    integers = torch.where(step",
        ),
        Mistake(
            "the width is filled up in front, not behind",
            "(0, group * cdiv(K, group) - K)",
            "(group * cdiv(K, group) - K, 0)",
        ),
        Mistake(
            "the last group is left out where it is not whole",
            "F.pad(weight.detach().float(), (0, group * cdiv(K, group) - K)).view",
            "weight.detach().float()[:, : K // group * group].reshape",
        ),
        Mistake(
            "a row has one scale: each group has its own",
            "wide.abs().amax(-1)",
            "wide.abs().amax((1, 2))[:, None].expand(M, wide.size(1))",
        ),
        Mistake("this always rounds down", ".round()", ".floor()"),
        Mistake("with 4 bits 7 is added, not 8", "(integers + 8)", "(integers + 7)"),
        Mistake(
            "with 4 bits the largest integer is taken to be 15: half of them are negative",
            "highest = 2 ** (bits - 1) - 1",
            "highest = 2 ** (bits - 1) - 1 if bits == 8 else 15",
        ),
        Mistake(
            "`group` is ignored: it is 64 only by default", "M, K = weight.shape", "M, K = weight.shape\n    group = 64"
        ),
        Mistake("with 8 bits the integers are not int8", "integers.to(torch.int8)", "integers"),
        Mistake("a group of zeros is 0/0", "torch.where(step > 0, wide / step, 0.0)", "(wide / step)"),
        Mistake(
            "the scale is that of the largest weight, not of the largest in size: negative ones do not fit",
            "wide.abs().amax(-1)",
            "wide.amax(-1).abs()",
        ),
        Mistake(
            "the largest integer is one too large: 128 has no place in 8 bits",
            "highest = 2 ** (bits - 1) - 1",
            "highest = 2 ** (bits - 1)",
        ),
        Mistake(
            "the two halves of a byte are exchanged: the first half of a group belongs into the low one",
            "low | high << 4",
            "high | low << 4",
        ),
        Mistake(
            "with 4 bits nothing is added, so integers below 0 do not fit into their half of a byte",
            "(integers + 8)",
            "integers",
        ),
        Mistake(
            "neighbours share a byte; it is those at half a group's distance",
            "(integers + 8).to(torch.uint8).chunk(2, dim=-1)",
            "(integers + 8).to(torch.uint8).unflatten(-1, (-1, 2)).unbind(-1)",
        ),
    ),
    hints=(
        "Cut each row into groups (M, groups, G), and give each the scale max|w| / 127.",
        "Integers are w / scale, rounded; F.pad fills the last group up. What is w / scale where all of a group is 0?",
        "4 bits: max|w| / 7, add 8, then two chunks of each group as low | high << 4, in uint8. Scales are cast to the "
        "weight's dtype first, and the integers made with what they were cast to.",
    ),
)
