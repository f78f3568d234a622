"""Scaled dot-product attention with grouped key/value heads (Vaswani et al. 2017, eq. 1; Ainslie et al. 2023).

    S = scale · Q Kᵀ   (-∞ where attention is not allowed),   P = softmax(S),   O = P V

With a soft cap (Gemma 2, 2024), S = cap · tanh(scale · Q Kᵀ / cap). Gradient:

    dV = Pᵀ dO,   dP = dO Vᵀ,   dS = P ∘ (dP - δ),  δ_i = Σ_j P_ij·dP_ij = Σ_d O_id·dO_id
    dQ = scale · dS K,   dK = scale · dSᵀ Q

dK and dV of a shared head are the sums over its query heads. FlashAttention (Dao et al. 2022) saves O and the row's
log-sum-exp instead of P, so that memory grows with T and not with T². FLOPs: 4·B·H·Tq·Tk·D forward (half if causal),
2.5 times that backward; bytes: Q, K, V read and O written once, and in the backward twice as much.

Causality, a sliding window, packed documents and the end of the keys all leave a query one interval of keys.
`key_intervals` writes it down, and is the only place that knows of them; the kernels know intervals alone, and load
nothing outside. Read on in `attention_forward.py`, then `attention_backward.py`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kernels.attention_backward import backward
from kernels.attention_forward import forward
from kernels.launch import custom_op, require
from kernels.softmax import softmax_reference

if TYPE_CHECKING:
    from kernels.lab import Spec

MAX_HEAD_DIM = 256


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
    documents: Tensor | None = None,
    window: int = 0,
    soft_cap: float = 0.0,
    return_lse: bool = False,
) -> Any:
    """q (B, Hq, Tq, D), k and v (B, Hkv, Tk, D) with Hq a multiple of Hkv -> (B, Hq, Tq, D) in q's dtype.

    may_attend: bool, broadcastable to (B, Hq, Tq, Tk), True where attention is allowed; `causal`, `documents` and
    `window` forbid on top of it, as in `attention`. scale: 1/sqrt(D) by default. A query that may attend to nothing
    gives 0. With return_lse also (B, Hq, Tq), the log-sum-exp of each query's scores.
    """
    queries, keys = q.size(-2), k.size(-2)
    group = q.size(1) // k.size(1)  # query heads that share a key/value head
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)  # (B, Hq, Tk, D)
    scores = (q @ k.transpose(-2, -1)) * (1 / math.sqrt(q.size(-1)) if scale is None else scale)  # (B, Hq, Tq, Tk)
    if soft_cap:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    allowed = [] if may_attend is None else [may_attend]
    if causal:
        allowed.append(causal_mask(queries, keys, q.device))
    if window:
        place = torch.arange(keys - queries, keys, device=q.device)  # of each query among the keys
        allowed.append((place[:, None] - torch.arange(keys, device=q.device)).abs() < window)
    if documents is not None:
        own = documents[:, keys - queries :, None]  # (B, Tq, 1)
        allowed.append(((own == documents[:, None]) & (own >= 0))[:, None])
    for mask in allowed:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = softmax_reference(scores)
    for mask in allowed:
        # A row that may attend to nothing is NaN by now; its weights, and their gradients, are 0.
        weights = weights.masked_fill(~mask, 0.0)
    if return_lse:
        return weights @ v, torch.logsumexp(scores.to(torch.promote_types(scores.dtype, torch.float32)), dim=-1)
    return weights @ v


def key_intervals(
    queries: int,
    keys: int,
    device: torch.device,
    causal: bool = False,
    documents: Tensor | None = None,
    window: int = 0,
) -> Tensor:
    """(B, queries, 2) int32, or (1, queries, 2) where rows do not differ: the keys [first, end) that each query may
    attend to, the last query standing at the last key. Neither number falls from a query to the next."""
    position = torch.arange(keys - queries, keys, device=device)[None]  # (1, Tq)
    first, end = torch.zeros_like(position), torch.full_like(position, keys)
    if documents is not None:
        # Padding, numbered -1, comes last in a row: with a number above all others the row is sorted.
        number = documents.masked_fill(documents < 0, torch.iinfo(documents.dtype).max).contiguous()
        first = torch.searchsorted(number, number)[:, keys - queries :]
        end = torch.searchsorted(number, number, right=True)[:, keys - queries :]
        end = torch.where(documents[:, keys - queries :] < 0, first, end)  # nothing, which begins where padding does
    if window:
        first, end = first.maximum(position - window + 1), end.minimum(position + window)
    if causal:
        end = end.minimum(position + 1)
    end = end.clamp(min=0)  # queries before the first key have none
    return torch.stack((first.minimum(end), end), dim=-1).to(torch.int32)


@custom_op("kernels::attention")
def _attention(
    q: Tensor, k: Tensor, v: Tensor, intervals: Tensor, scale: float, soft_cap: float
) -> tuple[Tensor, Tensor]:
    return forward(q, k, v, intervals, scale, soft_cap)


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, intervals: Tensor, scale: float, soft_cap: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@custom_op("kernels::attention_backward")
def _attention_backward(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, intervals: Tensor, do: Tensor, dlse: Tensor,
    scale: float, soft_cap: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return backward(q, k, v, o, lse, intervals, do, dlse, scale, soft_cap)


@_attention_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, intervals, ctx.scale, ctx.soft_cap = inputs
    ctx.save_for_backward(q, k, v, *output, intervals)


def _gradient(ctx: Any, do: Tensor, dlse: Tensor) -> tuple[Tensor | None, ...]:
    dq, dk, dv = _attention_backward(*ctx.saved_tensors, do, dlse, ctx.scale, ctx.soft_cap)
    return dq, dk, dv, None, None, None


_attention.register_autograd(_gradient, setup_context=_save)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    documents: Tensor | None = None,
    window: int = 0,
    soft_cap: float = 0.0,
    return_lse: bool = False,
    intervals: Tensor | None = None,
) -> Any:
    """q (B, Hq, Tq, D), k and v (B, Hkv, Tk, D), any strides, D up to 256 -> (B, Hq, Tq, D), laid out like q.

    causal: a query attends to keys up to its own place, the last query standing at the last key.
    scale: positive, 1/sqrt(D) by default.
    documents: (B, Tk) integers, the number of each key's packed document, never falling along a row, -1 for the
        padding at its end. A query attends within its document, and one in the padding to nothing.
    window: only to keys less than this many places away; 0 for all.
    soft_cap: scores become soft_cap·tanh(score/soft_cap); 0 for none.
    return_lse: also (B, Hq, Tq) float32, the natural log-sum-exp of each query's scores; differentiable.
    intervals: from `key_intervals`, instead of causal, documents and window: layers that see alike share them.

    A query that may attend to nothing gives 0, and a log-sum-exp of -inf. The backward is deterministic, and cannot
    be differentiated again. Autocast changes nothing. Errors: ValueError, TypeError.
    """
    _check(q, k, v, scale, documents, window, soft_cap)
    if intervals is None:
        intervals = key_intervals(q.size(2), k.size(2), q.device, causal, documents, window)
    scale = 1 / math.sqrt(q.size(-1)) if scale is None else scale
    o, lse = _attention(q, k, v, intervals, float(scale), float(soft_cap))
    return (o, lse) if return_lse else o


def _check(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, documents: Tensor | None, window: int, soft_cap: float
) -> None:
    require("attention", {"q": q, "k": k, "v": v})
    if q.dtype != k.dtype or q.dtype != v.dtype:
        raise TypeError(f"attention: q, k and v are {q.dtype}, {k.dtype} and {v.dtype}; they must be of one dtype")
    if q.dim() != 4 or k.dim() != 4 or k.shape != v.shape or (q.size(0), q.size(3)) != (k.size(0), k.size(3)):
        given = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"attention: q, k, v of shapes {given}; they must be (B, Hq, Tq, D) and twice (B, Hkv, Tk, D)")
    if k.size(1) == 0 or q.size(1) % k.size(1):
        raise ValueError(f"attention: {q.size(1)} query heads are no multiple of {k.size(1)} key/value heads")
    if not 1 <= q.size(3) <= MAX_HEAD_DIM:
        raise ValueError(f"attention: head_dim is {q.size(3)}; it must be from 1 to {MAX_HEAD_DIM}")
    if window < 0 or soft_cap < 0 or (scale is not None and scale <= 0):
        raise ValueError(
            f"attention: window {window}, soft_cap {soft_cap}, scale {scale}; "
            "window and soft_cap must be at least 0, scale above 0"
        )
    if documents is None:
        return
    if documents.is_floating_point() or documents.shape != (k.size(0), k.size(2)) or q.size(2) > k.size(2):
        raise ValueError(
            f"attention: documents are {documents.dtype} {tuple(documents.shape)} for {q.size(2)} queries; they must "
            f"be integers {(k.size(0), k.size(2))}, one for each key, with no more queries than keys"
        )


def spec() -> Spec:
    """What the lab checks, compiles and measures."""
    from kernels.attention_lab import describe

    return describe(attention, attention_reference)
