"""Cross-entropy of logits with integer targets, with label smoothing and z-loss.

    ℓ = lse - (1-ε)·x_t - ε·mean_j x_j + z·lse²,   lse = log Σ_j exp(x_j),   t the target

ε is the label smoothing (Szegedy et al. 2016, section 7), z the weight of the z-loss that keeps lse near 0
(Chowdhery et al. 2022, section 5). Gradient, with p = softmax(x):

    dx_j = dℓ · [ (1 + 2·z·lse)·p_j - (1-ε)·[j = t] - ε/V ]

The forward saves x and lse and moves N·V elements; the backward moves 2·N·V.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cross_entropy_reference(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Tensor:
    """logits (N, V), targets (N,) int64 -> (N,) loss of each row in nats, float32 (float64 for float64 logits)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    lse = torch.logsumexp(logits, dim=-1)  # (N,)
    target = logits.gather(-1, targets[:, None]).squeeze(-1)  # (N,)
    losses = lse - (1 - label_smoothing) * target - label_smoothing * logits.mean(-1)
    return losses + z_loss * lse.square()
