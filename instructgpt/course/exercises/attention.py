"""Scaled dot-product attention."""

from __future__ import annotations

import math

import torch

from instructgpt.course.exercise import Check, Exercise, Mistake, gradient, numbers


def _heads(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)[None, None]


def _qkv(queries: int, keys: int, heads: int = 1, batch: int = 1, dtype: torch.dtype = torch.float64):
    """Queries, keys and values of four channels, one head of keys."""
    shapes = ((batch, heads, queries, 4), (batch, 1, keys, 4), (batch, 1, keys, 4))
    q, k, v = (numbers(*shape, seed=seed).to(dtype) for seed, shape in enumerate(shapes))
    return {"q": q, "k": k, "v": v}


NOTHING = torch.tensor([[True, False], [False, False]])
"""The second query may attend to nothing."""

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
        Check(
            "may_attend, another one for each row of the batch, and causal: what both allow",
            {**_qkv(3, 5, heads=2, batch=2), "may_attend": numbers(2, 1, 3, 5, seed=4) > -0.7, "causal": True},
        ),
        Check(
            "causal: the one key that the first query sees has a score of -700 000, and all of the weight",
            {
                "q": _heads([1e6, 0], [1e6, 0]),
                "k": _heads([-1, 0], [1, 0]),
                "v": _heads([1, 2], [3, 4]),
                "causal": True,
            },
            _heads([1, 2], [3, 4]),
        ),
        Check("a scale, and a causal mask", {**_qkv(2, 3), "causal": True, "scale": 0.3}),
        Check(
            "the gradient of the queries, where one may attend to nothing",
            {**_qkv(2, 2), "may_attend": NOTHING},
            look=gradient("q"),
        ),
        Check("the gradient of the values", {**_qkv(3, 3, heads=2), "causal": True}, look=gradient("v")),
        Check("bfloat16 in, bfloat16 out", _qkv(3, 3, dtype=torch.bfloat16), tolerance=0.03),
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
        Mistake("`may_attend` is ignored", "[] if may_attend is None else [may_attend]", "[]"),
        Mistake(
            "where there is a `may_attend`, `causal` is forgotten: both have to allow",
            "if causal:",
            "if causal and may_attend is None:",
        ),
        Mistake(
            "where `causal` is set, `may_attend` is forgotten: both have to allow",
            "[] if may_attend is None else [may_attend]",
            "[] if may_attend is None or causal else [may_attend]",
        ),
        Mistake(
            "one of the two masks suffices where both have to allow",
            "reduce(torch.logical_and, allowed)",
            "reduce(torch.logical_or, allowed)",
        ),
        Mistake("`scale` is ignored", "if scale is None else scale", "if True else scale"),
        Mistake(
            "a scale that is given is divided by √D once more",
            "if scale is None else scale",
            "if scale is None else scale / math.sqrt(q.size(-1))",
        ),
        Mistake(
            "exp overflows: the maximum is not subtracted first",
            "softmax_reference(scores)",
            "(scores.exp() / scores.exp().sum(-1, keepdim=True))",
        ),
        Mistake(
            "what is forbidden has a score that is only fairly low, and lower ones are allowed: it is to be -∞",
            "scores.masked_fill(~mask, -math.inf)",
            "scores.masked_fill(~mask, -1e4)",
        ),
        Mistake(
            "the mean of all values stands where a query may attend to nothing; it is to be 0",
            "weights = weights.masked_fill(~mask, 0.0)",
            "weights = weights.nan_to_num(1 / keys)",
            (("o = _sums(weights, v, mask)", "o = weights @ v"),),
        ),
        Mistake(
            "the gradient is no number where a query may attend to nothing: -∞ was added to the scores, not filled in",
            "scores = scores.masked_fill(~mask, -math.inf)",
            "scores = scores + torch.zeros(mask.shape, dtype=scores.dtype).masked_fill(~mask, -math.inf)",
        ),
        Mistake(
            "the mask is the wrong way round: True is allowed",
            "masked_fill(~mask, -math.inf)",
            "masked_fill(mask, -math.inf)",
        ),
        Mistake(
            "the queries are given no gradient: they are detached",
            "_scores(q, k, mask)",
            "_scores(q.detach(), k, mask)",
        ),
        Mistake(
            "the keys are given no gradient: they are detached", "_scores(q, k, mask)", "_scores(q, k.detach(), mask)"
        ),
        Mistake(
            "the values are given no gradient: they are detached",
            "_sums(weights, v, mask)",
            "_sums(weights, v.detach(), mask)",
        ),
        Mistake(
            "what is forbidden has a score that is only fairly low: lower ones are allowed, and a query that may see "
            "nothing gets the mean of all values",
            "scores.masked_fill(~mask, -math.inf)",
            "scores.masked_fill(~mask, -1e4)",
            (
                ("weights = weights.masked_fill(~mask, 0.0)", "weights = weights"),
                ("o = _sums(weights, v, mask)", "o = weights @ v"),
            ),
        ),
        Mistake(
            "the result has not the dtype of q", "return o if lse is None", "o = o.float()\n    return o if lse is None"
        ),
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
