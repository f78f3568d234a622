"""Policy gradients on answers: pure functions from log-probabilities, rewards and values to losses.

B answers stand one a row in (B, T). Slot t of a row is the decision for one token, and `is_answer` is True where that
token is the answer's. An answer is a stretch of neighbouring slots that ends with its end token, wherever in the row it
lies: padding may be on either side. Losses take the N decisions of all answers as flat (N,) tensors, in the order of
`tensor[is_answer]`, for only these have logits.

Why is the KL negative? The per-token k1, log π(a) - log π_ref(a), is an estimate of KL(π ‖ π_ref) from one sample, and
below zero wherever the reference likes the token better; only its mean over what π itself samples is never negative. A
mean that stays below zero says that the tokens are not π's own: they were sampled with top-k, top-p or a temperature
other than 1, the log-probabilities are stale, or dropout was on. k3 has the same mean and is never negative.

Why does every answer look the same? Nothing in a reward asks for variety: the best policy for it alone always says the
same. Entropy falls as the reward rises, and the KL coefficient β decides how far: the optimum of reward - β·KL is
π_ref(a)·exp(reward(a)/β), normalised, which is as varied as the reference when β is large. If answers agree before the
reward has risen, the coefficient is too small or the learning rate too high.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from instructgpt.objectives.lm import Loss
from instructgpt.settings import NonNegative, Positive, Settings

# ---- rewards


def rewards_at_end(scores: Tensor, is_answer: Tensor) -> Tensor:
    """(B, T) rewards that are zero but for each row's score (B,) at the last slot of its answer: its end token.

    A row without an answer has no such slot and gets no reward.
    """
    slots = torch.arange(is_answer.size(1), device=is_answer.device)
    last = (slots * is_answer).amax(dim=1, keepdim=True)  # (B, 1)
    return scores[:, None] * ((slots == last) & is_answer)


def kl_k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """log π(a) - log π_ref(a): unbiased for KL(π ‖ π_ref) when π sampled a, of either sign (Schulman 2020, "k1")."""
    return logprobs - reference


def kl_k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """r - 1 - log r with r = π_ref(a)/π(a): unbiased, too, never negative, of less variance (Schulman 2020, "k3").

    As a loss it is differentiated through `logprobs`: that is GRPO's KL term (Shao et al. 2024, eq. 4).
    """
    log_ratio = reference - logprobs
    return log_ratio.expm1() - log_ratio


def rewards_with_kl(
    scores: Tensor, logprobs: Tensor, reference: Tensor, is_answer: Tensor, coefficient: float
) -> Tensor:
    """What PPO is rewarded with (B, T): the score at the end, and at every token -β·(log π - log π_ref).

    Ouyang et al. 2022, eq. 2, whose first two terms are taken apart token by token. scores: (B,); the rest (B, T).
    """
    return rewards_at_end(scores, is_answer) - coefficient * kl_k1(logprobs, reference) * is_answer


def adapt_coefficient(coefficient: float, kl: float, target: float, gain: float = 0.1) -> float:
    """The KL coefficient after a measured `kl`, driven in proportion to the error (Ziegler et al. 2019, section 2.2).

    The error is cut off at 20%, so that one odd batch cannot do much.
    """
    if math.isnan(kl):
        return coefficient
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + gain * error)


# ---- advantages

_ROUNDING = 2 * torch.finfo(torch.float32).eps
"""Differences, as a share of the largest value, that are rounding and say nothing."""


class Deviations(NamedTuple):
    """How values differ from their mean, in the last dimension."""

    centred: Tensor
    """(..., N) values less their mean."""
    deviation: Tensor
    """(..., 1) their standard deviation."""


def deviations(values: Tensor, unbiased: bool = False) -> Deviations:
    """Values (..., N) less their mean, and their standard deviation: both exactly 0 where all values are equal.

    Whatever is divided by a spread takes it from here. The mean of eight floats of 0.9 is not 0.9, nor is their
    deviation 0: what is left is rounding, which a division makes as large as any signal. Computed in float64, so that
    no square overflows. unbiased: divide by N - 1.
    """
    wide = values.detach().double() if values.device.type != "mps" else values.detach()
    differ = wide.amax(-1, keepdim=True) - wide.amin(-1, keepdim=True) > _ROUNDING * wide.abs().amax(-1, keepdim=True)
    # What is no number stays none, for it must be seen.
    differ = differ | ~wide.isfinite().all(-1, keepdim=True)
    centred = torch.where(differ, wide - wide.mean(-1, keepdim=True), 0.0)
    count = max(values.size(-1) - unbiased, 1)
    return Deviations(centred, (centred.square().sum(-1, keepdim=True) / count).sqrt())


class Advantages(NamedTuple):
    """What each decision of an answer is told, and what its value should have been."""

    advantages: Tensor
    """(B, T): how much better each decision was than the value expected; zero off the answer."""
    returns: Tensor
    """(B, T): what the value function should have said; zero off the answer."""


def generalized_advantages(
    rewards: Tensor, values: Tensor, is_answer: Tensor, discount: float = 1.0, decay: float = 0.95
) -> Advantages:
    """GAE (Schulman et al. 2016, eq. 16): Â_t = Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γ V_{t+1} - V_t.

    rewards, values: (B, T); values[t] is of the state before decision t, and nothing comes after an answer's last one.
    is_answer: (B, T) bool, False in what is padded on either side, whose rewards and values mean nothing.
    discount γ, decay λ: with λ = 1 the advantage is the return minus the value, with 0 it is δ alone.
    """
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])  # (B,)
    for t in reversed(range(values.size(1))):
        here = is_answer[:, t]
        delta = rewards[:, t] + discount * next_value - values[:, t]
        advantage = delta + discount * decay * next_advantage
        advantages[:, t] = torch.where(here, advantage, 0.0)
        # Padding is passed over: what follows an answer's last token is nothing, not padding's value.
        next_value = torch.where(here, values[:, t], next_value)
        next_advantage = torch.where(here, advantage, next_advantage)
    return Advantages(advantages, (advantages + values) * is_answer)


def whiten(values: Tensor, is_answer: Tensor, shift: bool = True) -> Tensor:
    """Values (B, T) at standard deviation 1 and, with `shift`, mean 0, over the answers alone; zero elsewhere.

    Statistics that include padding's zeros would shrink the scale, and shift what is off the answer away from zero.
    """
    chosen = values[is_answer]  # (N,)
    if not len(chosen):
        return torch.zeros_like(values)
    centred, deviation = deviations(chosen)
    whitened = centred / (deviation.square() + 1e-8).sqrt() + (0.0 if shift else chosen.double().mean())
    table = torch.zeros_like(values)
    table[is_answer] = whitened.to(values.dtype)
    return table


def group_advantages(scores: Tensor, group: int, normalise: bool = True) -> Tensor:
    """Advantages (B,) of scores (B,) against the other answers to the same prompt; those of a prompt are neighbours.

    GRPO (Shao et al. 2024, section 4.1.2): (r - mean) / std, the unbiased one. With `normalise=False` no division, as
    "Dr. GRPO" corrects it (Liu et al. 2025, section 3.1): it favours the prompts that are nearly always or nearly never
    answered right. A group whose scores all agree teaches nothing and gets zeros, also where their mean is rounded
    (`deviations`). A group's advantages sum to zero.
    Raises ValueError for a group of fewer than 2, or one that is not whole.
    """
    if group < 2 or len(scores) % group:
        raise ValueError(f"{len(scores)} scores in groups of {group}: each must be whole, and have at least 2")
    centred, deviation = deviations(scores.view(-1, group), unbiased=True)
    if normalise:
        centred = centred / (deviation + 1e-4)
    return centred.flatten().to(scores.dtype)


# ---- losses


def clipped_surrogate(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """-min(r·Â, clip(r, 1-ε, 1+ε)·Â) with r = π(a)/π_old(a) (Schulman et al. 2017, eq. 7), element by element.

    The minimum makes it a pessimist: moving r beyond the clip never pays, while a wrong move is always felt. Where r is
    cut, loss and gradient are numbers, even if r itself overflows: the gradient is 0 there.
    """
    log_ratio = logprobs - old_logprobs
    # The minimum is r·Â with r cut off on one side, by the sign of Â. Cut before the exponential, which overflows past
    # 88 nats: on the side that is cut, loss and gradient are then what they should be. On the other one the objective
    # has no bound, and a step that overflows is skipped.
    least = math.log1p(-clip) if clip < 1 else -math.inf
    cut = torch.where(advantages >= 0, log_ratio.clamp(max=math.log1p(clip)), log_ratio.clamp(min=least))
    return -(cut.exp() * advantages)


def clipped_value_losses(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """½·max((V - R)², (clip(V, V_old ± ε) - R)²), element by element; `clip` 0 means ½(V - R)² alone.

    From the implementation of Schulman et al. 2017: the value moves by no more than ε on one batch of rollouts.
    """
    losses = (values - returns).square()
    if clip:
        near = old_values + (values - old_values).clamp(-clip, clip)
        losses = torch.maximum(losses, (near - returns).square())
    return 0.5 * losses


@dataclass(frozen=True)
class PPOTerms(Settings):
    """The terms of PPO's loss."""

    clip_ratio: Positive = 0.2
    """How far the probability of a token may move, as a ratio, before the objective stops rewarding it."""
    value_clip: NonNegative = 0.2
    """How far a value may move on one batch of rollouts; 0 lets it."""
    value_coefficient: NonNegative = 0.5
    """Weight of the value function's loss."""
    entropy_coefficient: NonNegative = 0.0
    """Weight of the entropy, which is added to the objective: keeps answers varied."""


def ppo_loss(
    logprobs: Tensor,
    values: Tensor,
    entropy: Tensor,
    old_logprobs: Tensor,
    old_values: Tensor,
    advantages: Tensor,
    returns: Tensor,
    terms: PPOTerms,
) -> Loss:
    """Clipped surrogate + c_v·value loss - c_e·entropy of N decisions, all (N,) (Schulman et al. 2017, eq. 9).

    Gradients flow through the first three. The weight is N: tokens count alike, whatever the answer's length.
    """
    policy = clipped_surrogate(logprobs, old_logprobs, advantages, terms.clip_ratio)
    value = clipped_value_losses(values, old_values, returns, terms.value_clip)
    total = policy + terms.value_coefficient * value - terms.entropy_coefficient * entropy
    metrics = {
        "policy_loss": policy.sum(),
        "value_loss": value.sum(),
        **_movement(logprobs, old_logprobs, terms.clip_ratio),
    }
    return Loss(total.sum(), _count(total), _detached({**metrics, "entropy": entropy.sum()}))


LengthCorrection = Literal["answer", "constant", "token"]


@dataclass(frozen=True)
class GRPOTerms(Settings):
    """The terms of GRPO's loss."""

    clip_ratio: Positive = 0.2
    """How far the probability of a token may move, as a ratio, before the objective stops rewarding it."""
    kl_coefficient: NonNegative = 0.04
    """Weight of the KL to the reference, which is part of the loss and not of the reward."""
    length: LengthCorrection = "answer"
    """`answer`: the mean over an answer's tokens, as in the paper, so that a token of a long answer counts less.
    `constant`: the sum over the same number for all (Dr. GRPO). `token`: the mean over all tokens."""
    normalise: bool = True
    """Divide by the standard deviation of a prompt's rewards, as in the paper; off for Dr. GRPO."""


def grpo_loss(
    logprobs: Tensor,
    entropy: Tensor,
    old_logprobs: Tensor,
    reference: Tensor,
    advantages: Tensor,
    answers: Tensor,
    longest: int,
    terms: GRPOTerms,
) -> Loss:
    """The loss of N decisions (Shao et al. 2024, eq. 3): clipped surrogate + β·k3, averaged as `terms.length` says.

    All are (N,): advantages are those of each token's answer, answers their numbers, from 0 without gaps. longest: what
    Dr. GRPO divides by, the most tokens an answer may have. The weight is the number of answers, or of tokens.
    """
    policy = clipped_surrogate(logprobs, old_logprobs, advantages, terms.clip_ratio)
    losses = policy + terms.kl_coefficient * kl_k3(logprobs, reference)
    lengths = torch.bincount(answers).clamp(min=1)  # (answers,)
    if terms.length == "token":
        share, weight = torch.ones_like(losses), _count(losses)
    else:
        weight = _count(lengths)
        share = 1 / lengths[answers] if terms.length == "answer" else torch.full_like(losses, 1 / longest)
    metrics = {"policy_loss": (policy * share).sum()}
    # The log divides by the weight, and these are means over tokens.
    tokens = {**_movement(logprobs, old_logprobs, terms.clip_ratio), "entropy": entropy.sum()}
    metrics |= {name: value * weight / max(len(losses), 1) for name, value in tokens.items()}
    return Loss((losses * share).sum(), weight, _detached(metrics))


def with_pretraining(loss: Loss, pretraining: Loss, coefficient: float) -> Loss:
    """PPO-ptx: the policy's loss plus γ times the language model's on pretraining text (Ouyang et al. 2022, eq. 2).

    Both are means in the paper. The weight stays the policy's, so that dividing by it leaves γ times the second mean.
    """
    mean = pretraining.total / pretraining.weight.clamp(min=1)
    metrics = {**loss.metrics, "pretraining_loss": mean.detach() * loss.weight}
    return Loss(loss.total + coefficient * mean * loss.weight, loss.weight, metrics)


def _movement(logprobs: Tensor, old_logprobs: Tensor, clip: float) -> dict[str, Tensor]:
    """How far the policy is from the one that sampled: sums over tokens."""
    ratio = (logprobs - old_logprobs).exp()
    return {
        "ratio": ratio.sum(),
        "clip_fraction": ((ratio - 1).abs() > clip).sum(),
        "kl_to_old": kl_k3(old_logprobs, logprobs).sum(),  # KL(π_old ‖ π): π_old sampled
    }


def _count(values: Tensor) -> Tensor:
    return torch.full((), float(len(values)), device=values.device)


def _detached(metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().float() for name, value in metrics.items()}


# ---- measures and selection


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over (N,): 1 is a perfect value function, 0 one that knows the mean."""
    if not len(returns):
        return 0.0
    spread = float(deviations(returns).deviation)
    return 1 - (float(deviations(returns - values).deviation) / spread) ** 2 if spread else 0.0


def best_of(scores: Tensor, group: int) -> Tensor:
    """Index (B / group,) of the best of each prompt's answers, the first of equals: rejection sampling.

    scores: (B,), those of a prompt are neighbours. Keeping only the best of n moves the policy by at most
    ln n - (n - 1)/n nats of KL (Beirami et al. 2024).
    """
    grouped = scores.view(-1, group)
    return grouped.argmax(dim=1) + group * torch.arange(len(grouped), device=scores.device)
