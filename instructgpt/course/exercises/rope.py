"""Rotary position embedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from instructgpt.course.exercise import Check, Exercise, Mistake, gradient, numbers
from kernels import rope_table

COS, SIN = rope_table(torch.arange(40)[None], 8, 100.0, torch.float64)  # (1, 40, 4)


def _scores(function: Callable[..., Any], given: dict[str, Any]) -> float:
    """How much the score of a query and a key changes when both move on by as many places."""

    def score(query: int, key: int) -> float:
        q, k = (function(x, COS[:, at : at + 1], SIN[:, at : at + 1]) for x, at in
                ((given["q"], query), (given["k"], key)))  # fmt: skip
        return float((q * k).sum())

    return score(given["query"], given["key"]) - score(given["query"] + 7, given["key"] + 7)


def _table(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[None, None]


EXERCISE = Exercise(
    place=110,
    title="RoPE: a position as a rotation",
    about="Attention sees no order by itself. RoPE turns each pair of a query's and a key's channels by an angle that "
    "grows with the position, so that their product knows how far apart they stand.",
    target="kernels.rope.rope_reference",
    checks=(
        Check(
            "one pair, turned by a right angle",
            {"x": torch.tensor([[[[1.0, 0.0]]]]).double(), "cos": _table(0.0), "sin": _table(1.0)},
            torch.tensor([[[[0.0, 1.0]]]]).double(),
        ),
        Check(
            "four channels: i is paired with i + D/2; the first pair is turned by a right angle",
            {"x": torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]]).double(), "cos": _table(0.0, 1.0), "sin": _table(1.0, 0.0)},
            torch.tensor([[[[-3.0, 2.0, 1.0, 4.0]]]]).double(),
        ),
        Check(
            "interleaved: 2i is paired with 2i + 1",
            {
                "x": torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]]).double(),
                "cos": _table(0.0, 1.0),
                "sin": _table(1.0, 0.0),
                "interleaved": True,
            },
            torch.tensor([[[[-2.0, 1.0, 3.0, 4.0]]]]).double(),
        ),
        Check(
            "a score depends on the distance alone: it stays when both move on by 7",
            {"q": numbers(1, 1, 1, 8), "k": numbers(1, 1, 1, 8, seed=1), "query": 5, "key": 2},
            0.0,
            look=_scores,
        ),
        Check("heads share the table", {"x": numbers(1, 3, 5, 8), "cos": COS[:, :5], "sin": SIN[:, :5]}),
        Check("the gradient", {"x": numbers(1, 2, 4, 8), "cos": COS[:, :4], "sin": SIN[:, :4]}, look=gradient("x")),
        Check(
            "two rows, each with positions of its own",
            {"x": numbers(2, 2, 3, 8), "cos": COS[:, :6].view(2, 3, 4), "sin": SIN[:, :6].view(2, 3, 4)},
        ),
        Check(
            "the gradient, interleaved",
            {"x": numbers(1, 2, 4, 8), "cos": COS[:, :4], "sin": SIN[:, :4], "interleaved": True},
            look=gradient("x"),
        ),
        Check(
            "the result has the dtype of x",
            {"x": numbers(1, 1, 3, 8, dtype=torch.bfloat16), "cos": COS[:, :3].float(), "sin": SIN[:, :3].float()},
        ),
        Check(
            "the result has the dtype of x, interleaved",
            {
                "x": numbers(1, 1, 3, 8, dtype=torch.bfloat16),
                "cos": COS[:, :3].float(),
                "sin": SIN[:, :3].float(),
                "interleaved": True,
            },
        ),
    ),
    mistakes=(
        Mistake(
            "this pairs neighbours, 2i with 2i + 1, where that was not asked for",
            "a, b = x.chunk(2, dim=-1)",
            "a, b = x[..., 0::2], x[..., 1::2]",
            (
                (
                    "torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to",
                    "torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2).to",
                ),
            ),
        ),
        Mistake(
            "this turns the other way: the signs of the two sines are exchanged",
            "torch.cat((a * cos - b * sin, b * cos + a * sin)",
            "torch.cat((a * cos + b * sin, b * cos - a * sin)",
            (
                (
                    "torch.stack((a * cos - b * sin, b * cos + a * sin)",
                    "torch.stack((a * cos + b * sin, b * cos - a * sin)",
                ),
            ),
        ),
        Mistake(
            "both sines have the same sign, which is no rotation",
            "torch.cat((a * cos - b * sin, b * cos + a * sin)",
            "torch.cat((a * cos + b * sin, b * cos + a * sin)",
            (
                (
                    "torch.stack((a * cos - b * sin, b * cos + a * sin)",
                    "torch.stack((a * cos + b * sin, b * cos + a * sin)",
                ),
            ),
        ),
        Mistake(
            "there is no gradient: x is detached",
            "cos, sin = cos[:, None], sin[:, None]",
            "cos, sin, x = cos[:, None], sin[:, None], x.detach()",
        ),
        Mistake(
            "cosine and sine are exchanged",
            "cos, sin = cos[:, None], sin[:, None]",
            "sin, cos = cos[:, None], sin[:, None]",
        ),
        Mistake(
            "the second member of a pair is made of the first after it was turned",
            "a, b = x.chunk(2, dim=-1)",
            "a, b = x.chunk(2, dim=-1)\n    a = a * cos - b * sin",
            (
                ("torch.cat((a * cos - b * sin, b", "torch.cat((a, b"),
                (
                    "a, b = x[..., 0::2], x[..., 1::2]",
                    "a, b = x[..., 0::2], x[..., 1::2]\n        a = a * cos - b * sin",
                ),
                ("torch.stack((a * cos - b * sin, b", "torch.stack((a, b"),
            ),
        ),
        Mistake(
            "all rows are given the positions of the first one",
            "cos, sin = cos[:, None], sin[:, None]",
            "cos, sin = cos[:1, None], sin[:1, None]",
        ),
        Mistake(
            "interleaved pairs come back as two halves",
            "torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)",
            "torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)",
        ),
        Mistake("this ignores `interleaved`", "if interleaved:", "if False:"),
        Mistake(
            "the result has the dtype of the table, not that of x",
            "dim=-1).to(x.dtype)",
            "dim=-1)",
            (("flatten(-2).to(x.dtype)", "flatten(-2)"),),
        ),
    ),
    hints=(
        "cos and sin are (B, T, D/2) and x is (B, H, T, D): what has to be done to the tables before they can be "
        "multiplied with half of x?",
        "Cut x into the first and the second member of each pair, a and b, both (B, H, T, D/2). Where `interleaved` is "
        "set these are the even and the odd channels, elsewhere the two halves.",
        "A rotation of (a, b) by φ is (a cos φ - b sin φ, b cos φ + a sin φ). Put the members back where they came "
        "from: halves one after the other, even and odd ones in turn.",
    ),
)
