"""What entries came to: results kept in a file, and the table in which they stand, the best first."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from instructgpt.course.race.entry import Rules
from instructgpt.course.race.judge import Finish
from instructgpt.errors import UserError
from instructgpt.evaluation.scores import ratio_interval, seed_interval
from instructgpt.figures import write_json

RESULTS = "results.json"
OURS = Path(__file__).parents[3] / "benchmarks/results/cpu-race.json"
"""Of our records; only in the repository."""
KINDS = {"entry": str, "change": str, "minutes": (int, float), "bits_per_byte": (int, float), "interval": list,
         "seeds": dict, "stopped_by": str}  # fmt: skip
"""What a result is known by."""
HEAD = ("entry", "bits/byte", "± text", "± seeds", "seeds", "updates", "weights", "minutes of CPU", "what it changes")


def result(name: str, rules: Rules, finishes: Sequence[Finish]) -> dict[str, Any]:
    """An entry's number, of one run or of several, as it is kept.

    The interval is over documents, what each costs averaged over seeds; `over_seeds` is that of the seeds' means.
    """
    first = finishes[0]
    averaged = [sum(costs) / len(finishes) for costs in zip(*(finish.bits for finish in finishes))]
    score = ratio_interval(averaged, first.bytes)
    means = [finish.score.mean for finish in finishes]
    over_seeds = seed_interval(means)
    return {
        "entry": name, "change": str(first.told["change"]), "minutes": rules.minutes, "flops": rules.flops,
        "documents": rules.documents, "bits_per_byte": score.mean, "interval": [score.low, score.high],
        "over_seeds": over_seeds and [over_seeds.low, over_seeds.high],
        "seeds": {str(finish.seed): mean for finish, mean in zip(finishes, means)},
        "updates": first.told["updates"], "tokens": first.told["tokens"], "parameters": first.told["parameters"],
        "vocab_size": first.told["vocab_size"], "stopped_by": first.told["stopped_by"],
        "cpu_minutes": sum(finish.told["cpu_seconds"] for finish in finishes) / 60 / len(finishes),
    }  # fmt: skip


def read(folder: Path) -> list[dict[str, Any]]:
    """The results in a folder. UserError for a file that holds none."""
    path = folder / RESULTS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(one[key], kind) for one in found for key, kind in KINDS.items()):
            raise TypeError
        rows(found)
    except FileNotFoundError:
        return []
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError("holds no results of races; move it away to begin anew", path) from None
    return found


def keep(folder: Path, new: dict[str, Any]) -> None:
    """Adds a result to a folder, in the place of one of the same entry and length."""
    kept = [one for one in read(folder) if (one["entry"], one["minutes"]) != (new["entry"], new["minutes"])]
    write_json(folder / RESULTS, [*kept, new])


def ours() -> list[dict[str, Any]]:
    """Our records; none outside of the repository."""
    return json.loads(OURS.read_text(encoding="utf-8"))["records"] if OURS.is_file() else []


def rows(results: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The cells of the table below HEAD, the best entry first."""
    return [row(one) for one in sorted(results, key=lambda one: one["bits_per_byte"])]


def row(one: dict[str, Any]) -> tuple[str, ...]:
    """One result's cells."""
    stopped = " (stopped by the time)" if one["stopped_by"] == "time" else ""
    return (
        one["entry"],
        f"{one['bits_per_byte']:.4f}",
        _half(one["interval"]),
        _half(one["over_seeds"]),
        str(len(one["seeds"])),
        f"{one['updates']:,}",
        f"{one['parameters'] / 1e6:.2f}M",
        f"{one['cpu_minutes']:.1f}",
        one["change"] + stopped,
    )


def _half(interval: Sequence[float] | None) -> str:
    return f"{(interval[1] - interval[0]) / 2:.4f}" if interval else ""
