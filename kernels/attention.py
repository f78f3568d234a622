"""Scaled dot-product attention with grouped key/value heads (Vaswani et al. 2017, eq. 1; Ainslie et al. 2023).

    S = scale · Q Kᵀ   (-∞ where attention is not allowed),   P = softmax(S),   O = P V

Gradient:

    dV = Pᵀ dO,   dP = dO Vᵀ,   dS = P ∘ (dP - δ),  δ_i = Σ_j P_ij·dP_ij = Σ_d O_id·dO_id
    dQ = scale · dS K,   dK = scale · dSᵀ Q

dK and dV of a shared head are the sums over its query heads. FlashAttention (Dao et al. 2022) saves O and the row's
log-sum-exp instead of P, so that memory grows with T and not with T². FLOPs: 4·B·H·Tq·Tk·D forward (half if causal),
2.5 times that backward.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kernels.softmax import softmax_reference


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """(queries, keys) bool, True where a query may attend: the last query is aligned with the last key."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    may_attend: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """q (B, Hq, Tq, D), k and v (B, Hkv, Tk, D) with Hq a multiple of Hkv -> (B, Hq, Tq, D) in q's dtype.

    may_attend: bool, broadcastable to (B, Hq, Tq, Tk), True where attention is allowed; `causal` forbids the future on
    top of it, the last query standing at the last key. scale: 1/sqrt(D) by default. A query that may attend to
    nothing gives 0.
    """
    group = q.size(1) // k.size(1)  # query heads that share a key/value head
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)  # (B, Hq, Tk, D)
    scores = (q @ k.transpose(-2, -1)) * (1 / math.sqrt(q.size(-1)) if scale is None else scale)  # (B, Hq, Tq, Tk)
    if causal:
        past = causal_mask(q.size(-2), k.size(-2), q.device)
        may_attend = past if may_attend is None else may_attend & past
    if may_attend is None:
        return softmax_reference(scores) @ v
    weights = softmax_reference(scores.masked_fill(~may_attend, -math.inf))
    # A row that may attend to nothing is NaN by now; its weights, and their gradients, are 0.
    return weights.masked_fill(~may_attend, 0.0) @ v
