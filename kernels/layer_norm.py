"""Layer normalisation (Ba et al. 2016, eq. 3).

    y_i = (x_i - μ) · r · w_i + b_i,   μ = mean_j x_j,   r = 1 / sqrt(mean_j (x_j - μ)² + ε)

Gradient, with x̂ = (x - μ)·r and g = dy·w:

    dx = r · (g - mean_j g_j - x̂ · mean_j(g_j·x̂_j)),   dw = Σ_rows dy·x̂,   db = Σ_rows dy

The forward saves x, μ and r (two float32 a row). It moves 2·N elements a row; the backward moves 3·N.
"""

from __future__ import annotations

import torch
from torch import Tensor


def layer_norm_reference(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """x (..., N), weight (N,), bias (N,) or None -> the shape and dtype of x."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(-1, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * weight
    return (normed if bias is None else normed + bias).to(x.dtype)
