"""Rotated queries and keys, RMSNorm, SwiGLU, no biases (Touvron et al. 2023)."""

from __future__ import annotations

from instructgpt.config import ModelConfig
from instructgpt.course.race.entry import Entry
from instructgpt.training.loop import FitConfig

MODEL = ModelConfig(context=256, layers=4, width=128, heads=2, mlp="swiglu", norm="rmsnorm", position="rope")
FIT = FitConfig(optimizer="adamw", learning_rate=6e-3, schedule="wsd", cooldown=0.5, warmup_steps=50, weight_decay=0.01)


def entry() -> Entry:
    return Entry(change="RoPE, RMSNorm, SwiGLU, no biases", model=MODEL, fit=FIT, rows=6)
