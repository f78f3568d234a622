"""Recipes: for each size of model, the settings of every stage that were found to work together."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from instructgpt.config import MODEL_PRESETS, model_preset
from instructgpt.stages.pretrain import PretrainConfig
from instructgpt.stages.sft import SFTConfig
from instructgpt.stages.tokenizer import TokenizerConfig
from instructgpt.training.loop import FitConfig


@dataclass(frozen=True)
class Recipe:
    """Defaults of the stages for one preset."""

    tokenizer: TokenizerConfig
    pretrain: PretrainConfig
    sft: SFTConfig


# Small models learn about twice as much from the same few million tokens with Muon as with AdamW.
_MUON = FitConfig(optimizer="muon", muon_learning_rate=0.02, learning_rate=3e-3, weight_decay=0.01, schedule="wsd")


def _tiny() -> Recipe:
    """A laptop's CPU, minutes a stage: the limits in minutes hold on machines too slow for the steps."""
    fit = replace(_MUON, muon_iterations=3)  # in so small a batch they take a quarter of a step's time
    return Recipe(
        TokenizerConfig(vocab_size=2560),
        PretrainConfig(
            model=model_preset("tiny"),
            rows=6,
            fit=replace(fit, max_steps=1500, max_minutes=6.4, cooldown=0.2, eval_every=750),
        ),
        SFTConfig(rows=6, fit=replace(fit, max_steps=1500, max_minutes=6.0, cooldown=0.7, eval_every=750)),
    )


def _small() -> Recipe:
    """One GPU, minutes: the embedded world with a larger model, or a book."""
    fit = replace(_MUON, learning_rate=1e-3, warmup_steps=100)
    return Recipe(
        TokenizerConfig(preset="small", vocab_size=4096),
        PretrainConfig(
            preset="small", model=model_preset("small"), rows=32, fit=replace(fit, max_steps=2_000, eval_every=250)
        ),
        SFTConfig(preset="small", rows=32, fit=replace(fit, max_steps=3_000, cooldown=0.5, eval_every=500)),
    )


def _large(name: str, rows: int, micro_batches: int) -> Recipe:
    """One GPU, a day: half a million tokens an update, as GPT-3's smallest models (Brown et al. 2020, table 2.1)."""
    fit = FitConfig(
        max_steps=20_000, warmup_steps=700, eval_every=500, save_every=500, micro_batches=micro_batches,
        learning_rate=6e-4, final_learning_rate=0.1,
    )  # fmt: skip
    tuned = FitConfig(
        max_steps=2_000, warmup_steps=100, eval_every=200, save_every=500, learning_rate=2e-5, weight_decay=0.0
    )
    return Recipe(
        TokenizerConfig(preset=name, vocab_size=32_000),
        PretrainConfig(preset=name, model=model_preset(name), rows=rows, fit=fit),
        SFTConfig(preset=name, rows=rows, fit=tuned),
    )


_RECIPES = {
    "tiny": _tiny,
    "small": _small,
    "gpt2": lambda: _large("gpt2", rows=32, micro_batches=16),
    "gpt2-medium": lambda: _large("gpt2-medium", rows=16, micro_batches=32),
    "llama-124m": lambda: _large("llama-124m", rows=32, micro_batches=16),
    "llama-1b": lambda: _large("llama-1b", rows=8, micro_batches=32),
}
assert _RECIPES.keys() == MODEL_PRESETS.keys()


def recipe(name: str) -> Recipe:
    """The recipe of a preset; `auto` is `small` where there is a CUDA device, else `tiny`. Errors: UserError."""
    if name == "auto":
        name = "small" if torch.cuda.is_available() else "tiny"
    model_preset(name)
    return _RECIPES[name]()
