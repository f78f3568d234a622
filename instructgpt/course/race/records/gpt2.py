"""The start: a GPT-2 of four blocks (Radford et al. 2019), trained with AdamW at the rate that GPT-3 took."""

from __future__ import annotations

from instructgpt.config import ModelConfig
from instructgpt.course.race.entry import Entry
from instructgpt.training.loop import FitConfig

MODEL = ModelConfig(
    context=256, layers=4, width=128, heads=2, mlp="gelu", norm="layernorm", position="learned", bias=True
)  # fmt: skip
FIT = FitConfig(optimizer="adamw", learning_rate=6e-4, schedule="cosine", final_learning_rate=0.1, warmup_steps=20)


def entry() -> Entry:
    return Entry(change="GPT-2 with AdamW at 6e-4", model=MODEL, fit=FIT, rows=6)
