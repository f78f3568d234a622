"""`instructgpt look`: a page that shows what a model does inside on one prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from instructgpt import atomic
from instructgpt.commands.common import ModelChoice, write
from instructgpt.errors import UserError
from instructgpt.inside.page import page
from instructgpt.inside.survey import survey
from instructgpt.settings import FilePath, PositiveInt
from instructgpt.text.chat import as_typed


@dataclass(frozen=True)
class LookConfig(ModelChoice):
    """Looks into a model on one prompt, and writes a page that shows it: attention, the logit lens, what each token of
    the answer rests on, what becomes of it without a head or a neuron. The page needs nothing but a browser."""

    prompt: str = ""
    """The prompt; white space around it is dropped, unless --raw."""
    pair: str | None = None
    """Another prompt of as many tokens, with another answer: then the page shows, too, where it is decided which."""
    out: FilePath = "page.html"
    """The page to write."""
    raw: bool = False
    """Continue the prompt as it stands, as a base model does, instead of answering it."""
    answer_tokens: PositiveInt = 16
    """Most tokens of the answer that are looked at."""
    dtype: Literal["float32"] = "float32"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Small effects are lost in the rounding of other formats."""
    backend: str = "sdpa"
    """naive or sdpa; triton's kernels take parts of the model together that are looked at one by one here."""


def look(config: LookConfig) -> int:
    """Writes the page, and says how large it is."""
    out = Path(config.out)
    prompt = config.prompt if config.raw else as_typed(config.prompt)
    pair = config.pair if config.raw or config.pair is None else as_typed(config.pair)
    if not prompt.strip():
        raise UserError("--prompt is missing: give a text that the model is to answer")
    if config.backend not in ("naive", "sdpa"):
        raise UserError(f"--backend {config.backend}: look takes naive or sdpa")
    atomic.require_writable(out)
    model, tokenizer, precision = config.load()
    with precision:
        found = survey(
            model, tokenizer, prompt, pair, config.raw, config.answer_tokens, lambda what: write(f"  {what}\n")
        )
    html = page(found, Path(config.model).resolve().name, prompt, pair)
    atomic.write_text(out, html)
    write(f"answer: {found.answer}\nwrote {out} ({len(html.encode()) / 1e6:.1f} MB): open it in a browser\n")
    return 0
