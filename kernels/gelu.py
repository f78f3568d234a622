"""The Gaussian error linear unit in the tanh form of GPT-2 (Hendrycks & Gimpel 2016, section 2).

    y = x/2 · (1 + tanh u),   u = sqrt(2/π) · (x + 0.044715·x³)

Gradient:

    dx = dy · [ (1 + tanh u)/2 + x/2 · (1 - tanh² u) · sqrt(2/π) · (1 + 3·0.044715·x²) ]

The forward saves x. It moves 2 elements for each of x's; the backward moves 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gelu_reference(x: Tensor) -> Tensor:
    """x of any shape -> the same shape and dtype."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
    return (0.5 * wide * (1 + torch.tanh(inner))).to(x.dtype)
