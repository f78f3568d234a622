"""`instructgpt chat`: talks in the terminal."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass, field

from instructgpt.commands.common import ModelChoice, write
from instructgpt.generation.engine import stream
from instructgpt.generation.sampling import SamplingConfig
from instructgpt.terminal import Chat, terminal_reader
from instructgpt.text.chat import Message, as_typed, render_prompt


@dataclass(frozen=True)
class ChatConfig(ModelChoice):
    """A conversation in the terminal; /help in it lists what can be typed."""

    system: str = ""
    """A system message to begin with; /system changes it."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(max_new_tokens=256))


def chat(config: ChatConfig) -> int:
    """Talks until /quit or the end of the input."""
    model, tokenizer, precision = config.load()
    context = model.config.context
    room = min(config.sampling.max_new_tokens, context // 4)  # what an answer should at least be able to take

    def fits(messages: list[Message]) -> bool:
        return len(render_prompt(messages, tokenizer)) + room <= context

    conversation = Chat(
        lambda messages: stream(model, tokenizer, messages, config.sampling), fits, write, as_typed(config.system)
    )
    if sys.stdin.isatty():
        write(f"{config.model}: {context} tokens of context; /help lists the commands\n")
    elif isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="replace")  # Windows writes a byte order mark in front
    with precision:
        conversation.run(terminal_reader())
    return 0
