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
nothing outside. What a query may not attend to has no influence on it, be it NaN; of what it attends to, a value that
is not finite makes NaN in its channel. Read on in `attention_forward.py`, then `attention_backward.py`.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from kernels.attention_backward import backward
from kernels.attention_forward import forward
from kernels.checks import require_values
from kernels.launch import custom_op, once_per_signature, require
from kernels.softmax import softmax_reference

if TYPE_CHECKING:
    from kernels.lab import Spec

MAX_HEAD_DIM = 256


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """(queries, keys) bool, True where a query may attend: the last query is aligned with the last key."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


class _Scores(torch.autograd.Function):
    """a (.., M, D), b (.., N, D) -> (.., M, N), their products where `counts` (.., M, N), elsewhere 0."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, counts: Tensor) -> Tensor:
        ctx.save_for_backward(a, b, counts)
        return (a @ b.mT).masked_fill(~counts, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (d,), (a, b, counts) = gradients, ctx.saved_tensors
        return _sums(d, b, counts), _sums(d.mT, a, counts.mT), None


class _Sums(torch.autograd.Function):
    """weights (.., M, N), 0 where not `counts`, and b (.., N, D) -> (.., M, D), weights @ b over what counts alone,
    though 0 · NaN is NaN. What counts and is not finite gives NaN."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, b: Tensor, counts: Tensor) -> Tensor:
        ctx.save_for_backward(weights, b, counts)
        is_finite = b.isfinite()
        spoilt = counts.to(b.dtype) @ (~is_finite).to(b.dtype) > 0
        return (weights @ b.where(is_finite, 0.0)).masked_fill(spoilt, math.nan)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (d,), (weights, b, counts) = gradients, ctx.saved_tensors
        return _scores(d, b, counts), _sums(weights.mT, d, counts.mT), None


def _scores(a: Tensor, b: Tensor, counts: Tensor | None) -> Tensor:
    return a @ b.mT if counts is None else cast(Tensor, _Scores.apply(a, b, counts))


def _sums(weights: Tensor, b: Tensor, counts: Tensor | None) -> Tensor:
    return weights @ b if counts is None else cast(Tensor, _Sums.apply(weights, b, counts))


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
    allowed = [] if may_attend is None else [may_attend]
    if causal:
        allowed.append(causal_mask(queries, keys, q.device))
    if window:
        place = torch.arange(keys - queries, keys, device=q.device)  # of each query among the keys
        allowed.append((place[:, None] - torch.arange(keys, device=q.device)).abs() < window)
    falls = None if documents is None else _falls(documents).any(1)[:, None, None]  # (B, 1, 1)
    if documents is not None and falls is not None:
        q, k, v = (x.masked_fill(falls[..., None], 0.0) for x in (q, k, v))  # no gradient, though there be a NaN
        own = documents[:, keys - queries :, None]  # (B, Tq, 1)
        allowed.append(((own == documents[:, None]) & (own >= 0))[:, None])
    mask = None
    if allowed:
        mask = reduce(torch.logical_and, allowed)
        mask = mask.expand(*mask.shape[:-2], queries, keys)
    scores = _scores(q, k, mask) * (1 / math.sqrt(q.size(-1)) if scale is None else scale)  # (B, Hq, Tq, Tk)
    if soft_cap:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = softmax_reference(scores)
    if mask is not None:
        # A row that may attend to nothing is NaN by now; its weights, and their gradients, are 0.
        weights = weights.masked_fill(~mask, 0.0)
    o = _sums(weights, v, mask)
    lse = torch.logsumexp(scores.to(torch.promote_types(scores.dtype, torch.float32)), dim=-1) if return_lse else None
    if falls is not None:
        o = o.masked_fill(falls[..., None], math.nan)
        lse = None if lse is None else lse.masked_fill(falls, math.nan)
    return o if lse is None else (o, lse)


def _falls(documents: Tensor) -> Tensor:
    """(B, Tk - 1), where a row's numbers fall from one key to the next, its padding counted as above all others; an
    error instead while debugging (`kernels.checks`)."""
    number = _sorted_number(documents)
    falls = number[:, 1:] < number[:, :-1]

    def explain(place: tuple[int, ...]) -> str:
        row, key = place
        before, after = documents[row, key : key + 2].tolist()
        return (
            f"documents[{row}, {key + 1}] is {after}, after {before}: "
            "numbers must not fall along a row, with padding, -1, at its end"
        )

    require_values("attention", lambda: ~falls, explain)
    return falls


def _sorted_number(documents: Tensor) -> Tensor:
    """Padding, numbered -1, comes last in a row: with a number above all others the row is sorted."""
    number = documents.long()
    return number.masked_fill(number < 0, torch.iinfo(number.dtype).max)


def key_intervals(
    queries: int,
    keys: int,
    device: torch.device,
    causal: bool = False,
    documents: Tensor | None = None,
    window: int = 0,
) -> Tensor:
    """(B, queries, 2) int32, or (1, queries, 2) where rows do not differ: the keys [first, end) that each query may
    attend to, the last query standing at the last key. Neither number falls from a query to the next.

    A row whose documents fall has the interval [-1, -1) everywhere, which `attention` answers with NaN.
    """
    if documents is not None:
        _check_documents(documents, documents.size(0), queries, keys)
    position = torch.arange(keys - queries, keys, dtype=torch.int32, device=device)[None]  # (1, Tq)
    first = torch.zeros_like(position)
    end = position + 1 if causal else torch.full_like(position, keys)
    if documents is not None:
        number = _sorted_number(documents).contiguous()
        first = torch.searchsorted(number, number, out_int32=True)[:, keys - queries :]
        its_end = torch.searchsorted(number, number, right=True, out_int32=True)[:, keys - queries :]
        # In the padding nothing, which begins where the padding does.
        end = end.minimum(torch.where(documents[:, keys - queries :] < 0, first, its_end))
    if window:
        window = min(window, queries + keys)  # it may be far above 31 bits
        first, end = first.maximum(position - window + 1), end.minimum(position + window)
    if queries > keys or documents is not None:  # elsewhere each query sees itself
        end = end.clamp(min=0)  # queries before the first key have none
        first = first.minimum(end)
    intervals = torch.stack((first, end), dim=-1)
    if documents is not None:
        intervals = intervals.masked_fill(_falls(documents).any(1)[:, None, None], -1)
    return intervals


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
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, do: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    if do is None and dlse is None:
        return None, None, None, None, None, None
    q, k, v, o, lse, intervals = ctx.saved_tensors
    uses_o = do is not None
    if do is None:  # lse alone, which does not depend on v, whose NaN times 0 would be NaN
        do, o, v = torch.zeros_like(o), torch.zeros_like(o), torch.zeros_like(v)
    dlse = torch.zeros_like(lse) if dlse is None else dlse
    dq, dk, dv = _attention_backward(q, k, v, o, lse, intervals, do, dlse, ctx.scale, ctx.soft_cap)
    return dq, dk, dv if uses_o else None, None, None, None


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
        padding at its end. A query attends within its document, and one in the padding to nothing. All queries of a
        row whose numbers fall give NaN, and have no gradient.
    window: only to keys less than this many places away; 0 for all.
    soft_cap: scores become soft_cap·tanh(score/soft_cap); 0 for none.
    return_lse: also (B, Hq, Tq) float32, the natural log-sum-exp of each query's scores; differentiable.
    intervals: from `key_intervals`, instead of causal, documents and window: layers that see alike share them. A query
        whose interval is none (outside of the keys, or before that of the query before) gives NaN.

    A query that may attend to nothing gives 0, and a log-sum-exp of -inf. The backward is deterministic, and cannot
    be differentiated again. Autocast changes nothing. Errors: ValueError, TypeError; with KERNELS_DEBUG=1 also where
    documents fall or an interval is none (`kernels.checks`).
    """
    scale, soft_cap = None if scale is None else float(scale), float(soft_cap)
    _check(q, k, v, scale, window, soft_cap)
    if documents is not None:
        _check_documents(documents, k.size(0), q.size(2), k.size(2))
    if intervals is None:
        intervals = key_intervals(q.size(2), k.size(2), q.device, causal, documents, window)
    elif causal or documents is not None or window:
        raise ValueError(
            "attention: intervals already say what causal, documents and window would; give one or the other"
        )
    else:
        intervals = _checked_intervals(intervals, q, k)
    scale = 1 / math.sqrt(q.size(-1)) if scale is None else scale
    o, lse = _attention(q, k, v, intervals, scale, soft_cap)
    return (o, lse) if return_lse else o


@once_per_signature
def _check(q: Tensor, k: Tensor, v: Tensor, scale: float | None, window: int, soft_cap: float) -> None:
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


def _check_documents(documents: Tensor, batch: int, queries: int, keys: int) -> None:
    if documents.is_floating_point() or documents.shape != (batch, keys) or queries > keys:
        raise ValueError(
            f"attention: documents are {documents.dtype} {tuple(documents.shape)} for {queries} queries; they must "
            f"be integers {(batch, keys)}, one for each key, with no more queries than keys"
        )


def _checked_intervals(intervals: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """The same, as the kernels read them."""
    _check_intervals(intervals, q)
    keys = k.size(2)

    def is_right() -> Tensor:
        first, end = intervals.unbind(-1)  # (B or 1, Tq) each
        rises = (intervals.diff(dim=1, prepend=intervals[:, :1]) >= 0).all(-1)
        return (first >= 0) & (first <= end) & (end <= keys) & rises

    def explain(place: tuple[int, ...]) -> str:
        row, query = place
        return (
            f"intervals[{row}, {query}] is {intervals[place].tolist()} for {keys} keys: "
            "it must be [first, end) within the keys, neither below that of the query before"
        )

    require_values("attention", is_right, explain)
    return intervals.contiguous()


@once_per_signature
def _check_intervals(intervals: Tensor, q: Tensor) -> None:
    queries = q.size(2)
    if intervals.dtype != torch.int32 or intervals.shape not in ((1, queries, 2), (q.size(0), queries, 2)):
        raise ValueError(
            f"attention: intervals are {intervals.dtype} {tuple(intervals.shape)} for q {tuple(q.shape)}; "
            "they must come from key_intervals, for these queries and keys"
        )


def spec() -> Spec:
    """What the lab checks, compiles and measures."""
    from kernels.attention_lab import describe

    return describe(attention, attention_reference)
