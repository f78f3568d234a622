"""Stage 2: supervised fine-tuning on instructions (Ouyang et al. 2022, step 1; Wei et al. 2022)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from instructgpt.data.account import Account
from instructgpt.data.data_file import DataFile, Reading
from instructgpt.data.instructions import read_instructions
from instructgpt.data.packing import PackedStream, batches_of
from instructgpt.data.sources import Conversations, ExampleSource, Mixture, WorldInstructions
from instructgpt.data.tokens import Tokens
from instructgpt.data.windows import Long, all_windows
from instructgpt.errors import UserError
from instructgpt.objectives.lm import next_token_loss
from instructgpt.settings import FilePath, NonNegativeInt, Share, ShareBelow1
from instructgpt.stages.common import (
    LanguageStageConfig,
    Machine,
    build_model,
    fitting_row_length,
    language_validation,
    require,
    train,
)
from instructgpt.strict_json import write_json_lines
from instructgpt.text.chat import Message
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.checkpoint import load
from instructgpt.training.loop import FitResult


@dataclass(frozen=True)
class SFTConfig(LanguageStageConfig):
    """Trains a base model to answer: only the answers and their end token count in the loss."""

    data: tuple[FilePath, ...] = ()
    """Instruction files (Alpaca, chat, ShareGPT, self-instruct, tables), or `world` for the embedded world."""
    weights: tuple[float, ...] = ()
    """How often each of --data is drawn, relative to the others. By default all files together are one source, drawn by
    their sizes, and as often as `world` beside them."""
    long: Long = "windows"
    """What becomes of a conversation longer than the context: `windows` of whole turns, which teach every answer once
    and begin with the system message; `cut` keeps the first of these alone; `drop` leaves it out."""
    val_share: ShareBelow1 = 0.05
    """Share of each file's records that is validated on and never trained on (at most 500)."""
    val_examples: NonNegativeInt = 400
    """Examples of the embedded world validated on."""
    flawed_share: Share = 0.0
    """Share of the embedded world's demonstrations that are wrong, badly formatted or rambling, as real ones are."""
    reading: Reading = field(default_factory=Reading)


def run(config: SFTConfig) -> FitResult:
    """Tunes the model in --init and leaves a run directory."""
    require(config.data, "--data", "name the instruction files, or `world`")
    require(config.init, "--init", "name the run directory to start from")
    require(config.out, "--out", "name the run directory to write")
    if config.weights and len(config.weights) != len(config.data):
        raise UserError(f"--weights has {len(config.weights)} values for {len(config.data)} sources in --data")
    machine = Machine.of(config)
    model, tokenizer = load(config.init, machine.device, config.backend)
    model = build_model(config, machine, lambda: model)
    row_length = fitting_row_length(config, model.config)
    data = sources(config, tokenizer, row_length)
    validation = list(batches_of(data.held_out, row_length, config.rows))
    result = train(
        "sft",
        config,
        machine,
        model,
        tokenizer,
        PackedStream(data.training, row_length, config.rows),
        lambda batch: next_token_loss(model, batch, config.label_smoothing),
        language_validation(model, tokenizer, lambda: validation) if validation else None,
    )
    if data.held_out_records:  # so that `eval --data OUT/val.jsonl` scores what was not trained on
        write_json_lines(Path(config.out) / "val.jsonl", ({"messages": record} for record in data.held_out_records))
    return result


class Sources(NamedTuple):
    """The data of a run."""

    training: ExampleSource
    held_out: list[Tokens]
    """What is validated on, the embedded world's part included."""
    held_out_records: list[list[Message]]
    """The files' part of it, which goes into val.jsonl."""


def sources(config: SFTConfig, tokenizer: Tokenizer, context: int) -> Sources:
    """What to train on and what to hold out of --data."""
    parts: list[ExampleSource] = []
    records: list[list[Message]] = []
    held_out: list[Tokens] = []
    for group in groups(config):
        if not group:
            parts.append(WorldInstructions("train", tokenizer, config.seed, config.flawed_share, context))
            validation = WorldInstructions("val", tokenizer, config.seed, context=context)
            held_out += [window for i in range(config.val_examples) for window in validation.windows(i)]
            continue
        trained, validated = split(conversations(group, config), config.val_share)
        records += validated
        held_out += all_windows(validated, tokenizer, context, config.long)[0]
        examples, fitted = all_windows(trained, tokenizer, context, config.long)
        if told := fitted.report(context):
            print(f"  {told}", flush=True)
        parts.append(Conversations(examples, config.seed))
    weights = config.weights or [1.0] * len(parts)
    return Sources(parts[0] if len(parts) == 1 else Mixture(parts, weights, config.seed), held_out, records)


def groups(config: SFTConfig) -> list[list[DataFile]]:
    """--data as sources to mix: with --weights each file is one, without them all are; none stands for `world`."""
    files = config.reading.files(config.data)
    if config.weights:
        waiting = iter(files)
        return [[] if name == "world" else [next(waiting)] for name in config.data]
    return [*([files] if files else []), *([[]] if "world" in config.data else [])]


def conversations(files: list[DataFile], config: SFTConfig) -> list[list[Message]]:
    """What is usable of the files; prints what was read and dropped. Of exact duplicates the first is kept."""
    account = Account(files[0].path if len(files) == 1 else f"{len(files)} files")
    read = read_instructions(files, account, config.reading.strict)
    unique = {json.dumps(messages): messages for messages in read}
    print(account.report(), flush=True)
    duplicates = account.kept - len(unique)
    if duplicates:
        print(f"  {duplicates} exact duplicates of another conversation are left out", flush=True)
    return list(unique.values())


def split(records: list[list[Message]], share: float) -> tuple[list[list[Message]], list[list[Message]]]:
    """Every n-th record, at most 500, is held out; the same ones whatever the seed."""
    every = max(2, round(min(1 / share, len(records)))) if share else len(records) + 1
    held = set(range(every - 1, len(records), every)[:500])
    return [r for i, r in enumerate(records) if i not in held], [records[i] for i in sorted(held)]
