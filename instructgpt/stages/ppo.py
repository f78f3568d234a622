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
    explained_variance,
    generalized_advantages,
    ppo_loss,
    rewards_with_kl,
    whiten,
    with_pretraining,
)
from instructgpt.stages import pretrain
from instructgpt.stages.common import Machine, train
from instructgpt.stages.policy import PolicyStageConfig, in_whole_rollouts, measure, require_even_split, start
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.loop import FitResult
from instructgpt.training.rollouts import (
    Rollout,
    RolloutStream,
    answer_mask,
    answer_tokens,
    by_answer,
    pack,
    split_evenly,
    with_metrics,
)


@dataclass(frozen=True)
class PPOConfig(PolicyStageConfig):
    """Raises the reward of the answers of the model in --init, kept near it by a KL penalty."""

    prompts: int = 256
    """Prompts that are answered with the same weights."""
    answers: int = 1
    """Answers to each of them."""
    minibatches: int = 4
    """Equal parts of the answers; each is one step of training."""
    epochs: int = 2
    """How often the answers are trained on before new ones are made."""
    kl_coefficient: float = 0.05
    """β: the reward for each token is lowered by β·(log π - log π_ref). More keeps closer to --init."""
    kl_target: float = 0.0
    """KL of a whole answer, in nats, to which β is driven (Ziegler et al. 2019); 0 leaves β as it is."""
    discount: float = 1.0
    """γ of GAE: what a reward is worth a token earlier."""
    gae_decay: float = 0.95
    """λ of GAE: 1 trusts the rewards that came, 0 the value function."""
    terms: PPOTerms = field(default_factory=PPOTerms)
    ptx: tuple[str, ...] = ()
    """Raw text to mix in (PPO-ptx): files or `world`. Keeps what pretraining taught."""
    ptx_coefficient: float = 1.0
    """γ of PPO-ptx: weight of the text's loss beside the policy's."""
    ptx_rows: int = 4
    """Rows of text in each step."""


def run(config: PPOConfig) -> FitResult:
    """Trains the model in --init by PPO and leaves a run directory."""
    require_even_split(config, config.minibatches, config.epochs)
    config = in_whole_rollouts(config, config.minibatches * config.epochs)
    machine = Machine.of(config)
    actors = start(config, machine)
    policy, reference = actors.policy, actors.reference
    value = ValueHead(policy.config.width).to(machine.device)
    kept: dict[str, Any] = {"kl_coefficient": config.kl_coefficient}
    text = _pretraining_text(config, actors.tokenizer, actors.row_length) if config.ptx else None
    if text is not None:
        kept["text"] = text.state()

    def roll_out(number: int) -> list[Rollout]:
        # 1. "A new prompt is sampled from the dataset; the policy generates an output" (Ouyang et al. 2022, figure 2).
        answered = actors.answer(config, number)
        # 2. "The reward model calculates a reward for the output."
        scores = actors.score(config, answered)
        parts, log_ratios, entropies = [], [], []
        for part in split_evenly(range(len(answered)), config.minibatches, seed=number):
            # 3. What policy, value function and frozen reference make of each token, by the forward that is trained.
            chosen = [answered[i] for i in part]
            batch, is_answer = (
                pack(chosen, actors.row_length).to(machine.device),
                answer_mask(chosen).to(machine.device),
            )
            own = answer_tokens(policy, batch)
            logprobs = by_answer(own.logprobs, is_answer)  # (A, L)
            reference_logprobs = by_answer(answer_tokens(reference, batch).logprobs, is_answer)
            values = by_answer(value(own.hidden), is_answer)
            # 4. The reward lands on the end token, the KL penalty on every token (equation 2).
            rewards = rewards_with_kl(
                scores[part].to(machine.device), logprobs, reference_logprobs, is_answer, kept["kl_coefficient"]
            )
            # 5. How much better than expected each token was (Schulman et al. 2016), at one scale.
            advantages, returns = generalized_advantages(rewards, values, is_answer, config.discount, config.gae_decay)
            parts.append(
                Rollout(
                    batch, is_answer, logprobs, reference_logprobs, whiten(advantages, is_answer), values, returns,
                )
            )  # fmt: skip
            log_ratios.append((logprobs - reference_logprobs).sum(1))
            entropies.append(own.entropy)
        # 6. The penalty's weight follows the KL that was measured (Ziegler et al. 2019).
        metrics = measure(answered, scores, torch.cat(log_ratios)[:, None])
        metrics["entropy_at_sampling"] = float(torch.cat(entropies).mean())
        metrics["kl_coefficient"] = kept["kl_coefficient"]
        metrics["explained_variance"] = explained_variance(
            torch.cat([p.values[p.is_answer] for p in parts]), torch.cat([p.returns[p.is_answer] for p in parts])
        )
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
        here = rollout.is_answer
        tokens = answer_tokens(policy, rollout.batch)
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
        beside={f"value.{name}": parameter for name, parameter in value.named_parameters()},
        may_prefetch=False,
    )


def _pretraining_text(config: PPOConfig, tokenizer: Tokenizer, row_length: int) -> PackedStream:
    settings = pretrain.PretrainConfig(out=config.out, text=config.ptx, seed=config.seed, encoding=config.encoding)
    source, _ = pretrain.sources(settings, tokenizer, row_length)
    return PackedStream(source, row_length, config.ptx_rows)
