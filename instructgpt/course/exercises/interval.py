"""A score with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from instructgpt.course.exercise import Check, Exercise, Mistake, refusal
from instructgpt.evaluation.scores import Interval


def _rounded(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    interval = function(**given)
    return {name: round(float(getattr(interval, name)), 4) for name in ("mean", "low", "high", "n")}


def _usual(of_0_and_1: bool, is_cut: bool, least: int = 1) -> Callable[..., Interval]:
    """The normal approximation for all scores. of_0_and_1: with p(1 - p) for scores of 0 and 1; least: of n - 1."""

    def mean_interval(scores: Sequence[float]) -> Interval:
        if not scores:
            raise ValueError
        n, mean = len(scores), sum(scores) / len(scores)
        if of_0_and_1 and set(scores) <= {0, 1}:
            variance = mean * (1 - mean)
        else:
            variance = sum((score - mean) ** 2 for score in scores) / max(n - 1, least)
        half = 1.959964 * math.sqrt(variance / n)
        low, high = (max(0.0, mean - half), min(1.0, mean + half)) if is_cut else (mean - half, mean + half)
        return Interval(mean, low, high, n)

    return mean_interval


def _is(mean: float, low: float, high: float, n: int) -> dict[str, float]:
    return {"mean": mean, "low": low, "high": high, "n": n}


EXERCISE = Exercise(
    place=610,
    title="Exact match, with an interval",
    about="17 right answers of 20 are 85%, but 20 questions say little: the interval says how little. Where "
    "all answers "
    "are right the usual formula is sure of itself, and Wilson's is not.",
    target="instructgpt.evaluation.scores.mean_interval",
    checks=(
        Check("20 of 20 right: from 0.84 on, not from 1", {"scores": [1.0] * 20}, _is(1.0, 0.8389, 1.0, 20), _rounded),
        Check("0 of 20 right", {"scores": [0.0] * 20}, _is(0.0, 0.0, 0.1611, 20), _rounded),
        Check("5 of 10 right", {"scores": [1.0, 0.0] * 5}, _is(0.5, 0.2366, 0.7634, 10), _rounded),
        Check("one right answer", {"scores": [1.0]}, look=_rounded),
        Check("17 of 20 right", {"scores": [1.0] * 17 + [0.0] * 3}, look=_rounded),
        Check(
            "scores between 0 and 1: mean ± 1.96 · deviation / √n",
            {"scores": [0.4, 0.6]},
            _is(0.5, 0.304, 0.696, 2),
            _rounded,
        ),
        Check("cut off at 0 and 1", {"scores": [0.0, 0.5, 1.0]}, look=_rounded),
        Check("one score between 0 and 1: itself", {"scores": [0.5]}, _is(0.5, 0.5, 0.5, 1), _rounded),
        Check("four scores, two of them 0 and 1", {"scores": [0.0, 0.2, 0.3, 1.0]}, look=_rounded),
        Check("near 1, cut off", {"scores": [0.9, 1.0, 0.6, 1.0]}, look=_rounded),
        Check("no scores: a ValueError", {"scores": []}, "ValueError", refusal),
    ),
    mistakes=(
        Mistake(
            "the normal approximation is sure of itself where all answers are right: take Wilson's interval for "
            "scores of 0 and 1",
            "if all(score in (0, 1) for score in scores):",
            "if n < 0:",
        ),
        Mistake(
            "p(1 - p) / n is sure of itself where all answers are right: take Wilson's interval for scores of 0 and 1",
            function=_usual(of_0_and_1=True, is_cut=True),
        ),
        Mistake(
            "p(1 - p) / n is sure of itself where all answers are right, and nothing is cut off: take Wilson's "
            "interval for scores of 0 and 1",
            function=_usual(of_0_and_1=True, is_cut=False),
        ),
        Mistake(
            "the normal approximation is taken for all scores, and not cut off: for scores of 0 and 1 take Wilson's",
            function=_usual(of_0_and_1=False, is_cut=False),
        ),
        Mistake(
            "p(1 - p) / n is sure of itself where all answers are right, and a single other score divides by n - 1 = 0",
            function=_usual(of_0_and_1=True, is_cut=True, least=0),
        ),
        Mistake(
            "p(1 - p) / n is sure of itself where all answers are right, nothing is cut off, and a single other score "
            "divides by n - 1 = 0",
            function=_usual(of_0_and_1=True, is_cut=False, least=0),
        ),
        Mistake(
            "the normal approximation is taken for all scores, and a single one divides by n - 1 = 0: for scores of "
            "0 and 1 take Wilson's",
            function=_usual(of_0_and_1=False, is_cut=True, least=0),
        ),
        Mistake(
            "the normal approximation is taken for all scores, not cut off, and a single one divides by n - 1 = 0: for "
            "scores of 0 and 1 take Wilson's",
            function=_usual(of_0_and_1=False, is_cut=False, least=0),
        ),
        Mistake("a single score divides by 0: n - 1 is 0 there", "max(n - 1, 1)", "(n - 1)"),
        Mistake(
            "Wilson's interval is taken as soon as one score is 0 or 1: it is for scores that all are",
            "if all(score",
            "if any(score",
        ),
        Mistake(
            "Wilson's interval is taken for all scores", "if all(score in (0, 1) for score in scores):", "if n > 0:"
        ),
        Mistake("z is that of 90%: for 95% it is 1.96", "n = len(scores)", "n, _Z = len(scores), 1.645"),
        Mistake("z is 2: for 95% it is 1.96", "n = len(scores)", "n, _Z = len(scores), 2"),
        Mistake(
            "this is one standard error to each side: 1.96 of them are 95%",
            "half = mean, _Z * math",
            "half = mean, math",
        ),
        Mistake(
            "the variance is p(1 - p), which is that of scores of 0 and 1 alone",
            "variance = math.fsum((score - mean) ** 2 for score in scores) / max(n - 1, 1)",
            "variance = mean * (1 - mean)",
        ),
        Mistake("1 + z²/n is missing under Wilson's half width", "half = _Z / (1 + _Z**2 / n) *", "half = _Z *"),
        Mistake("Wilson's centre has z²/n where z²/2n is meant", "_Z**2 / (2 * n)", "_Z**2 / n"),
        Mistake("this is the sum of the scores, not their mean", "math.fsum(scores) / n", "math.fsum(scores)"),
        Mistake(
            "this is in percent: scores are shares",
            "return Interval(mean, min(mean, max(0.0, centre - half)), max(mean, min(1.0, centre + half)), n)",
            "return Interval(100 * mean, 100 * max(0.0, centre - half), 100 * min(1.0, centre + half), n)",
        ),
        Mistake("only the lower end is cut off", "min(1.0, centre + half)", "centre + half"),
        Mistake("only the upper end is cut off", "max(0.0, centre - half)", "centre - half"),
        Mistake(
            "the two ends are exchanged",
            "min(mean, max(0.0, centre - half)), max(mean, min(1.0, centre + half))",
            "max(mean, min(1.0, centre + half)), min(mean, max(0.0, centre - half))",
        ),
        Mistake(
            "n is the number of right answers, not of scores",
            "centre + half)), n)",
            "centre + half)), round(sum(scores)))",
        ),
        Mistake(
            "no scores are given a mean of 0: there is none",
            'raise ValueError("the mean of no scores")',
            "return Interval(0.0, 0.0, 1.0, 0)",
        ),
        Mistake("the variance is divided by n where n - 1 is meant", "max(n - 1, 1)", "n"),
        Mistake(
            "this is the deviation of one score, not that of the mean: √n is missing",
            "math.sqrt(variance / n)",
            "math.sqrt(variance)",
        ),
        Mistake(
            "the interval leaves [0, 1]",
            "min(mean, max(0.0, centre - half)), max(mean, min(1.0, centre + half))",
            "centre - half, centre + half",
        ),
        Mistake(
            "Wilson's interval is not centred at the mean, but nearer to 1/2",
            "centre = (mean + _Z**2 / (2 * n)) / (1 + _Z**2 / n)",
            "centre = mean",
        ),
        Mistake(
            "the mean is Wilson's centre: the score itself is to be reported",
            "return Interval(mean,",
            "return Interval(centre,",
        ),
        Mistake("the mean of nothing is not refused as a ValueError", "if n == 0:", "if n < 0:"),
        Mistake("the last term under Wilson's root is missing", " + _Z**2 / (4 * n**2)", ""),
    ),
    hints=(
        "Two cases, and two formulas: scores that are all 0 or 1, and others. What does the usual formula say "
        "of 20 right "
        "answers of 20?",
        "Wilson, z = 1.96: centre (p + z²/2n) / (1 + z²/n), half width z / (1 + z²/n) · √(p(1-p)/n + z²/4n²). Others: "
        "mean ± z · √(variance / n), with n - 1 in the variance.",
        "Cut both off at 0 and 1, and let the mean be inside. `Interval(mean, low, high, n)`; of no scores there is no "
        "mean.",
    ),
)
