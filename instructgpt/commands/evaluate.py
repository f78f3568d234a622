"""`instructgpt eval`: scores a model on the embedded world or on files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from instructgpt import world
from instructgpt.atomic import require_writable, write_text
from instructgpt.commands.common import ModelChoice
from instructgpt.data.account import Account
from instructgpt.data.corpus import read_split
from instructgpt.data.data_file import DataFile, Reading
from instructgpt.data.packing import batches_of
from instructgpt.data.queries import read_questions
from instructgpt.data.tokens import Tokens
from instructgpt.data.windows import all_windows
from instructgpt.errors import UserError
from instructgpt.evaluation.instructions import Exam, Metric, file_exam, world_exam
from instructgpt.evaluation.loss import LossReport, evaluate_loss
from instructgpt.evaluation.predictions import Predictions
from instructgpt.evaluation.report import Outcome, Report
from instructgpt.figures import shown, write_json
from instructgpt.model.transformer import Transformer
from instructgpt.settings import FilePath, NonNegativeInt, PositiveInt
from instructgpt.text.chat import Message
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.world.composition import HELD_OUT_PAIRS


@dataclass(frozen=True)
class EvalConfig(ModelChoice):
    """Scores a model: generated answers on the embedded world or on files, and the loss on what it should have said."""

    data: tuple[FilePath, ...] = ()
    """`world`, or instruction files in any format that `sft` trains on. Without --data and --text: `world`."""
    text: tuple[FilePath, ...] = ()
    """Raw text files: loss, perplexity and bits per byte on all of each."""
    split: world.Split = "test"
    """Which split of the world: `test_phrasing` are wordings never trained on, `test_composition` pairs of tasks never
    chained, `test_noise` the tests as people type; files are taken whole."""
    n: PositiveInt = 20
    """Examples of each family of the world."""
    families: tuple[str, ...] = ()
    """Families of the world to ask; all by default."""
    seed: NonNegativeInt = 0
    """Which examples of the world."""
    limit: NonNegativeInt = 0
    """Most conversations of each file, the first ones; 0 takes all."""
    metric: Metric = "auto"
    """For files: labels (accuracy, macro-F1), number (is the last number the right answer's), translation (BLEU, chrF),
    exact, or auto, which looks at the answers."""
    labels: tuple[str, ...] = ()
    """Which words count as which label: positive=good,great negative=bad. An answer's label is the first it names."""
    max_new_tokens: NonNegativeInt = 0
    """Longest answer; 0 gives room for the longest right one and a quarter more."""
    batch_size: PositiveInt = 64
    """Answers generated at a time."""
    json: FilePath = ""
    """A file to write all scores to, as JSON."""
    predictions: FilePath = ""
    """A file to write every answer to as soon as it is made, with its prompt, the right answer and the score: JSON
    lines."""
    samples: FilePath = ""
    """A file to write the first answers of each family to, as Markdown."""
    reading: Reading = field(default_factory=Reading)


def evaluate(config: EvalConfig) -> int:
    """Prints a table for each data set; answers, scores and samples are written as soon as they are there.

    All that can be wrong is found out before anything is generated, and what does not fit is said. An error or an
    interruption keeps what was answered until then, and its scores.
    """
    model, tokenizer, precision = config.load()
    names = config.data or (() if config.text else ("world",))
    _require_uses(config, names)
    files = {file.path: file for file in config.reading.files(names)}
    sets = [_set(name, files.get(name), config, model, tokenizer) for name in names]
    results = _Results(config)
    with precision, Predictions(config.predictions) as predictions:
        for one in sets:
            _ask(one, config, model, tokenizer, results, predictions)
        for name in config.text:
            loss = _text_loss(name, config, model, tokenizer)
            print(f"{name}: {_loss_line(loss, 'the text')}", flush=True)
            results.add(name, {"loss": loss.to_json()})
    return 0


_FOR = {
    "the embedded world": ("split", "n", "families", "seed"),
    "files in --data": ("limit", "metric", "labels", "reading"),
    "--data": ("max_new_tokens", "batch_size", "predictions", "samples"),
}
"""Which fields say something of which part of what is measured."""


def _require_uses(config: EvalConfig, names: Sequence[str]) -> None:
    """Raises UserError for a flag that says something of what is not measured: it would be ignored."""
    measured = {
        "the embedded world": "world" in names,
        "files in --data": any(name != "world" for name in names),
        "--data": bool(names),
    }
    defaults = EvalConfig(model=config.model)
    for what, flags in _FOR.items():
        for name in flags:
            if not measured[what] and getattr(config, name) != getattr(defaults, name):
                flag = "--" + name.replace("_", "-") if name != "reading" else "a flag on how files are read"
                raise UserError(f"{flag} says something of {what}, and there is none here: leave it out")


class _Set(NamedTuple):
    """One of --data, ready to be asked."""

    title: str
    exam: Exam
    conversations: list[list[Message]]
    """With the right answers, where there are any."""


class _Results:
    """--json and --samples, written anew after each set."""

    def __init__(self, config: EvalConfig):
        """Raises UserError, before anything is generated, where they cannot be written."""
        self._config, self._values, self._samples = config, {}, []
        for path in filter(None, (config.json, config.samples)):
            require_writable(Path(path))

    def add(self, title: str, values: dict[str, Any], samples: str = "") -> None:
        self._values[title] = values
        self._samples += [samples] if samples else []
        self._write()

    def _write(self) -> None:
        if self._config.json:
            write_json(self._config.json, {"model": self._config.model, "results": self._values})
        if self._config.samples:
            write_text(Path(self._config.samples), "\n".join(self._samples))


def _set(name: str, file: DataFile | None, config: EvalConfig, model: Transformer, tokenizer: Tokenizer) -> _Set:
    """Reads a set and makes its prompts ready; says what does not fit."""
    context = model.config.context
    if file is None:
        title = f"world, {config.split}"
        examples = _world_examples(config)
        conversations: list[Any] = [example.conversation for example in examples]
        exam = world_exam(examples, tokenizer, context, config.max_new_tokens)
    else:
        title, conversations = name, _conversations(file, config)
        exam = file_exam(
            conversations, tokenizer, context, config.metric, Path(name).name, config.max_new_tokens, config.labels
        )
    for note in exam.notes():
        print(f"  {title}: {note}", flush=True)
    return _Set(title, exam, conversations)


def _ask(
    one: _Set,
    config: EvalConfig,
    model: Transformer,
    tokenizer: Tokenizer,
    results: _Results,
    predictions: Predictions,
) -> None:
    """Answers a set, and shows and keeps what came of it, all or some."""
    values: dict[str, Any] = {}
    loss = _answer_loss(one, model, tokenizer)
    if loss is not None:
        values["loss"] = loss.to_json()
        print(f"{one.title}: {_loss_line(loss, 'the right answers')}", flush=True)
    found: dict[int, Outcome] = {}
    try:
        for place, outcome in one.exam.outcomes(model, tokenizer, config.batch_size):
            found[place] = outcome
            predictions.add(one.title, place, outcome)
    finally:
        is_whole = len(found) == len(one.exam.questions)
        if not is_whole:
            values["unanswered"] = len(one.exam.questions) - len(found)
        if found:
            title = one.title if is_whole else f"{one.title} (stopped after {len(found)} of {len(one.exam.questions)})"
            report = one.exam.report([found[place] for place in sorted(found)])
            _show(report, title)
            values = {**report.to_json(), **values}
            results.add(one.title, values, f"# {title}\n\n{report.samples_markdown()}")
        elif values:
            results.add(one.title, values)


def _answer_loss(one: _Set, model: Transformer, tokenizer: Tokenizer) -> LossReport | None:
    """The loss on every answer of the conversations, long ones in windows as in training; None where there is none."""
    context = model.config.context
    documents, fitted = all_windows(one.conversations, tokenizer, context)
    if told := fitted.report(context):
        print(f"  {one.title}: for the loss, {told}", flush=True)
    return evaluate_loss(model, tokenizer, batches_of(documents, context, 16)) if documents else None


def _world_examples(config: EvalConfig) -> list[world.Example]:
    asked = config.families or (HELD_OUT_PAIRS if config.split == "test_composition" else world.FAMILIES)
    return world.sample(config.split, config.n * len(asked), config.seed, config.families or None)


def _conversations(file: DataFile, config: EvalConfig) -> list[list[Message]]:
    """A file's conversations; says what was read and dropped."""
    account = Account(file.path)
    found = read_questions(file, account, config.reading.strict)
    conversations = list(islice(found, config.limit or None))
    print(account.report(), flush=True)
    return conversations


def _text_loss(name: str, config: EvalConfig, model: Transformer, tokenizer: Tokenizer) -> LossReport:
    context = model.config.context

    def stretches():
        for text in read_split(Path(name), "train", holdout=0.0, encoding=config.reading.encoding):
            ids = [*tokenizer.document_start, *tokenizer.encode(text)]
            # Neighbours overlap by one token, so that every token but the first is predicted once.
            for start in range(0, len(ids) - 1, context):
                yield Tokens.of_text(np.array(ids[start : start + context + 1], dtype=np.int32))

    return evaluate_loss(model, tokenizer, batches_of(stretches(), context, 16))


def _show(report: Report, title: str) -> None:
    if sys.stdout.isatty():
        Console().print(report.table(title))
    else:
        print(f"{title}\n{report.plain()}", flush=True)


def _loss_line(loss: LossReport, of: str) -> str:
    return (
        f"loss on {of} {loss.loss:.4f} nats/token, perplexity {shown(loss.perplexity)}, "
        f"{loss.bits_per_byte:.4f} bits/byte, token accuracy {loss.token_accuracy:.4f}, {loss.tokens:,} tokens"
    )
