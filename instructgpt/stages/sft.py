"""Stage 2: supervised fine-tuning on instructions (Ouyang et al. 2022, step 1; Wei et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from instructgpt.data.account import Account
from instructgpt.data.ahead import ahead_for
from instructgpt.data.data_file import DataFile, Reading
from instructgpt.data.held_out import MOST_HELD, conversation_key, held_out_keys
from instructgpt.data.instructions import read_instructions
from instructgpt.data.packing import PackedStream, batches_of
from instructgpt.data.sources import Conversations, ExampleSource, WorldInstructions
from instructgpt.data.tokens import Tokens
from instructgpt.data.windows import Long, all_windows
from instructgpt.errors import UserError
from instructgpt.objectives.lm import next_token_loss
from instructgpt.runtime import resolve_device
from instructgpt.settings import FilePath, NonNegativeInt, Share, ShareBelow1
from instructgpt.stages.adapting import AdapterFlags, adapted, adapter_record
from instructgpt.stages.common import (
    LanguageStageConfig,
    Machine,
    build_model,
    fitting_row_length,
    language_validation,
    require,
    say_split,
    train,
)
from instructgpt.stages.mixture import groups, mixed, of_group, require_weights
from instructgpt.text.chat import Message
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.checkpoint import load_settled
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
    val_data: tuple[FilePath, ...] = ()
    """Files to validate on (at most 500 records, evenly spread), none of whose records is trained on; then all of
    --data is."""
    val_share: ShareBelow1 = 0.05
    """Without --val-data, the share of the files' records that is validated on (at most 500, evenly spread), and not
    trained on by any way."""
    val_examples: NonNegativeInt = 400
    """Examples of the embedded world validated on."""
    flawed_share: Share = 0.0
    """Share of the embedded world's demonstrations that are wrong, badly formatted or rambling, as real ones are."""
    adapter: AdapterFlags = field(default_factory=AdapterFlags)
    reading: Reading = field(default_factory=Reading)


def run(config: SFTConfig) -> FitResult:
    """Tunes the model in --init and leaves a run directory."""
    require(config.data, "--data", "name the instruction files, or `world`")
    require(config.init, "--init", "name the run directory to start from")
    require(config.out, "--out", "name the run directory to write")
    check(config)
    machine = Machine.of(config)
    initial, tokenizer = load_settled(config.init, machine.device, config.backend)
    model = build_model(config, machine, lambda: adapted(initial, adapter_record(config)))
    row_length = fitting_row_length(config, model.config)
    data = sources(config, tokenizer, row_length)
    validation = list(batches_of(data.held_out, row_length, config.rows))
    return train(
        "sft",
        config,
        machine,
        model,
        tokenizer,
        PackedStream(data.training, row_length, config.rows),
        lambda batch: next_token_loss(model, batch, config.label_smoothing),
        language_validation(model, tokenizer, lambda: validation) if validation else None,
        held_out=[{"messages": record} for record in data.held_out_records],
    )


def check(config: SFTConfig) -> None:
    """Raises UserError for what can be told to be wrong with --data from the first records of each file."""
    require_weights(config.data, config.weights)
    if "world" in config.val_data:
        raise UserError(
            "--val-data names files; where --data has `world`, --val-examples of it are validated on anyway"
        )
    for file in config.reading.files((*config.data, *config.val_data)):
        next(read_instructions([file]))


class Sources(NamedTuple):
    """The data of a run."""

    training: ExampleSource
    held_out: list[Tokens]
    """What is validated on, the embedded world's part included."""
    held_out_records: list[list[Message]]
    """The files' part of it, which goes into val.jsonl."""


def sources(config: SFTConfig, tokenizer: Tokenizer, context: int) -> Sources:
    """What to train on and what to hold out of --data; says how much of it that is."""
    files = config.reading.files(config.data)
    records = conversations(files, config)
    apart = conversations(config.reading.files(config.val_data), config)
    if apart:  # all of it is kept from training
        validated = [each for part in apart for each in part]
        held = set(map(conversation_key, validated))
        validated = validated[:: -(-len(validated) // MOST_HELD)]
        records = [[each for each in part if conversation_key(each) not in held] for part in records]
    else:
        held = held_out_keys((conversation_key(each) for part in records for each in part), config.val_share)
        validated = [each for part in records for each in part if conversation_key(each) in held]
    held_out = all_windows(validated, tokenizer, context, config.long)[0]
    has_world = "world" in config.data
    world_held: set[str] = set()
    if has_world:
        validation = WorldInstructions("val", tokenizer, config.seed, context=context)
        held_out += [window for i in range(config.val_examples) for window in validation.windows(i)]
        world_held = {conversation_key(validation.conversation(i)) for i in range(config.val_examples)}
    trained = [[each for each in part if conversation_key(each) not in held | world_held] for part in records]
    if files:
        read = sum(map(len, records)) + (len(validated) if apart else 0)
        say_split("conversations", config.out, read, sum(map(len, trained)), len(validated))
    parts: list[ExampleSource] = []
    for group in groups(config.data, config.weights):
        if group == ["world"]:
            source = WorldInstructions("train", tokenizer, config.seed, config.flawed_share, context, held)
            parts.append(ahead_for(source, resolve_device(config.device)))
            continue
        examples, fitted = all_windows(of_group(group, files, trained), tokenizer, context, config.long)
        if cost := fitted.report(context):
            print(f"  {cost}", flush=True)
        parts.append(Conversations(examples, config.seed))
    return Sources(mixed(parts, config.weights, config.seed), held_out, validated)


def conversations(files: list[DataFile], config: SFTConfig) -> list[list[list[Message]]]:
    """What is usable of each file; says what was read and dropped. Of exact duplicates the first is kept."""
    account = Account(files[0].path if len(files) == 1 else f"{len(files)} files")
    found = [list(read_instructions([file], account, config.reading.strict, unique=True)) for file in files]
    if files:
        print(account.report(), flush=True)
    return found
