"""Losses on compared answers: the reward model's (Bradley–Terry), and DPO with its relatives, which need none.

Pure functions of one number an answer (a reward, or the sum of its tokens' log-probabilities) and the pairs of answers
compared. Dimensions: S answers of a batch, P pairs.

Every loss is a sum over pairs, each weighing 1 / C(K, 2) of the K answers that its prompt has; its weight is therefore
the number of prompts. Its metrics are sums over the same weight:

    accuracy          the better answer comes out ahead (a tie counts half)
    margin            by how much: a difference of rewards, which DPO takes from its two models
    chosen_logprob, rejected_logprob   log π(y | x) in nats, of the better and the worse answer
    chosen_shift, rejected_shift       log π(y | x) - log π_ref(y | x): what training has done to them

Why do both log-probabilities fall in DPO? Its loss knows only the difference of the two shifts. Lowering the rejected
answer faster than the chosen one serves it as well as raising the chosen one, and is easier: both begin with the same
words, so a gradient that pushes the rejected one down drags the chosen one along (Razin et al. 2024, "Unintentional
unalignment"; Pal et al. 2024). It is no failure as long as the margin grows and generated answers get better: look at
those. Where they get worse, the probability went to a third kind of answer: raise `beta`, which holds the policy closer
to its reference, train more gently, or add the loss of SFT on the chosen answers, which holds them up
(`plus_chosen_loss`; `orpo` has it built in).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from instructgpt.data.comparisons import ComparisonBatch, Pairs
from instructgpt.model.transformer import Transformer
from instructgpt.objectives.lm import Loss

PreferenceLoss = Literal["dpo", "ipo", "simpo", "orpo"]


def reward_loss(rewards: Tensor, pairs: Pairs) -> Loss:
    """How surprised a model with these rewards (S,) is by the comparisons (Ouyang et al. 2022, eq. 1).

    Bradley & Terry 1952: P(better beats worse) = σ(r_better - r_worse). All C(K, 2) comparisons of a prompt come from
    one forward pass over its K answers: as separate examples, each answer would be trained on K - 1 times in an epoch,
    and the model overfits.
    """
    margins = rewards[pairs.better] - rewards[pairs.worse]  # (P,)
    return _loss(-F.logsigmoid(margins), margins, pairs)


def dpo_loss(policy: Tensor, reference: Tensor, pairs: Pairs, beta: float, label_noise: float = 0.0) -> Loss:
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7), of log-probabilities (S,) under the two models.

    The policy that maximises reward - beta·KL has the reward r(y) = beta·log π(y)/π_ref(y) + const; put into Bradley
    and Terry's model, the reward model is gone. `label_noise` ε is the share of comparisons taken to be the wrong way
    round (conservative DPO, Mitchell 2023): -(1-ε)·log σ(m) - ε·log σ(-m), which stops at a margin of log((1-ε)/ε).
    """
    margins = beta * _difference(policy - reference, pairs)  # (P,)
    losses = -(1 - label_noise) * F.logsigmoid(margins) - label_noise * F.logsigmoid(-margins)
    return _loss(losses, margins, pairs, policy, reference)


def ipo_loss(policy: Tensor, reference: Tensor, pairs: Pairs, beta: float) -> Loss:
    """Identity preference optimisation (Azar et al. 2023, eq. 17): the difference of shifts is to be 1 / (2·beta).

    A square in place of log σ: where every pair is decided, DPO's margin grows without end and the reference is
    forgotten; this one has a target.
    """
    differences = _difference(policy - reference, pairs)  # (P,)
    return _loss((differences - 1 / (2 * beta)).square(), beta * differences, pairs, policy, reference)


def simpo_loss(policy: Tensor, lengths: Tensor, pairs: Pairs, beta: float, target_margin: float) -> Loss:
    """Simple preference optimisation (Meng et al. 2024, eq. 6): no reference, and the reward is a token's mean.

    lengths (S,): tokens of each answer. A sum of log-probabilities favours what is short; a mean does not.
    """
    margins = beta * _difference(policy / lengths, pairs)  # (P,)
    return _loss(-F.logsigmoid(margins - target_margin), margins, pairs, policy)


def orpo_loss(policy: Tensor, lengths: Tensor, pairs: Pairs, ratio_weight: float) -> Loss:
    """Odds-ratio preference optimisation (Hong et al. 2024, eq. 6): SFT on the better answer, and a push away from the
    worse one. No reference, and no SFT before it.

    -mean log P(better) - λ·log σ(log odds(better) - log odds(worse)), odds = P / (1 - P), P = exp(mean logprob).
    """
    means = policy / lengths  # (S,)
    # log(1 - e^m) without loss of digits near m = 0, where e^m is almost 1 (Mächler 2012); an answer that is certain
    # would have infinite odds.
    log_odds = means - torch.log(-torch.expm1(means.clamp(max=-1e-6)))
    margins = _difference(log_odds, pairs)  # (P,)
    losses = -means[pairs.better] - ratio_weight * F.logsigmoid(margins)
    return _loss(losses, margins, pairs, policy)


def plus_chosen_loss(loss: Loss, policy: Tensor, lengths: Tensor, pairs: Pairs, weight: float) -> Loss:
    """`loss` with `weight` times the better answers' mean negative log-likelihood added (RPO, Pang et al. 2024, eq. 1).

    What plain DPO lacks: something that holds the better answers up, in the units of SFT.
    """
    means = policy[pairs.better] / lengths[pairs.better]  # (P,)
    return replace(loss, total=loss.total - weight * (pairs.weight * means).sum())


def answer_logprobs(model: Transformer, batch: ComparisonBatch) -> Tensor:
    """log P(answer | prompt) (S,) in nats, of each answer of the batch with the token that ends it, float32.

    Teacher-forced, as in training. Only the answers' tokens reach the head.
    """
    rows = batch.rows
    hidden = rows.at_targets(model.hidden(rows.ids, rows.positions, rows.documents))  # (N, C)
    logprobs = -model.token_losses(hidden, rows.at_targets(rows.targets))  # (N,)
    return logprobs.new_zeros(len(batch.last)).index_add(0, rows.at_targets(batch.answers), logprobs)


def _difference(values: Tensor, pairs: Pairs) -> Tensor:
    """Of values (S,): the better answer's less the worse one's, (P,)."""
    return values[pairs.better] - values[pairs.worse]


def _loss(
    losses: Tensor, margins: Tensor, pairs: Pairs, policy: Tensor | None = None, reference: Tensor | None = None
) -> Loss:
    """Losses and margins (P,), each of which is multiplied by its pair's weight here, as sums with the sum of these
    weights; and the metrics, which are more with the log-probabilities (S,) that policy and reference give."""

    def total(values: Tensor) -> Tensor:
        return (pairs.weight * values).sum()

    margins = margins.detach()
    metrics = {"accuracy": total((margins > 0).float() + 0.5 * (margins == 0)), "margin": total(margins)}
    if policy is not None:
        policy = policy.detach()
        metrics["chosen_logprob"], metrics["rejected_logprob"] = total(policy[pairs.better]), total(policy[pairs.worse])
        if reference is not None:
            shifts = policy - reference
            metrics["chosen_shift"], metrics["rejected_shift"] = total(shifts[pairs.better]), total(shifts[pairs.worse])
    return Loss(total(losses), pairs.weight.sum(), metrics)
