"""`instructgpt generate`: answers one prompt."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from instructgpt.commands.common import ModelChoice, write
from instructgpt.errors import UserError
from instructgpt.generation.engine import generate_ids, prompt_ids, stream
from instructgpt.generation.sampling import SamplingConfig
from instructgpt.settings import PositiveInt
from instructgpt.text.chat import Message, as_typed


@dataclass(frozen=True)
class GenerateConfig(ModelChoice):
    """Answers one prompt, given by --prompt or on standard input."""

    prompt: str | None = None
    """The prompt; without it standard input is read to its end. White space around it is dropped, unless --raw."""
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
    model, tokenizer, precision = config.load()
    messages: list[Message] = []
    if system := as_typed(config.system):
        messages.append({"role": "system", "content": system})
    messages.append({"role": "user", "content": as_typed(prompt)})
    asked = prompt if config.raw else messages
    with precision:
        if config.n == 1:
            for piece in stream(model, tokenizer, asked, config.sampling, raw=config.raw):
                write(piece)
            write("\n")
            return 0
        ids = prompt_ids(asked, tokenizer, config.raw)
        for i, done in enumerate(generate_ids(model, tokenizer, [ids], config.sampling, n=config.n, raw=config.raw)):
            write(f"[{i + 1}] {done.text}\n")
    return 0


def _standard_input() -> str:
    if sys.stdin.isatty():
        raise UserError("--prompt is missing: give --prompt TEXT, or a text on standard input")
    data = sys.stdin.buffer.read()
    try:
        # Windows writes a byte order mark in front, and its own line end behind.
        return data.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UserError(f"byte {error.start} is no UTF-8; convert the text to UTF-8", "standard input") from None
