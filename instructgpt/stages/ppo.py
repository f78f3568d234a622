"""Stage 5: proximal policy optimisation against a reward (Ouyang et al. 2022, step 3; Schulman et al. 2017).

    repeat:  ask → answer → score → advantages → a few epochs of clipped updates

Why is the KL negative, why does every answer look the same? objectives/policy.py answers both. What to watch:

    reward, true_reward   when they part, the reward is being exploited: a larger --kl-coefficient, or stop earlier
    kl                    nats of a whole answer from the model in --init
    clip_fraction         above 0.2 the learning rate is too high
    explained_variance    below 0 the value function does harm: let it learn faster, or more carefully
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from instructgpt.data.packing import PackedStream
from instructgpt.model.heads import ValueHead
from instructgpt.objectives.lm import Loss, next_token_loss
from instructgpt.objectives.policy import (
    PPOTerms,
    adapt_coefficient,
    deviations,
    explained_variance,
    generalized_advantages,
    ppo_loss,
    rewards_with_kl,
    whiten,
    with_pretraining,
)
from instructgpt.settings import FilePath, NonNegative, PositiveInt, Share
from instructgpt.stages import pretrain
from instructgpt.stages.common import Machine, train
from instructgpt.stages.policy import PolicyStageConfig, in_whole_rollouts, measure, require_even_split, start
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.loop import FitResult
from instructgpt.training.rollouts import (
    Rollout,
    RolloutStream,
    answer_tokens,
    by_answer,
    examine,
    split_evenly,
    with_metrics,
)


@dataclass(frozen=True)
class PPOConfig(PolicyStageConfig):
    """Raises the reward of the answers of the model in --init, kept near it by a KL penalty."""

    prompts: PositiveInt = 256
    """Prompts that are answered with the same weights."""
    answers: PositiveInt = 1
    """Answers to each of them."""
    minibatches: PositiveInt = 4
    """Equal parts of the answers; each is one step of training."""
    epochs: PositiveInt = 2
    """How often the answers are trained on before new ones are made."""
    normalise_reward: bool = True
    """Shift and scale rewards so that those of --init have mean 0 and variance 1: β then means the same for any reward,
    and the value function, which begins at 0, begins right on average."""
    kl_coefficient: NonNegative = 0.1
    """β: the reward for each token is lowered by β·(log π - log π_ref). More keeps closer to --init."""
    kl_target: NonNegative = 0.0
    """KL of a whole answer, in nats, to which β is driven (Ziegler et al. 2019); 0 leaves β as it is."""
    discount: Share = 1.0
    """γ of GAE: what a reward is worth a token earlier."""
    gae_decay: Share = 0.95
    """λ of GAE: 1 trusts the rewards that came, 0 the value function."""
    terms: PPOTerms = field(default_factory=PPOTerms)
    ptx: tuple[FilePath, ...] = ()
    """Raw text to mix in (PPO-ptx): files or `world`. Keeps what pretraining taught."""
    ptx_coefficient: NonNegative = 1.0
    """γ of PPO-ptx: weight of the text's loss beside the policy's."""
    ptx_rows: PositiveInt = 4
    """Rows of text in each step."""


def run(config: PPOConfig) -> FitResult:
    """Trains the model in --init by PPO and leaves a run directory."""
    require_even_split(config, config.minibatches)
    config = in_whole_rollouts(config, config.minibatches * config.epochs)
    machine = Machine.of(config)
    actors = start(config, machine)
    policy, reference = actors.policy, actors.reference
    value = ValueHead(policy.config.width).to(machine.device)
    kept: dict[str, Any] = {"kl_coefficient": config.kl_coefficient, "reward_mean": 0.0, "reward_std": 1.0}
    text = _pretraining_text(config, actors.tokenizer, actors.row_length) if config.ptx else None
    if text is not None:
        kept["text"] = text.state()

    def roll_out(number: int) -> list[Rollout]:
        # 1. "A new prompt is sampled from the dataset; the policy generates an output" (Ouyang et al. 2022, figure 2).
        answered = actors.answer(config, number)
        # 2. "The reward model calculates a reward for the output."
        scores = actors.score(config, answered)  # (answers,) float64, on the CPU
        # Mean 0 and variance 1 over what the reference answers, which the first rollout is (Ziegler et al. 2019, 2.1).
        if config.normalise_reward and number == 0:
            kept.update(reward_mean=float(scores.mean()), reward_std=float(deviations(scores).deviation) or 1.0)
        normalised = ((scores - kept["reward_mean"]) / kept["reward_std"]).float().to(machine.device)
        parts = []
        for part in split_evenly(range(len(answered)), config.minibatches, seed=number):
            # 3. What policy, frozen reference and value function make of each token, by the forward that is trained.
            seen = examine(policy, reference, [answered[i] for i in part], actors.row_length)
            here = seen.is_answer  # (A, L)
            values = by_answer(value(seen.hidden), here)
            # 4. The reward lands on the end token, the KL penalty on every token (equation 2).
            rewards = rewards_with_kl(normalised[part], seen.logprobs, seen.reference, here, kept["kl_coefficient"])
            # 5. How much better than expected each token was (Schulman et al. 2016), at one scale.
            advantages, returns = generalized_advantages(rewards, values, here, config.discount, config.gae_decay)
            advantages = whiten(advantages, here)
            parts.append(Rollout(seen.batch, here, seen.logprobs, seen.reference, advantages, values, returns))
        metrics = measure(answered, scores, [part.log_ratios for part in parts])
        metrics |= {"kl_coefficient": kept["kl_coefficient"], "explained_variance": _explained(parts)}
        # 6. The penalty's weight follows the KL that was measured (Ziegler et al. 2019).
        if config.kl_target:
            kept["kl_coefficient"] = adapt_coefficient(kept["kl_coefficient"], metrics["kl"], config.kl_target)
        parts = [replace(part, metrics=metrics) for part in parts] * config.epochs
        if text is not None:
            text.restore(kept["text"])
            parts = [replace(part, pretraining=next(text)) for part in parts]
            kept["text"] = text.state()
        return parts

    def loss(rollout: Rollout) -> Loss:
        # 7. Clipped surrogate, value loss and entropy (Schulman et al. 2017, eq. 9), on the answers' tokens alone.
        here, tokens = rollout.is_answer, answer_tokens(policy, rollout.batch)
        assert rollout.values is not None and rollout.returns is not None
        result = ppo_loss(
            tokens.logprobs, value(tokens.hidden), tokens.entropy, rollout.logprobs[here], rollout.values[here],
            rollout.advantages[here], rollout.returns[here], config.terms,
        )  # fmt: skip
        # 8. PPO-ptx: "mixing the pretraining gradients into the PPO gradients" (Ouyang et al. 2022, eq. 2).
        if rollout.pretraining is not None:
            result = with_pretraining(result, next_token_loss(policy, rollout.pretraining), config.ptx_coefficient)
        return with_metrics(result, rollout.metrics)

    return train(
        "ppo",
        config,
        machine,
        policy,
        actors.tokenizer,
        RolloutStream(roll_out, lambda: machine.precision.context(machine.device), kept),
        loss,
        lambda: actors.validate(config),
        held_out=actors.held_out_records,
        beside={f"value.{name}": parameter for name, parameter in value.named_parameters()},
        may_prefetch=False,
        sequences=config.prompts * config.answers // config.minibatches,
    )


def _explained(parts: list[Rollout]) -> float:
    values = [part.values[part.is_answer] for part in parts if part.values is not None]
    returns = [part.returns[part.is_answer] for part in parts if part.returns is not None]
    return explained_variance(torch.cat(values), torch.cat(returns))


def _pretraining_text(config: PPOConfig, tokenizer: Tokenizer, row_length: int) -> PackedStream:
    encoding = config.reading.encoding
    settings = pretrain.PretrainConfig(out=config.out, text=config.ptx, seed=config.seed, encoding=encoding)
    source, _ = pretrain.sources(settings, tokenizer, row_length)
    return PackedStream(source, row_length, config.ptx_rows)
