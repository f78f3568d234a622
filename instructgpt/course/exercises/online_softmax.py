"""The online softmax, as a Triton kernel."""

from __future__ import annotations

from functools import partial

from instructgpt.course.exercise import Exercise, Mistake
from instructgpt.course.kernel_checks import kernel_check
from kernels.softmax import spec

check = partial(kernel_check, spec=spec)

EXERCISE = Exercise(
    place=810,
    title="The online softmax, a Triton kernel",
    about="A row that is too long for one block is read in pieces, and its maximum is known only at the end. A "
    "running sum "
    "is made smaller whenever a larger maximum turns up, so one pass is enough for both. (Called for rows of "
    "more than 64 columns in the interpreter.)",
    target="kernels.softmax.softmax_forward_online_kernel",
    checks=(
        check("one row of 65 columns: two blocks", rank=1, columns=65),
        check("130 columns, scaled by -1/8", rank=1, columns=130, scale=-0.125),
        check(
            "scores in the hundreds: the maximum grows from block to block", rank=2, queries=3, columns=200, size=300.0
        ),
        check("five rows, where a program has four", rank=2, queries=5, columns=70),
        check("causal: blocks that a query sees in part, or not at all", rank=2, queries=3, columns=130, causal=True),
        check(
            "a third of the scores is -inf, and all of a row but its last",
            rank=2,
            queries=2,
            columns=140,
            special="-inf",
        ),
        check("rows of 70 that lie further apart than they are long", layout="padded", rank=2, queries=3, columns=70),
        check(
            "float16, scores in the hundreds, scaled by 0.3",
            dtype="float16",
            rank=2,
            queries=2,
            columns=129,
            size=300.0,
            scale=0.3,
        ),
        check(
            "causal, as many queries as columns: the first one sees one score, which may be far below 0",
            rank=2,
            queries=66,
            columns=66,
            causal=True,
            size=300.0,
        ),
    ),
    mistakes=(
        Mistake(
            "the sum is not made smaller when a larger maximum turns up",
            "total * tl.exp(maximum - pivot)",
            "total",
        ),
        Mistake(
            "no maximum is subtracted, so exp overflows",
            'pivot = tl.where(larger == -float("inf"), 0.0, larger)',
            "pivot = tl.zeros_like(larger)",
            (("maximum = larger", "maximum = tl.zeros_like(larger)"),),
        ),
        Mistake(
            "as long as all is -inf, -inf less -inf is no number",
            'pivot = tl.where(larger == -float("inf"), 0.0, larger)',
            "pivot = larger",
        ),
        Mistake(
            "the maximum begins at 0: where all scores are far below, all of their exponentials are 0",
            'maximum = tl.full((ROWS, 1), -float("inf"), tl.float32)',
            "maximum = tl.zeros((ROWS, 1), tl.float32)",
        ),
        Mistake(
            "y is taken to have its rows `stride` apart, as x has: y is contiguous",
            "tl.store(y + row * columns",
            "tl.store(y + row * stride",
        ),
        Mistake(
            "the first pass computes in x's 16 bits",
            'other=0.0).to(tl.float32)\n        scores = tl.where(column < seen, scores, -float("inf"))',
            'other=0.0)\n        scores = tl.where(column < seen, scores, -float("inf"))',
        ),
        Mistake(
            "the maximum is that of the last block, not of all so far",
            "tl.maximum(maximum, tl.max(scores, 1, keep_dims=True))",
            "tl.max(scores, 1, keep_dims=True)",
        ),
        Mistake(
            "columns past the end, loaded as 0, or past what the query may see, are in the sum",
            '        scores = tl.where(column < seen, scores, -float("inf"))\n',
            "",
        ),
        Mistake(
            "the scale is missing in the second pass",
            "scores = scale * tl.load(x + row * stride + column, mask=inside, other=0.0).to(tl.float32)",
            "scores = tl.load(x + row * stride + column, mask=inside, other=0.0).to(tl.float32)",
        ),
        Mistake(
            "x is taken to have its rows side by side: they begin `stride` apart",
            "scores = scale * tl.load(x + row * stride + column, mask=exists",
            "scores = scale * tl.load(x + row * columns + column, mask=exists",
            (
                (
                    "scores = scale * tl.load(x + row * stride + column, mask=inside",
                    "scores = scale * tl.load(x + row * columns + column, mask=inside",
                ),
            ),
        ),
        Mistake(
            "the weights are not divided by the sum", "tl.exp(scores - maximum) / total", "tl.exp(scores - maximum)"
        ),
        Mistake(
            "what a query may not see gets a weight: the mask is missing in the second pass",
            "tl.where(column < seen, tl.exp(scores - maximum) / total, 0.0)",
            "tl.exp(scores - maximum) / total",
        ),
    ),
    hints=(
        "Two passes over the columns, in blocks of COLUMNS: the first finds each row's maximum and the sum of "
        "exp(score - "
        "maximum), the second writes the weights. `rows_of_program` says which rows are this program's.",
        "m' = max(m, the block's maximum); sum' = sum · exp(m - m') + Σ exp(score - m'). Begin with m = -inf "
        "and sum = 0, "
        "both (ROWS, 1). Scores that are not seen are -inf.",
        "exp(-inf - (-inf)) is NaN: while m' is -inf use 0 in its place. Load with a mask, in float32; in the "
        "second pass "
        "write exp(score - m) / sum where column < seen, else 0, in y's own dtype (y.dtype.element_ty). y is "
        "contiguous: "
        "row · columns + column; x has `stride`.",
    ),
    seconds=300.0,
)
