"""Small models bear larger rates: ten times that of GPT-3's smallest, at the end none."""

from __future__ import annotations

from instructgpt.config import ModelConfig
from instructgpt.course.race.entry import Entry
from instructgpt.training.loop import FitConfig

MODEL = ModelConfig(
    context=256, layers=4, width=128, heads=2, mlp="gelu", norm="layernorm", position="learned", bias=True
)  # fmt: skip
FIT = FitConfig(optimizer="adamw", learning_rate=6e-3, schedule="wsd", cooldown=0.5, warmup_steps=50, weight_decay=0.01)


def entry() -> Entry:
    return Entry(change="ten times the rate, which falls to 0", model=MODEL, fit=FIT, rows=6)
