"""Stage 4, without reinforcement learning: direct preference optimisation (Rafailov et al. 2023) and its relatives.

DPO fits the policy to compared answers as a reward model would be fitted, with beta·log π/π_ref as the reward. What to
watch, on every line of metrics.jsonl: `margin` and `accuracy` should grow; `chosen_logprob` and `rejected_logprob`
usually both fall, and objectives/preference.py says why and when that matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from instructgpt.data.comparisons import ComparisonBatch, ComparisonStream
from instructgpt.model.transformer import Transformer
from instructgpt.objectives.lm import Loss
from instructgpt.objectives.preference import (
    PreferenceLoss,
    answer_logprobs,
    dpo_loss,
    ipo_loss,
    orpo_loss,
    plus_chosen_loss,
    simpo_loss,
)
from instructgpt.settings import NonNegative, Positive, Range
from instructgpt.stages.adapting import adapted, adapter_record
from instructgpt.stages.common import Machine, build_model, fitting_row_length, require, train
from instructgpt.stages.comparisons import ComparisonConfig, comparisons, validation
from instructgpt.training.checkpoint import load_settled
from instructgpt.training.loop import FitResult
from instructgpt.training.rollouts import frozen_copy


@dataclass(frozen=True)
class DPOConfig(ComparisonConfig):
    """Tunes a policy on compared answers, without a reward model and without sampling."""

    loss: PreferenceLoss = "dpo"
    """dpo; ipo (a target for the margin); simpo (no reference, mean per token); orpo (no reference, SFT in it)."""
    beta: Positive = 0.1
    """How dear it is to leave the reference model: lower lets the policy go further. For simpo, the reward's scale."""
    label_noise: Annotated[float, Range(0, 0.5, without_most=True)] = 0.0
    """dpo: share of comparisons taken to be the wrong way round (conservative DPO)."""
    chosen_weight: NonNegative = 0.0
    """Weight of the loss of SFT on the chosen answers beside the one that --loss names; holds those up (RPO)."""
    length_normalised: bool = False
    """dpo and ipo: divide an answer's log-probabilities by its tokens, so that length earns nothing (Tülu 3)."""
    target_margin: NonNegative = 0.5
    """simpo: by how much the better answer is to win (γ)."""
    ratio_weight: NonNegative = 0.1
    """orpo: weight of the odds ratio beside the loss of SFT (λ)."""


def run(config: DPOConfig) -> FitResult:
    """Tunes the model in --init and leaves a run directory."""
    require(config.data, "--data", "name the preference files, or `world`")
    require(config.init, "--init", "name the run directory to start from, an instruction-tuned model at best")
    require(config.out, "--out", "name the run directory to write")
    machine = Machine.of(config)

    # Section 4, "DPO outline": 1. the policy begins as π_SFT; 2. the reference is π_SFT, and stays it.
    initial, tokenizer = load_settled(config.init, machine.device, config.backend)
    policy = build_model(config, machine, lambda: adapted(initial, adapter_record(config)))
    reference = frozen_copy(policy) if config.loss in ("dpo", "ipo") else None
    context = fitting_row_length(config, policy.config)
    source, held_out = comparisons(config, tokenizer, context)

    # 3. Minimise the loss on the comparisons: equation 7, or another one.
    def loss(batch: ComparisonBatch) -> Loss:
        policy.eval()  # dropout would tell the two models apart where they are the same
        logprobs = answer_logprobs(policy, batch)
        found = preference_loss(config, batch, logprobs, reference)
        return plus_chosen_loss(found, logprobs, batch.lengths, batch.pairs, config.chosen_weight)

    batches = held_out.batches(context, config.prompts)
    stream = ComparisonStream(source, context, config.prompts)
    validate = validation(loss, batches, machine.device)
    result = train(
        "dpo", config, machine, policy, tokenizer, stream, loss, validate, sequences=2 * config.prompts,
        held_out=held_out.records,
    )  # fmt: skip
    if result.metrics.get("val_chosen_shift", 0.0) < 0:
        print(_why_both_fall(result.metrics), flush=True)
    return result


def preference_loss(config: DPOConfig, batch: ComparisonBatch, logprobs: Tensor, reference: Transformer | None) -> Loss:
    """The loss that --loss names, of the policy's log-probabilities (S,).

    The reference's are computed with each batch and kept nowhere: a forward pass is a quarter of a step, and endless
    data repeat no pair for which keeping them would pay.
    """
    if reference is None:
        if config.loss == "simpo":
            return simpo_loss(logprobs, batch.lengths, batch.pairs, config.beta, config.target_margin)
        return orpo_loss(logprobs, batch.lengths, batch.pairs, config.ratio_weight)
    with torch.no_grad():
        reference_logprobs = answer_logprobs(reference, batch)
    if config.length_normalised:
        logprobs, reference_logprobs = logprobs / batch.lengths, reference_logprobs / batch.lengths
    if config.loss == "ipo":
        return ipo_loss(logprobs, reference_logprobs, batch.pairs, config.beta)
    return dpo_loss(logprobs, reference_logprobs, batch.pairs, config.beta, config.label_noise)


def _why_both_fall(metrics: dict[str, float]) -> str:
    return (
        f"on held-out pairs the log-probability of chosen answers moved by {metrics['val_chosen_shift']:.2f} nats and "
        f"that of rejected ones by {metrics['val_rejected_shift']:.2f}: both may fall, for the loss knows only their "
        "difference"
    )
