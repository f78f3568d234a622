"""What an evaluation found, and its forms: JSON, a table, plain text, Markdown samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from instructgpt.evaluation.scores import Interval, macro_interval, mean_interval
from instructgpt.figures import shown, tidy
from instructgpt.generation.request import Finish
from instructgpt.text.chat import Message


@dataclass(frozen=True)
class Outcome:
    """One example, asked and scored."""

    family: str
    """The kind of task; for a file, its name."""
    messages: list[Message]
    """The prompt."""
    reference: str | None
    """The right answer; None where the data has none."""
    answer: str
    """What the model wrote."""
    score: float | None
    """In [0, 1]; None where nothing says what is right."""
    finish: Finish
    """How the answer ended."""
    read_as: str = ""
    """The number or the label that was read from the answer, where one is asked for."""
    prompt_is_cut: bool = False
    """Whether the prompt lost turns, or the front of its question, to fit in the context."""

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        if not self.read_as:
            del values["read_as"]
        return tidy(values)


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
        """The score of each family that has any, by name."""
        scores: dict[str, list[float]] = {}
        for outcome in self.outcomes:
            if outcome.score is not None:
                scores.setdefault(outcome.family, []).append(outcome.score)
        return {family: mean_interval(scores[family]) for family in sorted(scores)}

    @cached_property
    def macro(self) -> Interval:
        """The mean over families, each weighing alike. Raises ValueError when nothing is scored."""
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
    def cut_prompts(self) -> int:
        """Prompts that did not fit in the context whole."""
        return sum(outcome.prompt_is_cut for outcome in self.outcomes)

    @property
    def unscored(self) -> int:
        return sum(outcome.score is None for outcome in self.outcomes)

    def samples(self, per_family: int = 3) -> Iterator[Outcome]:
        """The first few of each family: not chosen by how good they are."""
        for family in sorted({outcome.family for outcome in self.outcomes}):
            yield from [outcome for outcome in self.outcomes if outcome.family == family][:per_family]

    def to_json(self, samples_per_family: int = 3) -> dict[str, Any]:
        """Everything but the outcomes, of which only samples."""
        macro = self.macro if self.families else None
        values = {
            "score": self.score_name,
            "macro_average": macro and macro.mean,
            "interval": macro and [macro.low, macro.high],
            "examples": len(self.outcomes),
            "unscored": self.unscored,
            "unfinished": self.unfinished,
            "cut_prompts": self.cut_prompts,
            "metrics": self.metrics,
            "families": {
                family: {"n": score.n, "score": score.mean, "interval": [score.low, score.high]}
                for family, score in self.families.items()
            },
            "samples": [sample.to_json() for sample in self.samples(samples_per_family)],
        }
        return tidy(values)

    def _rows(self) -> Iterator[tuple[str, str, str, str]]:
        """Name, examples, score and interval: of each family that is scored, then over all when there is more than
        one."""
        for family, score in self.families.items():
            yield family, str(score.n), f"{score.mean:.3f}", f"{score.low:.3f} to {score.high:.3f}"
        if len(self.families) > 1:
            macro = self.macro
            yield "macro average", str(macro.n), f"{macro.mean:.3f}", f"{macro.low:.3f} to {macro.high:.3f}"

    def notes(self) -> list[str]:
        """What else there is to say, a line each."""
        notes = [f"{name}: {value if isinstance(value, str) else shown(value)}" for name, value in self.metrics.items()]
        of_all = f"of {len(self.outcomes)}"
        if self.unfinished:
            notes.append(f"{self.unfinished} {of_all} answers were cut off: the model did not end them")
        if self.cut_prompts:
            notes.append(f"{self.cut_prompts} {of_all} prompts lost their front to fit in the context")
        if self.unscored:
            notes.append(f"{self.unscored} {of_all} answers have no score: nothing in the data says what is right")
        return notes

    def table(self, title: str = "") -> Table:
        """For a terminal, through rich; the notes stand below it."""
        # As Text, for a plain string could hold what rich takes for markup.
        table = Table(
            title=Text(title) if title else None, caption=Text("\n".join(self.notes())), caption_justify="left"
        )
        for header in ("family", "n", self.score_name, "95% interval"):
            table.add_column(header, justify="left" if header == "family" else "right")
        rows = list(self._rows())
        for place, row in enumerate(rows, start=1):
            table.add_row(*map(Text, row), end_section=place == len(rows) - 1)
        return table

    def plain(self) -> str:
        """The table and the notes as aligned text, for a log or a pipe."""
        if not self.families:
            return "\n".join(self.notes())
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
        for family, samples in groupby(self.samples(per_family), key=lambda outcome: outcome.family):
            score = f": {self.families[family].mean:.2f}" if family in self.families else ""
            sections += [f"## {family}{score}\n", *map(_markdown, samples)]
        return "\n".join(sections)


def _markdown(outcome: Outcome) -> str:
    turns = [(message["role"], message["content"]) for message in outcome.messages]
    turns.append((f"model{_verdict(outcome.score)}", outcome.answer))
    if outcome.score != 1 and outcome.reference is not None:
        turns.append(("reference", outcome.reference))
    return "".join(f"**{speaker}**\n\n{_quoted(text)}\n\n" for speaker, text in turns) + "---\n"


def _verdict(score: float | None) -> str:
    if score is None:
        return ""
    return " (right)" if score == 1 else " (wrong)" if score == 0 else f" (score {score:.2f})"


def _quoted(text: str) -> str:
    """As a code block, so that no text can pass for Markdown."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"
