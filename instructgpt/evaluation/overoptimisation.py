"""Over-optimisation: a reward that is learnt and the true one, against how far a policy has moved to please the first.

Goodhart's law with numbers (Gao et al. 2023): both rise at first; then the learnt reward goes on rising while the true
one falls. Two ways to move are compared at the same KL to the start: the best of n answers, and a trained policy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instructgpt.atomic import replacing
from instructgpt.figures import write_json

_Z = 1.959964


@dataclass(frozen=True)
class Point:
    """A policy at some distance from its start."""

    kl: float
    """KL(policy ‖ start) of a whole answer, in nats."""
    reward: float
    """Mean of the learnt reward, the one that was optimised."""
    true_reward: float
    reward_half_width: float = math.nan
    """Half of the 95% interval over prompts; NaN where it is not known."""
    true_half_width: float = math.nan
    n: int = 0
    """Of how many answers the best was taken; 0 for a trained policy."""


def best_of_n_kl(n: int) -> float:
    """ln n - (n - 1)/n nats: what choosing the best of n costs at most (Beirami et al. 2024), and nearly costs where
    answers seldom repeat (Gao et al. 2023, section 2)."""
    return math.log(n) - (n - 1) / n


def best_of_n_means(chosen_by: np.ndarray, measured: np.ndarray, n: int) -> np.ndarray:
    """Expectation (P,) of `measured` for the best of n by `chosen_by`, both (P, N): N answers to each of P prompts.

    Unbiased from one pool, over all subsets of n (Nakano et al. 2021, appendix I): the answer with i others below it is
    the best of C(i, n-1) out of C(N, n) subsets. Answers that tie share their chances. Raises ValueError unless n ≤ N.
    """
    P, N = chosen_by.shape
    if not 1 <= n <= N:
        raise ValueError(f"the best of {n} from a pool of {N} answers")
    chances = np.array([math.comb(i, n - 1) / math.comb(N, n) for i in range(N)])  # of each rank, from the worst
    cumulative = np.concatenate([[0.0], chances.cumsum()])
    means = np.empty(P)
    for prompt in range(P):
        scores = chosen_by[prompt]
        ranked = np.sort(scores)
        below, up_to = np.searchsorted(ranked, scores, "left"), np.searchsorted(ranked, scores, "right")
        share = (cumulative[up_to] - cumulative[below]) / (up_to - below)
        means[prompt] = share @ measured[prompt]
    return means


def best_of_n_curve(rewards: np.ndarray, true_rewards: np.ndarray, most: int = 64) -> list[Point]:
    """Points for n = 1, 2, 4, … up to `most`, and no more than the pool holds. Both arguments (P, N)."""
    points = []
    n = 1
    while n <= min(most, rewards.shape[1]):
        learnt, true = best_of_n_means(rewards, rewards, n), best_of_n_means(rewards, true_rewards, n)
        points.append(
            Point(best_of_n_kl(n), float(learnt.mean()), float(true.mean()), _half_width(learnt), _half_width(true), n)
        )
        n *= 2
    return points


def trajectory(records: Iterable[dict[str, Any]]) -> list[Point]:
    """The points of a policy in training: the records of its metrics.jsonl that hold a validation."""
    names = ("val_kl", "val_reward", "val_true_reward")
    return [Point(*(record[name] for name in names)) for record in records if all(name in record for name in names)]


def _half_width(values: np.ndarray) -> float:
    return _Z * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def parting(points: Sequence[Point]) -> str:
    """One sentence: whether the two rewards part, and where the true one is highest."""
    if not points:
        return "no points"
    ordered = sorted(points, key=lambda point: point.kl)
    best, last = max(ordered, key=lambda point: point.true_reward), ordered[-1]
    peak = f"the true reward is highest, {best.true_reward:.3f}, at {best.kl:.2f} nats"
    if best is last:
        return f"{peak}, where the curve ends: the two rewards do not part"
    change = f"the learnt reward goes from {best.reward:.3f} to {last.reward:.3f}"
    return f"{peak}; from there to {last.kl:.2f} nats it falls to {last.true_reward:.3f}, while {change}"


def write_overoptimisation(curves: dict[str, Sequence[Point]], folder: str | Path) -> dict[str, str]:
    """overoptimisation.json and, where matplotlib (extra `plot`) is there, overoptimisation.png.

    Returns `parting` of each. curves: points by title, each in the order they were reached.
    """
    folder = Path(folder)
    verdicts = {title: parting(points) for title, points in curves.items()}
    document = {
        title: {"parting": verdicts[title], "points": [asdict(point) for point in points]}
        for title, points in curves.items()
    }
    write_json(folder / "overoptimisation.json", document)
    _plot(curves, folder / "overoptimisation.png")
    return verdicts


def _plot(curves: dict[str, Sequence[Point]], path: Path) -> None:
    try:
        import matplotlib

        matplotlib.use("agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(7, 7), sharex=True, layout="constrained")
    for number, (title, points) in enumerate(curves.items()):
        for axis, name, half_width in (
            (upper, "true_reward", "true_half_width"),
            (lower, "reward", "reward_half_width"),
        ):
            kl, mean = [p.kl for p in points], np.array([getattr(p, name) for p in points])
            half = np.nan_to_num(np.array([getattr(p, half_width) for p in points]))
            axis.plot(kl, mean, "o-", markersize=4, color=f"C{number}", label=title)
            axis.fill_between(kl, mean - half, mean + half, color=f"C{number}", alpha=0.15, linewidth=0)
    upper.set(ylabel="true reward", title="What is optimised, and what is meant")
    lower.set(ylabel="learnt reward", xlabel="KL to the start (nats an answer)")
    for axis in (upper, lower):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)
