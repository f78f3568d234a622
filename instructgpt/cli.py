"""The commands that use trained models: generate, chat, eval, ledger; and data, which downloads public sets."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from rich.console import Console

from instructgpt import world
from instructgpt.atomic import write_text
from instructgpt.data.account import Account
from instructgpt.data.corpus import read_split
from instructgpt.data.download import fetch, list_sets
from instructgpt.data.instructions import read_instructions
from instructgpt.data.packing import batches_of
from instructgpt.data.tokens import Tokens
from instructgpt.errors import UserError, suggestion
from instructgpt.evaluation.instructions import Metric, evaluate_conversations, evaluate_examples
from instructgpt.evaluation.loss import LossReport, evaluate_loss
from instructgpt.evaluation.report import Report
from instructgpt.flags import parse
from instructgpt.generation.engine import generate as generate_texts
from instructgpt.generation.engine import stream
from instructgpt.generation.sampling import SamplingConfig
from instructgpt.model.transformer import Transformer
from instructgpt.runtime import resolve_device, resolve_precision
from instructgpt.settings import NonNegativeInt, PositiveInt, Settings
from instructgpt.stages import assess
from instructgpt.stages.assess import LedgerConfig
from instructgpt.terminal import Chat, terminal_reader
from instructgpt.text.chat import Message, render_conversation, render_prompt
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.checkpoint import load
from instructgpt.world.composition import HELD_OUT_PAIRS


@dataclass(frozen=True)
class ModelChoice(Settings):
    """Which model, computed where."""

    model: str = ""
    """The run directory to use, such as runs/tiny/sft."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    dtype: str = "auto"
    """float32, bfloat16, float16, or auto: bfloat16 where the hardware multiplies it fast enough to pay."""
    backend: str = "auto"
    """naive, sdpa, triton (our kernels, on CUDA) or auto."""
    quantize: Literal["none", "int8", "int4"] = "none"
    """Bits of the blocks' weights: int8 costs next to no quality, int4 some; both make a token cheaper on a GPU."""

    def load(self, batched: bool) -> tuple[Transformer, Tokenizer, AbstractContextManager[Any]]:
        """The model, its tokenizer, and the context to compute in."""
        if not self.model:
            raise UserError("--model is missing: name a run directory, such as runs/tiny/sft")
        device = resolve_device(self.device)
        # For one token at a time on a CPU, casting the weights costs more than the faster products save.
        slow_to_cast = self.dtype == "auto" and device.type == "cpu" and not batched
        precision = resolve_precision("float32" if slow_to_cast else self.dtype, device)
        model, tokenizer = load(self.model, device, self.backend, "" if self.quantize == "none" else self.quantize)
        return model.to(precision.parameters), tokenizer, precision.context(device)


# ---- generate


@dataclass(frozen=True)
class GenerateConfig(ModelChoice):
    """Answers one prompt, given by --prompt or on standard input."""

    prompt: str | None = None
    """The prompt; without it standard input is read to its end."""
    system: str = ""
    """A system message before it."""
    raw: bool = False
    """Continue the prompt as it stands, as a base model does, instead of answering it."""
    n: PositiveInt = 1
    """Samples of the answer; more than one differ only with a --temperature above 0."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(max_new_tokens=256))


def generate(config: GenerateConfig) -> int:
    """Prints the answer as it is generated; several samples one below the other, numbered."""
    prompt = config.prompt if config.prompt is not None else _standard_input()
    if not prompt.strip():
        raise UserError("the prompt is empty; give --prompt TEXT, or a text on standard input")
    if config.raw and config.system:
        raise UserError("--system belongs to a conversation; --raw continues a text as it stands")
    model, tokenizer, precision = config.load(batched=False)
    messages: list[Message] = [{"role": "system", "content": config.system}] if config.system else []
    messages.append({"role": "user", "content": prompt})
    asked = prompt if config.raw else messages
    with precision:
        if config.n == 1:
            for piece in stream(model, tokenizer, asked, config.sampling, raw=config.raw):
                _write(piece)
            _write("\n")
            return 0
        options = vars(config.sampling)
        for i, text in enumerate(generate_texts(model, tokenizer, [asked], n=config.n, raw=config.raw, **options)):
            _write(f"[{i + 1}] {text}\n")
    return 0


def _standard_input() -> str:
    if sys.stdin.isatty():
        raise UserError("--prompt is missing: give --prompt TEXT, or a text on standard input")
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"byte {error.start} is no UTF-8; convert the text to UTF-8", "standard input") from None


def _write(text: str) -> None:
    print(text, end="", flush=True)


# ---- chat


@dataclass(frozen=True)
class ChatConfig(ModelChoice):
    """A conversation in the terminal; /help in it lists what can be typed."""

    system: str = ""
    """A system message to begin with; /system changes it."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(max_new_tokens=256))


def chat(config: ChatConfig) -> int:
    """Talks until /quit or the end of the input."""
    model, tokenizer, precision = config.load(batched=False)
    context = model.config.context
    room = min(config.sampling.max_new_tokens, context // 4)  # what an answer should at least be able to take

    def fits(messages: list[Message]) -> bool:
        return len(render_prompt(messages, tokenizer)) + room <= context

    conversation = Chat(
        lambda messages: stream(model, tokenizer, messages, config.sampling), fits, _write, config.system
    )
    if sys.stdin.isatty():
        _write(f"{config.model}: {context} tokens of context; /help lists the commands\n")
    else:
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    with precision:
        conversation.run(terminal_reader())
    return 0


# ---- eval


@dataclass(frozen=True)
class EvalConfig(ModelChoice):
    """Scores a model: generated answers on the embedded world or on files, and the loss on what it should have said."""

    data: tuple[str, ...] = ()
    """`world`, or instruction files in any format that `train.py sft` reads. Without --data and --text: `world`."""
    text: tuple[str, ...] = ()
    """Raw text files: loss, perplexity and bits per byte on all of each."""
    split: Literal["train", "val", "test", "test_phrasing", "test_composition"] = "test"
    """Which split of the world; files are taken whole."""
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
    columns: str = ""
    """Names of a table's columns, comma-separated, where the file has no header."""
    prompt: str = ""
    """Makes a prompt of a record's fields, such as "Translate to French: {en}"."""
    answer: str = ""
    """Makes the right answer of a record's fields, such as "{fr}"."""
    encoding: str = "utf-8"
    """How the files are encoded."""
    max_new_tokens: NonNegativeInt = 0
    """Longest answer; 0 gives room for the longest right one and a quarter more."""
    batch_size: PositiveInt = 64
    """Answers generated at a time."""
    json: str = ""
    """A file to write all scores to, as JSON."""
    samples: str = ""
    """A file to write the first answers of each family to, as Markdown."""


def evaluate(config: EvalConfig) -> int:
    """Prints a table for each data set, and writes --json and --samples."""
    model, tokenizer, precision = config.load(batched=True)
    names = config.data or (() if config.text else ("world",))
    conversations = {name: _conversations(name, config) for name in names if name != "world"}
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


def _conversations(name: str, config: EvalConfig) -> list[list[Message]]:
    """A file's conversations; says what was read and dropped."""
    account = Account(name)
    columns = config.columns.split(",") if config.columns else None
    found = read_instructions(
        [name], columns, config.encoding, config.prompt or None, config.answer or None, account=account
    )
    conversations = list(islice(found, config.limit or None))
    print(account.report(), flush=True)
    return conversations


def _text_loss(name: str, config: EvalConfig, model: Transformer, tokenizer: Tokenizer) -> LossReport:
    context = model.config.context

    def stretches():
        for text in read_split(Path(name), "train", holdout=0.0, encoding=config.encoding):
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


# ---- data


@dataclass(frozen=True)
class DataConfig:
    """`data list` shows the public data sets that are known; `data get NAME --out DIR` downloads one."""

    out: str = ""
    """The directory to put the files in; by default data/NAME."""


def data(argv: Sequence[str]) -> int:
    """Lists the named sets with their licences, or downloads one."""
    action, *rest = argv or ["list"]
    prog = "instructgpt data"
    if action in ("-h", "--help"):
        parse(DataConfig, argv, prog)
    if action == "list":
        parse(DataConfig, rest, f"{prog} list")
        for public_set in list_sets():
            size = f"{public_set.size / 1e6:,.1f} MB"
            print(f"{public_set.name:<24} {size:>10}  {public_set.about}; licence: {public_set.licence}")
        return 0
    if action != "get":
        raise UserError(f"{prog} knows list and get, not {action!r}{suggestion(action, ('list', 'get'))}")
    if not rest or rest[0].startswith("-"):
        raise UserError(f"{prog} get needs the name of a set{suggestion('', [each.name for each in list_sets()])}")
    name, *flags = rest
    config = parse(DataConfig, flags, f"{prog} get")
    fetch(name, config.out or Path("data") / name)
    return 0


# ---- ledger


def ledger(config: LedgerConfig) -> int:
    """Measures run directories, a row a stage."""
    assess.run(config)
    return 0


# ---- which command


class Command(NamedTuple):
    """One word after `instructgpt`."""

    run: Callable[[Sequence[str]], int]
    purpose: str


def _with(config_class: type[Any], run: Callable[[Any], int], name: str) -> Callable[[Sequence[str]], int]:
    return lambda argv: run(parse(config_class, argv, f"instructgpt {name}"))


COMMANDS = {
    "generate": Command(_with(GenerateConfig, generate, "generate"), "answer one prompt"),
    "chat": Command(_with(ChatConfig, chat, "chat"), "talk with a model in the terminal"),
    "eval": Command(_with(EvalConfig, evaluate, "eval"), "score a model on the embedded world or on files"),
    "ledger": Command(_with(LedgerConfig, ledger, "ledger"), "compare stages: true reward, reward model, KL, cost"),
    "data": Command(data, "list or download public data sets"),
}


def run_command(argv: Sequence[str]) -> int:
    """`COMMAND [flags]` to an exit code; without a command it lists them. Errors: UserError."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m instructgpt COMMAND [flags]; COMMAND --help lists its flags\n")
        print("\n".join(f"  {name:<9} {command.purpose}" for name, command in COMMANDS.items()))
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        raise UserError(f"there is no command {name!r}{suggestion(name, COMMANDS)}")
    return COMMANDS[name].run(rest)
