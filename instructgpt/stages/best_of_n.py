"""Stage 5, without a gradient of the reward: rejection sampling, then fine-tuning on what was kept.

    answer each prompt n times → score → keep the best → train on it as if a person had written it

Nakano et al. 2021 (section 3) and Touvron et al. 2023 (section 3.2.3) do it. It needs nothing of reinforcement learning
and is the yardstick for it: the best of n is at most ln n - (n-1)/n nats from the policy (Beirami et al. 2024).
What was kept lies in best.jsonl, to be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from instructgpt.data.packing import PackedStream
from instructgpt.data.sources import Conversations
from instructgpt.errors import UserError
from instructgpt.objectives.lm import next_token_loss
from instructgpt.objectives.policy import best_of
from instructgpt.settings import PositiveInt
from instructgpt.stages.common import Machine, train
from instructgpt.stages.policy import PolicyStageConfig, start
from instructgpt.strict_json import write_json_lines
from instructgpt.training.loop import FitResult
from instructgpt.training.rollouts import Answered, as_tokens


@dataclass(frozen=True)
class BestOfNConfig(PolicyStageConfig):
    """Fine-tunes the model in --init on the best of its own answers."""

    prompts: PositiveInt = 1000
    """Prompts that are answered; one answer to each is kept at most."""
    answers: PositiveInt = 8
    """n: answers to each prompt, of which the best is kept."""
    min_reward: float = float("-inf")
    """Keep the best answer only if its reward is at least this much."""
    rows: PositiveInt = 6
    """Rows of a batch, each of --row-length tokens."""


def run(config: BestOfNConfig) -> FitResult:
    """Samples, selects, trains, and leaves a run directory."""
    if config.answers < 2:
        raise UserError(f"--answers {config.answers}: the best of one answer is no choice; give 2 or more")
    machine = Machine.of(config)
    actors = start(config, machine)

    # 1. Sample n answers to each prompt from the model in --init.
    with machine.precision.context(machine.device), torch.inference_mode():
        answered = actors.answer(config, number=0)
        # 2. Score them all.
        scores = actors.score(config, answered)
    # 3. Keep the best of each prompt, unless it never ended: the model would learn to go on for ever.
    best = [int(i) for i in best_of(scores, config.answers)]
    kept = [i for i in best if answered[i].ended and scores[i] >= config.min_reward]
    if not kept:
        raise UserError(
            f"no answer is worth keeping: of {len(best)} best ones, {sum(answered[i].ended for i in best)} ended and "
            f"none of these has a reward of --min-reward {config.min_reward} or more; lower it, or raise --answers"
        )
    mean, best_mean = float(scores.mean()), float(scores[kept].mean())
    found = f"{len(kept)} answers kept for {len(best)} prompts, reward {mean:.3f} -> {best_mean:.3f}"
    print(f"best of {config.answers}: {found}", flush=True)
    # 4. Train on them: the prompt is given, the answer and its end are learnt.
    source = Conversations([as_tokens(answered[i]) for i in kept], config.seed)
    result = train(
        "best_of_n",
        config,
        machine,
        actors.policy,
        actors.tokenizer,
        PackedStream(source, actors.row_length, config.rows),
        lambda batch: next_token_loss(actors.policy, batch),
        lambda: actors.validate(config),
        held_out=actors.held_out_records,
    )
    _write(Path(config.out) / "best.jsonl", [answered[i] for i in kept], [float(scores[i]) for i in kept])
    return result


def _write(path: Path, kept: Sequence[Answered], scores: Sequence[float]) -> None:
    lines = [
        {"messages": [*query.messages, {"role": "assistant", "content": answer.text}], "reward": score}
        for (query, answer), score in zip(kept, scores)
    ]
    write_json_lines(path, lines)
