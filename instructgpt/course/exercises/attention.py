"""Scaled dot-product attention."""

from __future__ import annotations

import math

import torch

from instructgpt.course.exercise import Check, Exercise, Mistake, gradient, numbers


def _heads(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)[None, None]


EXERCISE = Exercise(
    place=140,
    title="Attention",
    about="Each query takes the mean of the values, weighed by how well their keys fit it. Several query heads may "
    "share one head of keys and values. (`documents`, `window`, `soft_cap` and `return_lse` may be left unused.)",
    target="kernels.attention.attention_reference",
    checks=(
        Check(
            "two keys that fit alike: the mean of the values",
            {"q": _heads([1, 2]), "k": _heads([0, 0], [0, 0]), "v": _heads([1, 0], [3, 4])},
            _heads([2, 2]),
        ),
        Check(
            "scores of log 3 and 0 after the division by √4",
            {
                "q": _heads([2, 0, 0, 0]),
                "k": _heads([math.log(3), 0, 0, 0], [0, 0, 0, 0]),
                "v": _heads([4, 0, 0, 0], [0, 8, 0, 0]),
            },
            _heads([3, 2, 0, 0]),
        ),
        Check(
            "a scale that is given",
            {"q": _heads([1, 0]), "k": _heads([math.log(3), 0], [0, 0]), "v": _heads([4, 0], [0, 8]), "scale": 1.0},
            _heads([3, 2]),
        ),
        Check(
            "causal: the first query sees the first key alone",
            {
                "q": numbers(1, 1, 3, 4),
                "k": numbers(1, 1, 3, 4, seed=1),
                "v": numbers(1, 1, 3, 4, seed=2),
                "causal": True,
            },
        ),
        Check(
            "causal, two queries and five keys: the last query stands at the last key",
            {
                "q": numbers(1, 1, 2, 4),
                "k": numbers(1, 1, 5, 4, seed=1),
                "v": numbers(1, 1, 5, 4, seed=2),
                "causal": True,
            },
        ),
        Check(
            "four query heads share two heads of keys: 0 and 1 the first, 2 and 3 the second",
            {"q": numbers(2, 4, 3, 4), "k": numbers(2, 2, 3, 4, seed=1), "v": numbers(2, 2, 3, 4, seed=2)},
        ),
        Check(
            "a query that may attend to nothing gives 0",
            {
                "q": numbers(1, 1, 2, 2),
                "k": numbers(1, 1, 2, 2, seed=1),
                "v": numbers(1, 1, 2, 2, seed=2),
                "may_attend": torch.tensor([[True, False], [False, False]]),
            },
        ),
        Check(
            "scores of thousands",
            {"q": 100 * numbers(1, 1, 3, 4), "k": 100 * numbers(1, 1, 3, 4, seed=1), "v": numbers(1, 1, 3, 4, seed=2)},
        ),
        Check(
            "the gradient of the keys",
            {
                "q": numbers(1, 2, 3, 4),
                "k": numbers(1, 1, 3, 4, seed=1),
                "v": numbers(1, 1, 3, 4, seed=2),
                "causal": True,
            },
            look=gradient("k"),
        ),
    ),
    mistakes=(
        Mistake("the scores are not divided by √D", "(1 / math.sqrt(q.size(-1)) if", "(1.0 if"),
        Mistake("the scores are divided by D, not by its root", "(1 / math.sqrt(q.size(-1)) if", "(1 / q.size(-1) if"),
        Mistake(
            "heads are shared in turn: query head h takes h mod K, and neighbours should share",
            "k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)",
            "k.repeat(1, group, 1, 1), v.repeat(1, group, 1, 1)",
        ),
        Mistake(
            "the causal mask puts the first query at the first key; it is the last ones that belong together",
            "causal_mask(queries, keys, q.device)",
            "torch.ones(queries, keys, dtype=torch.bool).tril()",
        ),
        Mistake("`causal` is ignored", "if causal:", "if False:"),
        Mistake(
            "what is forbidden has the score 0, which is a score like any other",
            "scores.masked_fill(~mask, -math.inf)",
            "scores.masked_fill(~mask, 0.0)",
            (
                ("weights = weights.masked_fill(~mask, 0.0)", "weights = weights"),
                ("o = _sums(weights, v, mask)", "o = weights @ v"),
            ),
        ),
        Mistake(
            "the weights of what is allowed do not add up to 1: the mask comes after the softmax",
            "scores.masked_fill(~mask, -math.inf)",
            "scores",
        ),
        Mistake(
            "a query that may attend to nothing gives NaN, which is 0 / 0",
            "weights = weights.masked_fill(~mask, 0.0)",
            "weights = weights",
        ),
        Mistake(
            "the softmax goes over the queries, not over the keys",
            "softmax_reference(scores)",
            "softmax_reference(scores.mT).mT",
        ),
    ),
    hints=(
        "softmax(scale · Q Kᵀ) V: write the shapes of Q Kᵀ and of each factor first.",
        "Bring k and v to as many heads as q by repeating each head for its neighbours. What is forbidden gets the "
        "score -∞ before the softmax. The softmax is over the keys, the last dimension.",
        "For large scores subtract the maximum of each row before exp (torch.softmax does). A row of -∞ alone becomes "
        "NaN: set weights to 0 where attention is forbidden, afterwards.",
    ),
    without=("_scores", "_sums", "_falls"),
)
