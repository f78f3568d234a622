"""Flash attention's inner loop, as a Triton kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from instructgpt.course.exercise import Check, Exercise, Mistake, numbers
from instructgpt.course.kernel_checks import kernel_check
from kernels.attention import attention, spec

check = partial(kernel_check, spec=spec, batch=1, kv_heads=1, group=1, head_dim=16)


def _spoilt(function: Callable[..., Any], given: dict[str, Any]) -> list[bool]:
    """Which queries of causal attention are not numbers, where the value of one key is not."""
    q, k, v = (numbers(1, 1, given["keys"], 16, seed=seed).float() for seed in range(3))
    v[:, :, given["spoilt"]] = float("nan")
    with np.errstate(all="ignore"):  # the interpreter computes with numpy, which warns of NaN
        return attention(q, k, v, causal=True).isnan().any(-1).flatten().tolist()


EXERCISE = Exercise(
    place=820,
    title="Flash attention's inner loop",
    about="A block of queries walks over the keys, a block of them at a time, and never holds more than one "
    "block of scores. "
    "What it has summed up is scaled down whenever a larger score turns up, as in the online softmax.",
    target="kernels.attention_forward.attend",
    checks=(
        check("five queries and 40 keys: two whole blocks and an edge", queries=5, keys=40),
        check("causal: each query has an edge of its own", queries=20, keys=20, causal=True),
        check("scores in the hundreds: the maximum grows from block to block", queries=4, keys=48, size=30.0),
        check("two documents in a row, and padding behind them", queries=33, keys=33, documents=2, padding=5),
        check("a soft cap of 2", queries=4, keys=20, soft_cap=2.0),
        check("keys and values that lie otherwise in memory than one another", layout="mixed", queries=3, keys=40),
        check("float16, 24 channels", dtype="float16", queries=3, keys=33, head_dim=24),
        Check(
            "causal, and the value of a key is NaN (CAREFUL): the queries before it have nothing to do with it",
            {"keys": 20, "spoilt": 12},
            [query >= 12 for query in range(20)],
            _spoilt,
        ),
    ),
    mistakes=(
        Mistake(
            "what was summed before is not scaled down when a larger score turns up", "acc * alpha[:, None]", "acc"
        ),
        Mistake("the sum of the weights is not scaled down when a larger score turns up", "total * alpha", "total"),
        Mistake(
            "keys outside of a query's interval are not masked on the edges",
            's = tl.where(may_attend, s, -float("inf"))',
            "s = s",
        ),
        Mistake("the interval's end counts as inside", "keys[None, :] < end[:, None]", "keys[None, :] <= end[:, None]"),
        Mistake(
            "a query that has met no key yet has the maximum -inf, and -inf less -inf is no number",
            'shift = tl.where(larger == -float("inf"), 0.0, larger)',
            "shift = larger",
        ),
        Mistake("the maximum is not kept from block to block", "        m = larger\n", "        m = m\n"),
        Mistake(
            "the exponential is in base e: the unit is made for base 2", "p = tl.exp2(s * unit", "p = tl.exp(s * unit"
        ),
        Mistake(
            "the scores are not brought to their unit before the exponential: the scale is missing",
            "p = tl.exp2(s * unit - shift[:, None])",
            "p = tl.exp2(s - shift[:, None])",
        ),
        Mistake(
            "the values are taken to lie as far apart as the keys: their step is v_step",
            "v_block + tl.cast(block, tl.int64) * v_step",
            "v_block + tl.cast(block, tl.int64) * k_step",
        ),
        Mistake(
            "keys before a query's interval are not masked on the edges: it has a first one, too",
            "(keys[None, :] >= first[:, None]) & ",
            "",
        ),
        Mistake(
            "`SOFT_CAP` is ignored",
            'capped_scores(tl.dot(q, tl.trans(k), input_precision="ieee"), scale, SOFT_CAP)',
            'tl.dot(q, tl.trans(k), input_precision="ieee")',
        ),
        Mistake(
            "what came before is forgotten: `state` is where this goes on from",
            "acc, m, total = state",
            "acc, m, total = state\n"
            '    acc, m, total = acc * 0.0, tl.full(m.shape, -float("inf"), tl.float32), total * 0.0',
        ),
        Mistake(
            "what was summed before is scaled down by a power of e, and the rest by powers of 2",
            "alpha = tl.exp2(m - shift)",
            "alpha = tl.exp(m - shift)",
        ),
        Mistake(
            "the sum of values is divided by the sum of weights in the loop already",
            "return acc, m, total",
            "return acc / total[:, None], m, total",
        ),
        Mistake(
            "`CAREFUL` is ignored: a weight of 0 times a value that is NaN is NaN",
            "p, v, may_attend, CAREFUL)",
            "p, v, may_attend, False)",
        ),
        Mistake(
            "only the first block is looked at",
            "range(begin, until, BLOCK_K)",
            "range(begin, min(until, begin + BLOCK_K), BLOCK_K)",
        ),
        Mistake(
            "the new weights are scaled down, not what was summed before",
            "total * alpha + tl.sum(p, 1)",
            "total + tl.sum(p, 1) * alpha",
            (("acc * alpha[:, None], p,", "acc, p * alpha[:, None],"),),
        ),
        Mistake(
            "each block reads the same values: v_block has to move on",
            "v_block + tl.cast(block, tl.int64) * v_step",
            "v_block + tl.cast(begin, tl.int64) * v_step",
        ),
    ),
    hints=(
        "One turn of the loop: load BLOCK_K keys, scores (BLOCK_Q, BLOCK_K), the new maximum, weights, the new "
        "sums. What "
        "was summed with the old maximum has to be brought to the new one.",
        "S·log2 e is `capped_scores(q kᵀ, …) * unit`. m' = max(m, row maximum · unit), p = 2^(s·unit - m'), α "
        "= 2^(m - m'); "
        "total' = α·total + Σ p, acc' = α·acc + p v. On an EDGE scores outside of [first, end) are -inf.",
        "load_rows(k_block + block · k_step, keys < stop, D, BLOCK_D, EDGE) loads them, the offset in int64. "
        "While m' is "
        "-inf use 0 for it. add_products(acc · α, p, v, may_attend, CAREFUL) adds p v. Return (acc, m, total).",
    ),
    seconds=300.0,
)
