"""Weights that are kept beside those that are trained: their average, and the best ones so far."""

from __future__ import annotations

import torch
from torch import Tensor

from instructgpt.training.optimizer import Optimizer, Parameters


class Average:
    """An exponential moving average of the weights; empty without a decay."""

    def __init__(self, masters: Parameters, decay: float):
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in masters.items()} if decay else {}

    @torch.no_grad()
    def update(self, masters: Parameters, step: int, is_good: Tensor) -> None:
        """Follows the masters after update number `step`; not where `is_good` is 0, for that was none."""
        if self.weights:
            # Early on the average would be mostly the random start: let it follow faster (Polyak-style warm-up).
            decay = min(self.decay, (1 + step) / (10 + step))
            share = (1 - decay) * is_good
            for name, average in self.weights.items():
                average.lerp_(masters[name], share.to(average.dtype))


@torch.no_grad()
def exchange(kept: dict[str, Tensor], optimizer: Optimizer) -> None:
    """Swaps the model's weights with those kept; twice restores."""
    for name, weights in kept.items():
        master = optimizer.masters[name]
        trained = master.detach().clone()
        master.copy_(weights)
        weights.copy_(trained)
    if kept:
        optimizer.copy_masters()
