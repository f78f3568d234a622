"""Stage 1: a base model that continues text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from instructgpt.config import ModelConfig
from instructgpt.data.ahead import ahead_for
from instructgpt.data.batch import Batch
from instructgpt.data.corpus import Corpus, write_corpus
from instructgpt.data.packing import PackedStream, batches_of
from instructgpt.data.sources import CorpusWindows, ExampleSource, Mixture, WorldText
from instructgpt.errors import UserError
from instructgpt.flags import train_command
from instructgpt.model.transformer import Transformer
from instructgpt.objectives.lm import next_token_loss
from instructgpt.runtime import resolve_device
from instructgpt.settings import FilePath, PositiveInt, Share, ShareBelow1
from instructgpt.stages.common import (
    LanguageStageConfig,
    Machine,
    build_model,
    language_validation,
    new_backend,
    require,
    train,
)
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.checkpoint import load
from instructgpt.training.loop import FitResult

_HELD_OUT_SEED = 1_000_003


@dataclass(frozen=True)
class PretrainConfig(LanguageStageConfig):
    """Trains a model to predict the next token of raw text."""

    text: tuple[FilePath, ...] = ()
    """Text files (.txt, .json, .jsonl, .csv, .tsv, each also .gz), or `world` for the embedded world."""
    tokenizer: FilePath = ""
    """A directory with a tokenizer, ours or an imported one; --init brings its own."""
    holdout: ShareBelow1 = 0.1
    """Share at the end of each file that is validated on and never trained on."""
    encoding: str = "utf-8"
    """How the files are encoded."""
    separator: str = ""
    """A string that ends a document in a .txt file, such as <|endoftext|>."""
    text_field: str = ""
    """The field of records that holds the text, such as content or body.text, or a template: '{title}\\n\\n{body?}'. By
    default their `text`, or their list of `paragraphs`."""
    world_share: Share = 0.5
    """When `world` is named beside files: its share of the documents drawn."""
    val_rows: PositiveInt = 256
    """Most stretches of held-out text that are validated on, evenly spread."""
    model: ModelConfig = field(default_factory=ModelConfig)


def run(config: PretrainConfig) -> FitResult:
    """Trains a base model and leaves its run directory."""
    require(config.text, "--text", "name the files to train on, or `world`")
    require(config.out, "--out", "name the run directory to write")
    machine = Machine.of(config)
    model, tokenizer = start(config, machine)
    row_length = config.row_length or model.config.context
    source, held_out = sources(config, tokenizer, row_length)
    return train(
        "pretrain",
        config,
        machine,
        model,
        tokenizer,
        PackedStream(source, row_length, config.rows),
        lambda batch: next_token_loss(model, batch, config.label_smoothing),
        language_validation(model, tokenizer, partial(held_out, config.rows, config.val_rows)) if held_out else None,
    )


def start(config: PretrainConfig, machine: Machine) -> tuple[Transformer, Tokenizer]:
    """A new model for --tokenizer, or the one in --init to train on."""
    if config.init:
        model, tokenizer = load(config.init, machine.device, config.backend)
        if config.tokenizer and Tokenizer.load(config.tokenizer).fingerprint != tokenizer.fingerprint:
            raise UserError(f"is not the tokenizer of --init {config.init}; leave --tokenizer out", config.tokenizer)
        return build_model(config, machine, lambda: model), tokenizer
    require(
        config.tokenizer,
        "--tokenizer",
        f"name a directory that `{train_command('tokenizer')}` wrote, or start from --init",
    )
    tokenizer = Tokenizer.load(config.tokenizer)
    vocab_size = config.model.vocab_size or tokenizer.vocab_size
    if vocab_size < tokenizer.vocab_size:
        raise UserError(f"--vocab-size {vocab_size} is smaller than the tokenizer's {tokenizer.vocab_size} tokens")
    shape = replace(config.model, vocab_size=vocab_size)
    return build_model(config, machine, lambda: Transformer(shape, new_backend(config, machine))), tokenizer


Held = Callable[[int, int], Iterable[Batch]]


def sources(config: PretrainConfig, tokenizer: Tokenizer, row_length: int) -> tuple[ExampleSource, Held | None]:
    """What to train on, and a function (rows, most rows) that gives the validation batches."""
    parts: list[ExampleSource] = []
    held: list[Any] = []
    files = [Path(source) for source in config.text if source != "world"]
    if files:
        directory = Path(config.out) / "corpus"
        print(
            write_corpus(
                files, tokenizer, directory, config.holdout, config.encoding, config.separator, config.text_field
            ),
            flush=True,
        )
        parts.append(CorpusWindows([Corpus.open(directory, "train")], row_length, config.seed))
        if config.holdout:
            held.append(CorpusWindows([Corpus.open(directory, "val")], row_length, shuffle=False))
    if "world" in config.text:
        parts.append(ahead_for(WorldText(tokenizer, config.seed), resolve_device(config.device)))
        held.append(WorldText(tokenizer, config.seed + _HELD_OUT_SEED))
    weights = [1 - config.world_share, config.world_share]
    source = parts[0] if len(parts) == 1 else Mixture(parts, weights, config.seed)
    return source, partial(_held_out_batches, held, row_length) if held else None


def _held_out_batches(held: list[Any], row_length: int, rows: int, most: int) -> Iterable[Batch]:
    for source in held:
        size = len(source) if hasattr(source, "__len__") else most
        # Spread over all that is held out, rather than its beginning.
        chosen = range(0, size, -(-size // most))
        yield from batches_of((source[i] for i in chosen), row_length, rows)
