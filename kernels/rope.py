"""Rotary position embedding (Su et al. 2021, eq. 34), in the half-split pairing of Llama and GPT-NeoX.

Dimension i < D/2 is paired with i + D/2, and the pair is turned by the angle φ = position · θ^(-2i/D):

    y_i       = x_i · cos φ - x_{i+D/2} · sin φ
    y_{i+D/2} = x_{i+D/2} · cos φ + x_i · sin φ

A rotation is orthogonal, so the gradient is the rotation by -φ: dx = rope(dy, cos, -sin). Nothing is saved but the
table. The op moves 2 elements for each element of x, plus the table, which every head shares.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rope_table(
    positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """cos and sin of every angle, each (B, T, head_dim/2) in `dtype`, for integer positions (B, T)."""
    # At position 100,000 a float32 angle is already off by 0.004, but Apple's GPUs have nothing wider.
    wide = torch.float32 if positions.device.type == "mps" else torch.float64
    pair = torch.arange(0, head_dim, 2, device=positions.device, dtype=wide)
    angles = positions[..., None] * theta ** (-pair / head_dim)  # (B, T, D/2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rope_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, H, T, D) with D even, cos and sin (B, T, D/2) from `rope_table` -> the shape and dtype of x."""
    cos, sin = cos[:, None], sin[:, None]  # (B, 1, T, D/2): the same for every head
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)
