"""Stage 2: supervised fine-tuning on instructions (Ouyang et al. 2022, step 1; Wei et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from instructgpt.data.account import Account
from instructgpt.data.instructions import read_instructions
from instructgpt.data.packing import PackedStream, batches_of, truncate
from instructgpt.data.sources import Conversations, ExampleSource, Mixture, WorldInstructions
from instructgpt.data.tokens import Tokens
from instructgpt.errors import UserError
from instructgpt.objectives.lm import next_token_loss
from instructgpt.stages.common import Machine, StageConfig, build_model, require, train
from instructgpt.text.chat import render_conversation
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.checkpoint import load
from instructgpt.training.loop import FitResult


@dataclass(frozen=True)
class SFTConfig(StageConfig):
    """Trains a base model to answer: only the answers and their end token count in the loss."""

    data: tuple[str, ...] = ()
    """Instruction files (Alpaca, chat, ShareGPT, self-instruct, tables), or `world` for the embedded world."""
    weights: tuple[float, ...] = ()
    """How often each of --data is drawn, relative to the others; by default each file by its size."""
    columns: str = ""
    """Names of a table's columns, comma-separated, where the file has no header."""
    prompt: str = ""
    """Makes a prompt of a record's fields, such as "Translate to French: {en}"."""
    answer: str = ""
    """Makes the answer of a record's fields, such as "{fr}"."""
    encoding: str = "utf-8"
    """How the files are encoded."""
    val_share: float = 0.05
    """Share of each file's records that is validated on and never trained on (at most 500)."""
    val_examples: int = 400
    """Examples of the embedded world validated on."""


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
    row_length = config.row_length or model.config.context
    if row_length > model.config.context:
        raise UserError(f"--row-length {row_length} is longer than the context of --init, {model.config.context}")
    source, held_out = sources(config, tokenizer, row_length)
    validation = list(batches_of(held_out, row_length, config.rows))
    return train(
        "sft",
        config,
        machine,
        model,
        tokenizer,
        PackedStream(source, row_length, config.rows),
        lambda batch: next_token_loss(model, batch, config.label_smoothing),
        lambda: validation,
    )


def sources(config: SFTConfig, tokenizer: Tokenizer, context: int) -> tuple[ExampleSource, Iterable[Tokens]]:
    """What to train on, and the examples held out."""
    parts: list[ExampleSource] = []
    sizes: list[float] = []
    held_out: list[Tokens] = []
    for name in config.data:
        if name == "world":
            parts.append(WorldInstructions("train", tokenizer, config.seed))
            sizes.append(1.0)
            validation = WorldInstructions("val", tokenizer, config.seed)
            held_out += [validation[i] for i in range(config.val_examples)]
            continue
        examples = tokenized(name, config, tokenizer, context)
        every = max(2, round(1 / config.val_share)) if config.val_share else len(examples) + 1
        held_out += examples[::every][:500]
        kept = [e for i, e in enumerate(examples) if i % every or i // every >= 500]
        if not kept:
            raise UserError(f"has {len(examples)} usable record(s), too few to hold any out for validation", name)
        parts.append(Conversations(kept, config.seed))
        sizes.append(float(len(kept)))
    weights = list(config.weights) or [s / sum(sizes) for s in sizes]
    return (parts[0] if len(parts) == 1 else Mixture(parts, weights, config.seed)), held_out


def tokenized(name: str, config: SFTConfig, tokenizer: Tokenizer, context: int) -> list[Tokens]:
    """A file's conversations as tokens, cut to the context; prints what was read, dropped and cut."""
    account = Account(name)
    examples: list[Tokens] = []
    cut_prompts = cut_answers = 0
    columns = config.columns.split(",") if config.columns else None
    for messages in read_instructions(
        [Path(name)], columns, config.encoding, config.prompt or None, config.answer or None, account
    ):
        kept, from_prompt, from_answer = truncate(Tokens.of(render_conversation(messages, tokenizer)), context)
        cut_prompts += from_prompt > 0
        cut_answers += from_answer > 0
        examples.append(kept)
    print(account.report(), flush=True)
    if cut_prompts or cut_answers:
        print(
            f"  of {len(examples)} conversations, {cut_prompts} lost the front of their prompt and {cut_answers} the "
            f"tail of their answer to fit in {context} tokens",
            flush=True,
        )
    return examples
