"""Who computes the operators: a backend is a record of functions, resolved once and handed to the modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from instructgpt.errors import UserError, suggestion
from instructgpt.model import cpu_ops

BACKENDS = ("auto", "naive", "sdpa", "triton")

_LOGITS_AT_ONCE = 1 << 26
"""Elements: from here on the logits of a loss are not held all at once. Computing them twice costs a third more of the
head's time, and keeping them three times their memory."""


@dataclass(frozen=True)
class Backend:
    """The operators, each with the signature of its reference in `kernels`."""

    name: str
    attention: Callable[..., Tensor]
    """(q, k, v, may_attend=None, causal=False, scale=None)"""
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    layer_norm: Callable[[Tensor, Tensor, Tensor | None, float], Tensor]
    rope: Callable[[Tensor, Tensor, Tensor], Tensor]
    swiglu: Callable[[Tensor, Tensor], Tensor]
    gelu: Callable[[Tensor], Tensor]
    cross_entropy: Callable[..., Tensor]
    """(logits, targets, label_smoothing=0.0, z_loss=0.0)"""
    linear_cross_entropy: Callable[..., Tensor]
    """(hidden, weight, targets, label_smoothing=0.0): head and loss in one"""
    linear_logprobs: Callable[..., Any]
    """(hidden, weight, targets, with_entropy=False): log-probabilities, or a pair of them and the entropy"""


def resolve_backend(name: str, device: torch.device) -> Backend:
    """The backend of this name, `auto` being the fastest that runs on `device`. Errors: `UserError`."""
    if name not in BACKENDS:
        raise UserError(f"--backend {name} is unknown{suggestion(name, BACKENDS)}")
    if name == "triton":
        where = "" if device.type == "cuda" else f", and they need a CUDA device, not {device.type}"
        raise UserError(f"--backend triton: this version has no Triton kernels for the model{where}; use sdpa")
    return naive() if name == "naive" else sdpa()


def naive() -> Backend:
    """The references, operator by operator: slow, and the judge of the others."""
    return Backend(
        name="naive",
        attention=kernels.attention_reference,
        rms_norm=kernels.rms_norm_reference,
        layer_norm=kernels.layer_norm_reference,
        rope=kernels.rope_reference,
        swiglu=kernels.swiglu_reference,
        gelu=kernels.gelu_reference,
        cross_entropy=kernels.cross_entropy_reference,
        linear_cross_entropy=kernels.linear_cross_entropy_reference,
        linear_logprobs=kernels.linear_logprobs_reference,
    )


def sdpa() -> Backend:
    """PyTorch's own fused operators."""
    return Backend(
        name="sdpa",
        attention=_sdpa_attention,
        rms_norm=_rms_norm,
        layer_norm=lambda x, weight, bias, eps: F.layer_norm(x, weight.shape, weight, bias, eps),
        rope=_rope,
        swiglu=lambda gate, up: F.silu(gate) * up,
        gelu=lambda x: F.gelu(x, approximate="tanh"),
        cross_entropy=_cross_entropy,
        linear_cross_entropy=_linear_cross_entropy,
        linear_logprobs=_linear_logprobs,
    )


def _sdpa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    may_attend: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    queries, keys = q.size(-2), k.size(-2)
    # PyTorch's `is_causal` aligns the first query with the first key, ours the last with the last, and it takes no
    # mask besides: it serves plain square attention only. A single last query sees everything anyway.
    square = causal and may_attend is None and queries == keys
    if causal and not square and queries > 1:
        past = kernels.causal_mask(queries, keys, q.device)
        may_attend = past if may_attend is None else may_attend & past
    if q.device.type == "cpu":
        return cpu_ops.attention(q, k, v, may_attend, square, scale)
    grouped = q.size(1) != k.size(1)
    return F.scaled_dot_product_attention(q, k, v, may_attend, is_causal=square, scale=scale, enable_gqa=grouped)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if x.device.type == "cpu":
        return cpu_ops.rms_norm(x, weight, eps)
    return F.rms_norm(x, weight.shape, weight, eps)


def _rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return cpu_ops.rope(x, cos, sin) if x.device.type == "cpu" else kernels.rope_reference(x, cos, sin)


def _cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    return losses + z_loss * torch.logsumexp(logits, dim=-1).square() if z_loss else losses


def _are_many_logits(hidden: Tensor, weight: Tensor) -> bool:
    return hidden.size(0) * weight.size(0) > _LOGITS_AT_ONCE


def _linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    if _are_many_logits(hidden, weight):
        return kernels.linear_cross_entropy_chunked(hidden, weight, targets, label_smoothing)
    return _cross_entropy(F.linear(hidden, weight), targets, label_smoothing)


def _linear_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, with_entropy: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    if _are_many_logits(hidden, weight):
        return kernels.linear_logprobs_chunked(hidden, weight, targets, with_entropy)
    logits = F.linear(hidden, weight)
    logprobs = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)  # (N, V)
    chosen = logprobs.gather(-1, targets[:, None]).squeeze(-1)  # (N,)
    return (chosen, -(logprobs.exp() * logprobs).sum(-1)) if with_entropy else chosen
