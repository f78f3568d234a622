"""A score with its interval."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from instructgpt.course.exercise import Check, Exercise, Mistake


def _rounded(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    interval = function(**given)
    return {name: round(float(getattr(interval, name)), 4) for name in ("mean", "low", "high", "n")}


def _refusal(function: Callable[..., Any], given: dict[str, Any]) -> str:
    try:
        function(**given)
    except ValueError:
        return "ValueError"
    except Exception as error:
        return type(error).__name__
    return "no error"


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
        Check("no scores: a ValueError", {"scores": []}, "ValueError", _refusal),
    ),
    mistakes=(
        Mistake(
            "the normal approximation is sure of itself where all answers are right: take Wilson's interval for "
            "scores of 0 and 1",
            "if all(score in (0, 1) for score in scores):",
            "if n < 0:",
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
