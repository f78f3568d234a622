"""Where a reward model stops being right: its score and the true reward over KL (Gao et al. 2023).

The best of n is the cleanest way to lean on a reward model: n answers of the SFT model, the one with the highest score.
As n grows, score and KL grow for certain; the true reward grows only while the reward model is right about what the SFT
model says. The trained policies' own ways stand beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from instructgpt.data.queries import WorldQueries
from instructgpt.evaluation.overoptimisation import Point, best_of_n_curve, trajectory, write_overoptimisation
from instructgpt.runtime import resolve_device, resolve_precision
from instructgpt.settings import PositiveInt, Settings
from instructgpt.stages.policy import ModelReward
from instructgpt.training.checkpoint import RunDirectory, load, load_reward_model
from instructgpt.training.metrics import read_metrics
from instructgpt.training.rewards import WorldReward
from instructgpt.training.rollouts import sample_answers


@dataclass(frozen=True)
class OverOptimisation(Settings):
    """What to draw."""

    out: str
    """The directory for overoptimisation.png and .json."""
    sft: str
    """The run whose answers are chosen from."""
    reward: str
    """The run of the reward model that chooses."""
    policies: tuple[str, ...]
    """Runs trained on it, whose metrics.jsonl tells their way."""
    prompts: PositiveInt = 96
    """Held-out prompts of the world."""
    answers: PositiveInt = 32
    """Answers to each, of which the best of 1, 2, 4, … is taken."""
    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"


def run(config: OverOptimisation) -> None:
    """Samples, scores, draws; prints for each curve whether its two rewards part."""
    device = resolve_device(config.device)
    model, tokenizer = load(config.sft, device, config.backend)
    reward_model, _ = load_reward_model(config.reward, device, config.backend)
    source = WorldQueries("test", tokenizer)
    queries = [source[i] for i in range(config.prompts)]
    with resolve_precision(config.dtype, device).context(device):
        answered = sample_answers(model, tokenizer, queries, config.answers, max_new_tokens=48, seed=0)
        asked, answers = [query for query, _ in answered], [answer for _, answer in answered]
        shape = (config.prompts, config.answers)
        scores = np.array(ModelReward(config.reward, reward_model)(asked, answers)).reshape(shape)
        truth = np.array(WorldReward()(asked, answers)).reshape(shape)
    curves: dict[str, Sequence[Point]] = {"best of n": best_of_n_curve(scores, truth, config.answers)}
    for policy in map(Path, config.policies):
        if points := trajectory(read_metrics(RunDirectory(policy).metrics_file)):
            curves[policy.name] = points
    for title, verdict in write_overoptimisation(curves, config.out).items():
        print(f"{title}: {verdict}", flush=True)
