"""Muon for the matrices (Jordan et al. 2024), three iterations of it; queries and keys are normalised."""

from __future__ import annotations

from instructgpt.config import ModelConfig
from instructgpt.course.race.entry import Entry
from instructgpt.training.loop import FitConfig

MODEL = ModelConfig(context=256, layers=4, width=128, heads=2, qk_norm=True)
FIT = FitConfig(
    optimizer="muon", muon_learning_rate=0.01, muon_iterations=3, learning_rate=6e-3, weight_decay=0.01,
    schedule="wsd", cooldown=0.5, warmup_steps=20,
)  # fmt: skip


def entry() -> Entry:
    return Entry(change="Muon, normalised queries and keys", model=MODEL, fit=FIT, rows=6)
