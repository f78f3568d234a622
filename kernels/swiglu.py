"""The gated linear unit of Llama's MLP (Shazeer 2020, eq. 6), after its two matrix products.

    y = silu(a) · b,   silu(a) = a · σ(a),   a the gate, b the up projection

Gradient:

    da = dy · b · σ(a) · (1 + a·(1 - σ(a))),   db = dy · silu(a)

The forward saves a and b and recomputes σ(a). It moves 3 elements for each of y's; the backward moves 5.
"""

from __future__ import annotations

import torch
from torch import Tensor


def swiglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    """gate and up of one shape -> that shape and dtype."""
    wide = gate.to(torch.promote_types(gate.dtype, torch.float32))
    return (wide * torch.sigmoid(wide) * up).to(gate.dtype)
