"""A short convolution along the sequence: each vector brings along a little of the few before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ShortConv(nn.Module):
    """y[t] = x[t] + Σ_s weight[s-1] ⊙ x[t-s] for s = 1 … window-1, within a document.

    A causal depthwise convolution with a residual. Over queries and keys it is part of Primer (So et al. 2021, section
    3, with values as well) and, with one weight a head and over keys only, the smeared keys of Olsson et al. 2022. To
    look up what belongs to a name, a key must know what stands before it. Attention alone needs two layers that fit
    each other for that (Olsson et al. 2022, induction heads), which small models find late; with the neighbours at hand
    one layer does.
    """

    def __init__(self, channels: int, window: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(window - 1, channels))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, T, C) mixed, (B, T, C). positions: (1 or B, T), how many tokens stand before each in its document."""
        return _Mix.apply(x, self.weight.to(x.dtype), positions)

    def after(self, x: Tensor, before: Tensor) -> Tensor:
        """x (1, N, C) mixed, where before (N, window-1, C) are the vectors before each, the nearest first."""
        return x + (before.to(x.dtype) * self.weight.to(x.dtype)).sum(1)


class _Mix(torch.autograd.Function):
    """The sum above. Autograd's own backward of it, pad by pad and slice by slice, takes three times as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, positions: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, positions)
        y = x.clone()
        for shift, row in enumerate(weight, start=1):
            y[:, shift:].addcmul_(x[:, :-shift] * _same_document(positions, shift, x.dtype), row)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None, None]:  # type: ignore[override]
        x, weight, positions = ctx.saved_tensors
        dx, dweight = dy.clone(), torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for shift, row in enumerate(weight, start=1):
            near = dy[:, shift:] * _same_document(positions, shift, dy.dtype)
            dx[:, :-shift].addcmul_(near, row)
            if dweight is not None:
                dweight[shift - 1] = near.mul_(x[:, :-shift]).sum((0, 1))
        return dx, dweight, None


def _same_document(positions: Tensor, shift: int, dtype: torch.dtype) -> Tensor:
    """(1 or B, T - shift, 1), for each token from the shift-th on: 1 where the one so far before it is of its document,
    else 0."""
    return (positions[:, shift:] >= shift).unsqueeze(-1).to(dtype)
