"""The ledger: what each stage really did, as one table, JSON and a plot.

A row is a stage, with all its seeds. Two intervals stand beside a true reward, for two doubts: over prompts (would
other questions give the same?) and over seeds (would another run?).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from instructgpt.atomic import replacing
from instructgpt.evaluation.assessment import Assessment
from instructgpt.evaluation.scores import Interval, mean_interval, seed_interval


@dataclass(frozen=True)
class Entry:
    """One run."""

    run: str
    """Its directory."""
    seed: int
    minutes: float
    peak_memory: int
    """Bytes; 0 where it is not known."""
    assessment: Assessment
    text_bits_per_byte: float
    """On held-out text of the kind the base model learnt: what alignment has cost of that."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Entry:
        """What `to_json` gave."""
        given = dict(values["assessment"])
        given["greedy"] = {family: Interval(**interval) for family, interval in given["greedy"].items()}
        for name in ("right_refusals", "wrong_refusals"):
            given[name] = Interval(**given[name])
        return cls(**{**values, "assessment": Assessment(**given)})


@dataclass(frozen=True)
class Row:
    """One stage, over its seeds."""

    stage: str
    entries: list[Entry]

    def per_seed(self, value: Callable[[Assessment], float | None]) -> list[float]:
        """`value` of each seed's run, where it has one."""
        found = (value(entry.assessment) for entry in self.entries)
        return [each for each in found if each is not None]

    def mean(self, value: Callable[[Assessment], float | None]) -> float | None:
        values = self.per_seed(value)
        return float(np.mean(values)) if values else None

    @property
    def over_prompts(self) -> Interval:
        """The true reward with its interval over prompts, each prompt's reward being the mean over seeds."""
        by_prompt = np.mean([entry.assessment.true_rewards for entry in self.entries], axis=0)
        return mean_interval(by_prompt.tolist())

    @property
    def over_seeds(self) -> Interval | None:
        """The true reward with its interval over seeds; None for one seed."""
        return seed_interval(self.per_seed(lambda a: float(np.mean(a.true_rewards))))

    @property
    def families(self) -> dict[str, float]:
        """The true reward of greedy answers by family, mean over seeds."""
        names = self.entries[0].assessment.greedy
        return {name: float(np.mean([e.assessment.greedy[name].mean for e in self.entries])) for name in names}

    def figures(self) -> dict[str, float | None]:
        """Means over seeds of everything that is one number a run."""
        return {
            "reward_score": self.mean(lambda a: _mean(a.scores)),
            "believed_right": self.mean(lambda a: _mean(a.believed)),
            "gap": self.mean(lambda a: a.gap),
            "kl_to_sft": self.mean(lambda a: _mean(a.kl)),
            "answer_length": self.mean(lambda a: _mean(a.lengths)),
            "share_ended": self.mean(lambda a: _mean(a.ended)),
            "greedy_macro": self.mean(lambda a: a.macro),
            "right_refusals": self.mean(lambda a: a.right_refusals.mean if a.right_refusals.n else None),
            "wrong_refusals": self.mean(lambda a: a.wrong_refusals.mean if a.wrong_refusals.n else None),
            "text_bits_per_byte": float(np.mean([entry.text_bits_per_byte for entry in self.entries])),
            "minutes": float(np.mean([entry.minutes for entry in self.entries])),
            "peak_memory": max(entry.peak_memory for entry in self.entries),
        }


def _mean(values: Sequence[float] | None) -> float | None:
    return float(np.mean(values)) if values else None


@dataclass(frozen=True)
class Ledger:
    """Stages in the order given."""

    rows: list[Row]
    prompts: int
    """How many the true reward is over."""
    notes: list[str] = field(default_factory=list)
    """What else there is to say, a line each, such as how good the reward models are."""

    def to_json(self) -> dict[str, Any]:
        return {
            "prompts": self.prompts,
            "notes": self.notes,
            "stages": [
                {
                    "stage": row.stage,
                    "runs": [entry.run for entry in row.entries],
                    "seeds": [entry.seed for entry in row.entries],
                    "true_reward": row.over_prompts.mean,
                    "interval_over_prompts": _ends(row.over_prompts),
                    "interval_over_seeds": _ends(row.over_seeds),
                    "true_reward_by_seed": row.per_seed(lambda a: float(np.mean(a.true_rewards))),
                    **row.figures(),
                    "families": row.families,
                }
                for row in self.rows
            ],
        }

    def table(self) -> Table:
        """For a terminal, through rich; the notes stand below it."""
        table = Table(
            title=f"What each stage did ({self.prompts:,} held-out prompts, answers sampled at temperature 1)"
        )
        headers = (
            "stage", "seeds", "true reward", "± prompts", "± seeds", "reward model", "gap", "KL to SFT", "tokens",
            "ended", "greedy", "refused ✓", "refused ✗", "text bits/byte", "minutes", "memory",
        )  # fmt: skip
        for header in headers:
            table.add_column(header, justify="left" if header == "stage" else "right")
        for row in self.rows:
            f = row.figures()
            table.add_row(
                row.stage, str(len(row.entries)), _number(row.over_prompts.mean), _half(row.over_prompts),
                _half(row.over_seeds), _number(f["reward_score"], 2), _number(f["gap"]), _number(f["kl_to_sft"], 2),
                _number(f["answer_length"], 1), _number(f["share_ended"], 2), _number(f["greedy_macro"]),
                _number(f["right_refusals"], 2), _number(f["wrong_refusals"], 2), _number(f["text_bits_per_byte"]),
                _number(f["minutes"], 1), f"{f['peak_memory'] / 2**20:,.0f} MiB" if f["peak_memory"] else "–",
            )  # fmt: skip
        table.caption = "\n".join(self.notes)
        table.caption_justify = "left"
        return table

    def plot(self, path: Path) -> bool:
        """Draws true reward, what the reward model believes, and KL, a bar a stage; False without matplotlib."""
        try:
            import matplotlib

            matplotlib.use("agg")
            import matplotlib.pyplot as plt
        except ImportError:
            return False
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", width_ratios=(3, 2))
        places = np.arange(len(self.rows))
        intervals = [row.over_seeds or row.over_prompts for row in self.rows]
        arms = [[i.mean - i.low for i in intervals], [i.high - i.mean for i in intervals]]
        left.bar(
            places - 0.2, [i.mean for i in intervals], 0.4, yerr=arms, capsize=4, label="true reward, 95% over seeds"
        )
        believed = [row.figures()["believed_right"] or 0.0 for row in self.rows]
        left.bar(places + 0.2, believed, 0.4, color="C1", alpha=0.7, label="reward model: as good as the right answer")
        for row, place in zip(self.rows, places):
            rewards = row.per_seed(lambda a: float(np.mean(a.true_rewards)))
            left.plot([place - 0.2] * len(rewards), rewards, "k.", markersize=4)
        left.set(ylim=(0, 1), ylabel="share of answers")
        left.legend(fontsize=8)
        right.bar(places, [row.figures()["kl_to_sft"] or 0.0 for row in self.rows], 0.5, color="C2")
        right.set(ylabel="KL to the SFT model (nats an answer)")
        for axis in (left, right):
            axis.set_xticks(places, [row.stage for row in self.rows], rotation=20, fontsize=8)
            axis.grid(alpha=0.3, axis="y")
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
        plt.close(figure)
        return True


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _half(interval: Interval | None) -> str:
    return "–" if interval is None else f"±{interval.half_width:.3f}"
