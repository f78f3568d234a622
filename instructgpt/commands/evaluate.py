"""`instructgpt eval`: scores a model on the embedded world or on files."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from instructgpt import world
from instructgpt.atomic import write_text
from instructgpt.commands.common import ModelChoice
from instructgpt.data.account import Account
from instructgpt.data.corpus import read_split
from instructgpt.data.data_file import DataFile, Reading
from instructgpt.data.instructions import read_instructions
from instructgpt.data.packing import batches_of
from instructgpt.data.tokens import Tokens
from instructgpt.errors import UserError
from instructgpt.evaluation.instructions import Metric, evaluate_conversations, evaluate_examples
from instructgpt.evaluation.loss import LossReport, evaluate_loss
from instructgpt.evaluation.report import Report
from instructgpt.model.transformer import Transformer
from instructgpt.settings import FilePath, NonNegativeInt, PositiveInt
from instructgpt.text.chat import Message, render_conversation
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
    """For files: labels (accuracy, macro-F1), translation (BLEU, chrF), exact, or auto, which looks at the answers."""
    max_new_tokens: NonNegativeInt = 0
    """Longest answer; 0 gives room for the longest right one and a quarter more."""
    batch_size: PositiveInt = 64
    """Answers generated at a time."""
    json: FilePath = ""
    """A file to write all scores to, as JSON."""
    samples: FilePath = ""
    """A file to write the first answers of each family to, as Markdown."""
    reading: Reading = field(default_factory=Reading)


def evaluate(config: EvalConfig) -> int:
    """Prints a table for each data set, and writes --json and --samples."""
    model, tokenizer, precision = config.load(batched=True)
    names = config.data or (() if config.text else ("world",))
    conversations = {file.path: _conversations(file, config) for file in config.reading.files(names)}
    results: dict[str, Any] = {}
    samples = []
    with precision:
        for name in names:
            report, loss = _score(name, conversations.get(name), config, model, tokenizer)
            title = f"{name}, {config.split}" if name == "world" else name
            _show(report, title)
            print(_loss_line(loss, "the right answers"), flush=True)
            results[title] = {**report.to_json(), "loss": loss.to_json()}
            samples.append(f"# {title}\n\n{report.samples_markdown()}")
        for name in config.text:
            loss = _text_loss(name, config, model, tokenizer)
            print(f"{name}: {_loss_line(loss, 'the text')}", flush=True)
            results[name] = {"loss": loss.to_json()}
    if config.json:
        values = {"model": config.model, "results": results}
        write_text(Path(config.json), json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    if config.samples:
        write_text(Path(config.samples), "\n".join(samples))
    return 0


def _score(
    name: str, conversations: list[list[Message]] | None, config: EvalConfig, model: Transformer, tokenizer: Tokenizer
) -> tuple[Report, LossReport]:
    options = dict(batch_size=config.batch_size, max_new_tokens=config.max_new_tokens)
    if conversations is None:
        examples = _world_examples(config)
        right: list[Any] = [example.conversation for example in examples]
        report = evaluate_examples(model, tokenizer, examples, **options)
    else:
        right = conversations
        report = evaluate_conversations(model, tokenizer, right, config.metric, Path(name).name, **options)
    context = model.config.context
    documents = [Tokens.of(render_conversation(messages, tokenizer)) for messages in right]
    fitting = [document for document in documents if len(document) <= context + 1]
    if not fitting:
        raise UserError(f"no conversation fits in the model's context of {context} tokens", name)
    return report, evaluate_loss(model, tokenizer, batches_of(fitting, context, 16))


def _world_examples(config: EvalConfig) -> list[world.Example]:
    asked = config.families or (HELD_OUT_PAIRS if config.split == "test_composition" else world.FAMILIES)
    return world.sample(config.split, config.n * len(asked), config.seed, config.families or None)


def _conversations(file: DataFile, config: EvalConfig) -> list[list[Message]]:
    """A file's conversations; says what was read and dropped."""
    account = Account(file.path)
    found = read_instructions([file], account, config.reading.strict)
    conversations = list(islice(found, config.limit or None))
    print(account.report(), flush=True)
    return conversations


def _text_loss(name: str, config: EvalConfig, model: Transformer, tokenizer: Tokenizer) -> LossReport:
    context = model.config.context

    def stretches():
        for text in read_split(Path(name), "train", holdout=0.0, encoding=config.reading.encoding):
            ids = [tokenizer.bos, *tokenizer.encode(text)]
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
        f"loss on {of} {loss.loss:.4f} nats/token, perplexity {loss.perplexity:.4g}, "
        f"{loss.bits_per_byte:.4f} bits/byte, token accuracy {loss.token_accuracy:.4f}, {loss.tokens:,} tokens"
    )
