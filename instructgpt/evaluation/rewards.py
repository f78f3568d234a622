"""Is a reward model right, and does it know how sure to be? Held-out pairs by kind of fault; a reliability curve."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from instructgpt.atomic import replacing
from instructgpt.data.comparisons import ComparisonBatch
from instructgpt.errors import UserError
from instructgpt.evaluation.scores import Interval, mean_interval

_BORDERS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Of the bins of confidence; finer towards 1, where most pairs of an easy set are."""


class Bin(NamedTuple):
    """Pairs that the model is about as sure of."""

    confidence: float
    """Mean σ(|difference of rewards|): the probability it gives to the answer that it prefers."""
    accuracy: Interval
    """Of how many it prefers the right one."""


@dataclass(frozen=True)
class PairReport:
    """What a reward model makes of compared answers."""

    margins: np.ndarray
    """(P,) reward of the better answer less that of the worse one; at least one."""
    kinds: Sequence[str]
    """What tells the two answers of each pair apart: a kind of fault, or the name of the file."""
    length_differences: np.ndarray
    """(P,) tokens that the better answer has more than the worse one."""

    @cached_property
    def hits(self) -> np.ndarray:
        """(P,) 1 where the better answer has the higher reward, 0.5 for a tie, else 0."""
        return np.where(self.margins == 0, 0.5, self.margins > 0)

    @cached_property
    def accuracy(self) -> Interval:
        return mean_interval(self.hits.tolist())

    @cached_property
    def by_kind(self) -> dict[str, Interval]:
        kinds = np.array(self.kinds)
        return {kind: mean_interval(self.hits[kinds == kind].tolist()) for kind in sorted(set(self.kinds))}

    @cached_property
    def by_length(self) -> dict[str, Interval]:
        """Accuracy where the better answer is longer than the other, and where it is shorter."""
        sides = {
            "the better is longer": self.length_differences > 0,
            "the better is shorter": self.length_differences < 0,
        }
        return {name: mean_interval(self.hits[chosen].tolist()) for name, chosen in sides.items() if chosen.any()}

    @cached_property
    def bins(self) -> list[Bin]:
        """The reliability curve (Guo et al. 2017, section 2), by the probability of the preferred answer."""
        confidence = 1 / (1 + np.exp(-np.abs(self.margins)))
        place = np.digitize(confidence, _BORDERS[1:-1])
        chosen = [place == number for number in range(len(_BORDERS) - 1)]
        return [Bin(float(confidence[c].mean()), mean_interval(self.hits[c].tolist())) for c in chosen if c.any()]

    @property
    def calibration_error(self) -> float:
        """Expected calibration error (Guo et al. 2017, eq. 3): |confidence - accuracy|, averaged over pairs."""
        gaps = [each.accuracy.n * abs(each.confidence - each.accuracy.mean) for each in self.bins]
        return sum(gaps) / len(self.margins)

    def to_json(self) -> dict[str, Any]:
        def share(interval: Interval) -> dict[str, float | list[float]]:
            return {"n": interval.n, "accuracy": interval.mean, "interval": [interval.low, interval.high]}

        return {
            **share(self.accuracy),
            "mean_margin": float(self.margins.mean()),
            "calibration_error": self.calibration_error,
            "kinds": {kind: share(accuracy) for kind, accuracy in self.by_kind.items()},
            "lengths": {side: share(accuracy) for side, accuracy in self.by_length.items()},
            "reliability": [{"confidence": each.confidence, **share(each.accuracy)} for each in self.bins],
        }

    def plain(self) -> str:
        """Aligned text, for a log."""
        groups = {"held-out pairs": self.accuracy, **self.by_kind, **self.by_length}
        width = max(map(len, groups))
        lines = [
            f"{name:<{width}}  {a.n:>5}  accuracy {a.mean:.3f}  ({a.low:.3f} to {a.high:.3f})"
            for name, a in groups.items()
        ]
        return "\n".join([*lines, f"expected calibration error {self.calibration_error:.3f}"])

    def plot(self, path: Path) -> bool:
        """Draws the reliability curve; False, and nothing, where matplotlib (extra `plot`) is missing."""
        try:
            import matplotlib

            matplotlib.use("agg")
            import matplotlib.pyplot as plt
        except ImportError:
            return False
        figure, (above, below) = plt.subplots(
            2, 1, figsize=(4.6, 5.4), sharex=True, height_ratios=(3, 1), layout="constrained"
        )
        confidence = [each.confidence for each in self.bins]
        means = [each.accuracy.mean for each in self.bins]
        arms = [
            [each.accuracy.mean - each.accuracy.low for each in self.bins],
            [each.accuracy.high - each.accuracy.mean for each in self.bins],
        ]
        above.plot([0.5, 1], [0.5, 1], "--", color="grey", linewidth=1, label="as sure as right")
        above.errorbar(confidence, means, yerr=arms, fmt="o-", capsize=3, label="measured, 95% intervals")
        above.set(
            ylabel="share that prefers the better answer",
            title=f"{self.accuracy.mean:.1%} of {len(self.margins):,} held-out pairs, "
            f"calibration error {self.calibration_error:.3f}",
        )
        above.title.set_fontsize(9)
        above.legend(fontsize=8)
        widths = [b - a for a, b in pairwise(_BORDERS)]
        counts, _ = np.histogram(1 / (1 + np.exp(-np.abs(self.margins))), _BORDERS)
        below.bar(_BORDERS[:-1], counts, widths, align="edge", edgecolor="white")
        below.set(xlabel="probability of the preferred answer, σ(|Δ reward|)", ylabel="pairs")
        for axis in (above, below):
            axis.grid(alpha=0.3)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
        plt.close(figure)
        return True


def compare_pairs(
    rewards: Callable[[ComparisonBatch], Tensor],
    batches: Iterable[ComparisonBatch],
    kinds: Sequence[str],
    device: torch.device,
) -> PairReport:
    """The report of `rewards`, a number (S,) for each answer of a batch, on all pairs of `batches`, of these kinds.

    Runs under the caller's autocast, without gradients. Raises UserError when there is no pair.
    """
    margins, differences = [], []
    with torch.inference_mode():
        for batch in batches:
            moved = batch.to(device)
            values, pairs = rewards(moved).double(), moved.pairs
            margins.append((values[pairs.better] - values[pairs.worse]).cpu().numpy())
            differences.append((moved.lengths[pairs.better] - moved.lengths[pairs.worse]).cpu().numpy())
    if not margins:
        raise UserError("there is nothing to evaluate: no pair of answers was given")
    report = PairReport(np.concatenate(margins), kinds, np.concatenate(differences))
    if len(kinds) != len(report.margins):
        raise ValueError(f"{len(kinds)} kinds for {len(report.margins)} pairs")
    return report
