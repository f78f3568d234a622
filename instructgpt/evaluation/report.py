"""What an evaluation found, and its forms: JSON, a table, plain text, Markdown samples."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from instructgpt.atomic import write_text
from instructgpt.evaluation.scores import Interval, macro_interval, mean_interval
from instructgpt.generation.engine import Finish
from instructgpt.text.chat import Message


@dataclass(frozen=True)
class Outcome:
    """One example, asked and scored."""

    family: str
    """The kind of task; for a file, its name."""
    messages: list[Message]
    """The prompt."""
    reference: str
    answer: str
    """What the model wrote; "" when the prompt did not fit in its context."""
    score: float
    """In [0, 1]."""
    finish: Finish | None
    """How the answer ended; None when there is none because the prompt did not fit."""


@dataclass(frozen=True)
class Report:
    """Scores of generated answers, by family and over all, with 95% intervals."""

    outcomes: list[Outcome]
    """Every example, in the order given; there is at least one."""
    score_name: str = "exact match"
    metrics: dict[str, float | str] = field(default_factory=dict)
    """What else was measured, over all examples."""

    @cached_property
    def families(self) -> dict[str, Interval]:
        """The score of each family, by name."""
        scores: dict[str, list[float]] = {}
        for outcome in self.outcomes:
            scores.setdefault(outcome.family, []).append(outcome.score)
        return {family: mean_interval(scores[family]) for family in sorted(scores)}

    @cached_property
    def macro(self) -> Interval:
        """The mean over families, each weighing alike."""
        return macro_interval(list(self.families.values()))

    @property
    def macro_average(self) -> float:
        return self.macro.mean

    @property
    def half_width(self) -> float:
        return self.macro.half_width

    @property
    def unfinished(self) -> int:
        """Answers that were cut off, not ended by the model."""
        return sum(outcome.finish in ("length", "context") for outcome in self.outcomes)

    @property
    def too_long(self) -> int:
        """Prompts that do not fit in the context; they count as answered wrong."""
        return sum(outcome.finish is None for outcome in self.outcomes)

    def samples(self, per_family: int = 3) -> Iterator[Outcome]:
        """The first few of each family: not chosen by how good they are."""
        for family in self.families:
            yield from [outcome for outcome in self.outcomes if outcome.family == family][:per_family]

    def to_json(self, samples_per_family: int = 3) -> dict[str, Any]:
        """Everything but the outcomes, of which only samples."""
        return {
            "score": self.score_name,
            "macro_average": self.macro.mean,
            "interval": [self.macro.low, self.macro.high],
            "examples": len(self.outcomes),
            "unfinished": self.unfinished,
            "too_long": self.too_long,
            "metrics": self.metrics,
            "families": {
                family: {"n": score.n, "score": score.mean, "interval": [score.low, score.high]}
                for family, score in self.families.items()
            },
            "samples": [
                {
                    "family": sample.family,
                    "messages": sample.messages,
                    "reference": sample.reference,
                    "answer": sample.answer,
                    "score": sample.score,
                }
                for sample in self.samples(samples_per_family)
            ],
        }

    def write(self, path: str | Path) -> None:
        """`to_json` into a file. UserError when it cannot be written; what was there is kept then."""
        write_text(Path(path), json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n")

    def _rows(self) -> Iterator[tuple[str, str, str, str]]:
        """Name, examples, score and interval: of each family, then over all when there is more than one."""
        for family, score in self.families.items():
            yield family, str(score.n), f"{score.mean:.3f}", f"{score.low:.3f} to {score.high:.3f}"
        if len(self.families) > 1:
            macro = self.macro
            yield "macro average", str(macro.n), f"{macro.mean:.3f}", f"{macro.low:.3f} to {macro.high:.3f}"

    def notes(self) -> list[str]:
        """What else there is to say, a line each."""
        notes = [
            f"{name}: {value if isinstance(value, str) else f'{value:.4g}'}" for name, value in self.metrics.items()
        ]
        of_all = f"of {len(self.outcomes)}"
        if self.unfinished:
            notes.append(f"{self.unfinished} {of_all} answers were cut off: the model did not end them")
        if self.too_long:
            notes.append(f"{self.too_long} {of_all} prompts do not fit in the context; they count as wrong")
        return notes

    def table(self, title: str = "") -> Table:
        """For a terminal, through rich; the notes stand below it."""
        # As Text, for a plain string could hold what rich takes for markup.
        table = Table(
            title=Text(title) if title else None, caption=Text("\n".join(self.notes())), caption_justify="left"
        )
        for header in ("family", "n", self.score_name, "95% interval"):
            table.add_column(header, justify="left" if header == "family" else "right")
        *rows, last = self._rows()
        for row in rows:
            table.add_row(*map(Text, row))
        if rows:
            table.add_section()
        table.add_row(*map(Text, last))
        return table

    def plain(self) -> str:
        """The table and the notes as aligned text, for a log or a pipe."""
        rows = [("family", "n", self.score_name, "95% interval"), *self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
            for row in rows
        ]
        return "\n".join([*lines, *self.notes()])

    def samples_markdown(self, per_family: int = 3) -> str:
        """The first few examples of each family with the model's answers, to be read."""
        sections = []
        for family, score in self.families.items():
            sections.append(f"## {family}: {score.mean:.2f}\n")
            sections += [_markdown(outcome) for outcome in self.samples(per_family) if outcome.family == family]
        return "\n".join(sections)


def _markdown(outcome: Outcome) -> str:
    turns = [(message["role"], message["content"]) for message in outcome.messages]
    verdict = "right" if outcome.score == 1 else "wrong" if outcome.score == 0 else f"score {outcome.score:.2f}"
    turns.append((f"model ({verdict})", outcome.answer))
    if outcome.score < 1:
        turns.append(("reference", outcome.reference))
    return "".join(f"**{speaker}**\n\n{_quoted(text)}\n\n" for speaker, text in turns) + "---\n"


def _quoted(text: str) -> str:
    """As a code block, so that no text can pass for Markdown."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"
