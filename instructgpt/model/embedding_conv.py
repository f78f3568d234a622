"""A short convolution over the embeddings: each token brings along the few before it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instructgpt.model.cache import KVCache


class EmbeddingConv(nn.Module):
    """y[t] = x[t] + Σ_s weight[s-1] ⊙ x[t-s] for s = 1 … window-1, within a document.

    A depthwise causal convolution with a residual, as in the Canon layers of Allen-Zhu 2025 ("Physics of Language
    Models: Part 4.1") and, after the projections, in Primer (So et al. 2021). To look up what belongs to a name, a key
    must know what stands before it. Attention alone needs two layers that fit each other for that (Olsson et al. 2022,
    induction heads), which small models find late; with the neighbours at hand one layer does.
    """

    def __init__(self, width: int, window: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(window - 1, width))

    def forward(self, x: Tensor, positions: Tensor, cache: KVCache | None = None) -> Tensor:
        """x (B, T, C) mixed; `positions` (1 or B, T) count the tokens before each in its document. With a cache, what
        it keeps of the tokens before x comes first."""
        reach, T = self.weight.size(0), x.size(1)
        before = F.pad(x, (0, 0, reach, 0)) if cache is None else cache.follow(x)  # (B, reach + T, C)
        y = x
        for shift, weight in enumerate(self.weight, start=1):
            is_same_document = (positions >= shift).unsqueeze(-1)  # (1 or B, T, 1)
            y = y + weight * before[:, reach - shift : reach - shift + T] * is_same_document
        return y
