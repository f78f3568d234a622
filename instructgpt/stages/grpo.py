"""Stage 5: group relative policy optimisation (Shao et al. 2024, algorithm 1): PPO without a value function.

    repeat:  ask → answer each prompt G times → score → compare within the group → a few clipped updates

An answer is as good as it is better than the other answers to the same prompt; all its tokens share that advantage. A
prompt whose answers all score the same teaches nothing: `groups_that_agree` says how many do, and when it nears 1 there
is nothing left to learn from these prompts. The KL is a term of the loss and not of the reward.
`--no-normalise --length constant` is "Dr. GRPO" (Liu et al. 2025).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from instructgpt.errors import UserError
from instructgpt.objectives.lm import Loss
from instructgpt.objectives.policy import GRPOTerms, group_advantages, grpo_loss
from instructgpt.settings import PositiveInt
from instructgpt.stages.common import Machine, train
from instructgpt.stages.policy import PolicyStageConfig, in_whole_rollouts, measure, require_even_split, start
from instructgpt.training.loop import FitResult
from instructgpt.training.rollouts import (
    Rollout,
    RolloutStream,
    answer_tokens,
    examine,
    split_evenly,
    with_metrics,
)


@dataclass(frozen=True)
class GRPOConfig(PolicyStageConfig):
    """Raises the reward of the answers of the model in --init by comparing answers to the same prompt."""

    prompts: PositiveInt = 32
    """Prompts that are answered with the same weights."""
    answers: PositiveInt = 8
    """G, the size of a group: answers to each prompt."""
    minibatches: PositiveInt = 4
    """Equal parts of the answers; each is one step of training."""
    epochs: PositiveInt = 1
    """μ: how often the answers are trained on before new ones are made."""
    terms: GRPOTerms = field(default_factory=GRPOTerms)


def run(config: GRPOConfig) -> FitResult:
    """Trains the model in --init by GRPO and leaves a run directory."""
    if config.answers < 2:
        raise UserError(f"--answers {config.answers}: an answer is compared with others to its prompt; give 2 or more")
    require_even_split(config, config.minibatches)
    config = in_whole_rollouts(config, config.minibatches * config.epochs)
    machine = Machine.of(config)
    actors = start(config, machine)
    policy, reference = actors.policy, actors.reference

    def roll_out(number: int) -> list[Rollout]:
        # 1. "Sample a batch of questions; sample G outputs for each from the old policy" (algorithm 1, lines 5 to 7).
        answered = actors.answer(config, number)
        # 2. "Compute rewards by running the reward model" (line 8).
        scores = actors.score(config, answered)  # (prompts · G,) float64, on the CPU
        # 3. "Compute Â through group relative advantage estimation" (line 9).
        advantages = group_advantages(scores, config.answers, config.terms.normalise)  # (prompts · G,)
        # A prompt whose answers all score the same has no gradient: it is left out (Yu et al. 2025, section 3.2).
        differ = (advantages.view(-1, config.answers) != 0).any(1).repeat_interleave(config.answers)
        useful = differ.nonzero()[:, 0].tolist()
        if len(useful) < config.minibatches:
            useful = range(len(answered))
        parts = []
        for part in split_evenly(useful, config.minibatches, seed=number):
            # 4. What old policy and frozen reference make of each token, by the forward that is trained.
            seen = examine(policy, reference, [answered[i] for i in part], actors.row_length)
            # An answer's advantage is that of each of its tokens (section 4.1.2).
            spread = advantages[part].float().to(machine.device)[:, None] * seen.is_answer  # (A, L)
            parts.append(Rollout(seen.batch, seen.is_answer, seen.logprobs, seen.reference, spread))
        metrics = measure(answered, scores, [part.log_ratios for part in parts])  # the KL is of the useful ones
        metrics["groups_that_agree"] = float(1 - differ.float().mean())
        return [replace(part, metrics=metrics) for part in parts] * config.epochs

    def loss(rollout: Rollout) -> Loss:
        # 5. "Update the policy by maximising the GRPO objective" (line 11, equation 3).
        here, tokens = rollout.is_answer, answer_tokens(policy, rollout.batch)
        result = grpo_loss(
            tokens.logprobs, tokens.entropy, rollout.logprobs[here], rollout.reference[here],
            rollout.advantages[here], rollout.answers, config.max_new_tokens, config.terms,
        )  # fmt: skip
        return with_metrics(result, rollout.metrics)

    return train(
        "grpo",
        config,
        machine,
        policy,
        actors.tokenizer,
        RolloutStream(roll_out, lambda: machine.precision.context(machine.device)),
        loss,
        lambda: actors.validate(config),
        held_out=actors.held_out_records,
        may_prefetch=False,
        sequences=config.prompts * config.answers // config.minibatches,
    )
