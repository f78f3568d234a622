"""Root-mean-square normalisation (Zhang & Sennrich 2019, eq. 4).

    y_i = x_i · r · w_i,   r = 1 / sqrt(mean_j x_j² + ε)

Gradient, with x̂ = x·r and g = dy·w:

    dx = r · (g - x̂ · mean_j(g_j·x̂_j)),   dw = Σ_rows dy·x̂

The forward saves x and r (one float32 a row). It moves 2·N elements a row; the backward moves 3·N.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., N), weight (N,) -> the shape and dtype of x."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    rms = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)  # (..., 1)
    return (wide * rms * weight).to(x.dtype)
