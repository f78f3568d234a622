"""The language-model loss, and the record every objective returns."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from instructgpt.data.batch import Batch
from instructgpt.model.transformer import Transformer


@dataclass(frozen=True)
class Loss:
    """A loss as a sum and the weight it is to be divided by, so that uneven micro-batches add up exactly.

    The mean over several batches is Σ total / Σ weight; the mean of their means is not (it weighs a token in a
    short answer more than one in a long answer).
    """

    total: Tensor
    """Sum of the losses, a scalar that carries the gradient."""
    weight: Tensor
    """What the sum is over (trained tokens, pairs, ...), a scalar without gradient."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Further sums over the same weight, for the log; no gradient."""


def next_token_loss(model: Transformer, batch: Batch, label_smoothing: float = 0.0) -> Loss:
    """Negative log-likelihood of the batch's targets, in nats, summed; its weight is their number.

    Only positions that predict a target reach the head: in instruction tuning that is a fraction of all, and the head
    is the widest matrix of a small model. A batch with nothing to train on gives total 0 and weight 0, not NaN.
    """
    hidden = model.hidden(batch.ids, batch.positions, batch.documents)  # (B, T, C)
    losses = model.token_losses(batch.at_targets(hidden), batch.at_targets(batch.targets), label_smoothing)  # (N,)
    # A number made on the device: one that is copied to it would be waited for.
    return Loss(losses.sum(), torch.full((), float(len(losses)), device=losses.device))
