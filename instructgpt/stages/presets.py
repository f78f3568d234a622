"""Recipes: for each size of model, the settings of every stage that were found to work together."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from instructgpt.config import MODEL_PRESETS, ModelConfig, model_preset
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


def _tiny() -> Recipe:
    """A laptop's CPU: minutes a stage. Muon learns twice as much as AdamW from the same few million tokens."""
    muon = dict(optimizer="muon", muon_learning_rate=0.02, learning_rate=3e-3, weight_decay=0.01, schedule="wsd")
    return Recipe(
        TokenizerConfig(vocab_size=2048),
        PretrainConfig(
            model=MODEL_PRESETS["tiny"], rows=8, fit=FitConfig(max_steps=500, cooldown=0.3, eval_every=250, **muon)
        ),
        SFTConfig(rows=8, fit=FitConfig(max_steps=1500, cooldown=0.5, eval_every=500, **muon)),
    )


def _large(name: str, rows: int, micro_batches: int) -> Recipe:
    """One GPU: half a million tokens an update, as GPT-3's smallest models (Brown et al. 2020, table 2.1)."""
    model: ModelConfig = model_preset(name)
    adamw = dict(learning_rate=6e-4, weight_decay=0.1, final_learning_rate=0.1)
    fit = FitConfig(
        max_steps=20_000, warmup_steps=700, eval_every=500, save_every=500, micro_batches=micro_batches, **adamw
    )
    tuned = FitConfig(
        max_steps=2_000, warmup_steps=100, eval_every=200, save_every=500, learning_rate=2e-5, weight_decay=0.0
    )
    return Recipe(
        TokenizerConfig(preset=name, vocab_size=32_000),
        PretrainConfig(preset=name, model=model, rows=rows, fit=fit),
        SFTConfig(preset=name, rows=rows, fit=tuned),
    )


def _small() -> Recipe:
    """One GPU, minutes: the embedded world with a larger model, or a book."""
    muon = dict(optimizer="muon", muon_learning_rate=0.02, learning_rate=1e-3, weight_decay=0.01, schedule="wsd")
    return Recipe(
        TokenizerConfig(preset="small", vocab_size=4096),
        PretrainConfig(
            preset="small", model=MODEL_PRESETS["small"], rows=32,
            fit=FitConfig(max_steps=2_000, warmup_steps=100, eval_every=250, **muon),
        ),
        SFTConfig(
            preset="small", rows=32,
            fit=FitConfig(max_steps=3_000, warmup_steps=100, cooldown=0.5, eval_every=500, **muon),
        ),
    )  # fmt: skip


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
