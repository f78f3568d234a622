"""Who computes the operators: a backend is a record of functions, resolved once and handed to the modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from instructgpt.errors import UserError, suggestion
from instructgpt.model import cpu_ops
from instructgpt.model.cache import Feed
from instructgpt.model.pages import PageAttention
from instructgpt.model.runs import RunAttention, fused_partial, plain_partial
from kernels import launch
from kernels.checks import known_targets, require_targets

BACKENDS = ("auto", "naive", "sdpa", "triton")

_LOGITS_AT_ONCE = 1 << 26
"""Elements: from here on the logits of a loss are not held all at once. Computing them twice costs a third more of the
head's time, and keeping them three times their memory."""

_IGNORED = -100
"""The target of a row without a loss, as the kernels and PyTorch have it."""


@dataclass(frozen=True)
class Backend:
    """The operators; where nothing else is said, each with the signature of its reference in `kernels`.

    Each is a function with a name, so that a model can be pickled and copied.
    """

    name: str
    visibility: Callable[[int, int, Tensor | None, torch.device], Any]
    """(queries, keys, documents (B, keys) or None, device) -> which keys each query may attend to, in the form that
    this backend's attention takes. Made once a forward, used by every layer.

    Attention is causal, the last query standing at the last key, and stays within keys of one document number, which
    never falls along a row. Numbers below 0 are padding at a row's end, whose results nobody reads."""
    attention: Callable[[Tensor, Tensor, Tensor, Any], Tensor]
    """(q (B, H, queries, D), k and v (B, K, keys, D), visibility) -> (B, H, queries, D)"""
    cached_attention: Callable[[Feed], Callable[[int, Tensor, Tensor, Tensor], Tensor]]
    """The new tokens of a forward with a cache -> (layer, q (1, H, N, D), k, v (1, K, N, D)) -> (1, H, N, D): keeps k
    and v, and attends to all that stands in the cache up to each token, without gradient. Made once a forward."""
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    layer_norm: Callable[[Tensor, Tensor, Tensor | None, float], Tensor]
    rotation: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """cos and sin (B, T, D/2) of RoPE -> the two that this backend's `rope` takes. Made once a forward, used by every
    layer."""
    rope: Callable[[Tensor, Tensor, Tensor], Tensor]
    swiglu: Callable[[Tensor, Tensor], Tensor]
    gelu: Callable[[Tensor], Tensor]
    cross_entropy: Callable[..., Tensor]
    """(logits, targets, label_smoothing=0.0, z_loss=0.0)"""
    linear_cross_entropy: Callable[..., Tensor]
    """(hidden, weight, targets, label_smoothing=0.0): head and loss in one"""
    linear_logprobs: Callable[..., Any]
    """(hidden, weight, targets, with_entropy=False): log-probabilities, or a pair of them and the entropy"""
    quantize: Callable[[Tensor, int, int], tuple[Tensor, Tensor]]
    """(weight (M, K), bits, group) -> integers and scales, as this backend's `quantized_linear` takes them"""
    quantized_linear: Callable[[Tensor, Tensor, Tensor, int], Tensor]


def resolve_backend(name: str, device: torch.device) -> Backend:
    """The backend of this name, `auto` being the fastest that runs on `device`. Errors: `UserError`."""
    if name not in BACKENDS:
        raise UserError(f"--backend {name} is unknown{suggestion(name, BACKENDS)}")
    if name == "triton" and (obstacle := _obstacle_to_triton(device)):
        raise UserError(f"--backend triton: {obstacle}; use sdpa")
    if name == "auto":
        name = "triton" if device.type == "cuda" and not _obstacle_to_triton(device) else "sdpa"
    return {"naive": naive, "sdpa": sdpa, "triton": triton}[name]()


def _obstacle_to_triton(device: torch.device) -> str:
    """Why the kernels cannot run on `device`; empty where they can."""
    if not launch.AVAILABLE:
        return "Triton is not installed here"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return "" if major >= 8 else f"the kernels need compute capability 8.0, this GPU has {major}.{minor}"
    if device.type == "cpu" and launch.INTERPRETED:
        return ""
    return f"the kernels need a CUDA device, not {device.type} (TRITON_INTERPRET=1 runs them on a CPU, very slowly)"


def under_autocast(tensor: Tensor) -> Tensor:
    """The tensor in the format that autocast, where it is on, gives to PyTorch's own products; it knows no others."""
    device = tensor.device.type
    if not torch.is_autocast_enabled(device) or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))


def _cos_and_sin(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return cos, sin


def without_gradients(backend: Backend, device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend for a while of generation, in which queries and keys have this dtype: what is faster where nothing
    is differentiated, and may round otherwise. The same backend where there is nothing such."""
    if backend.name != "sdpa" or device.type != "cpu":
        return backend
    return replace(
        backend, rms_norm=_fused_rms_norm, rotation=partial(cpu_ops.rotation, dtype=dtype), rope=cpu_ops.rotated
    )


def naive() -> Backend:
    """The references, operator by operator: slow, and the judge of the others."""
    return Backend(
        name="naive",
        visibility=_naive_visibility,
        attention=_naive_attention,
        cached_attention=_naive_cached_attention,
        rms_norm=kernels.rms_norm_reference,
        layer_norm=kernels.layer_norm_reference,
        rotation=_cos_and_sin,
        rope=kernels.rope_reference,
        swiglu=kernels.swiglu_reference,
        gelu=kernels.gelu_reference,
        cross_entropy=kernels.cross_entropy_reference,
        linear_cross_entropy=kernels.linear_cross_entropy_reference,
        linear_logprobs=kernels.linear_logprobs_reference,
        quantize=kernels.quantize,
        quantized_linear=kernels.quantized_linear_reference,
    )


def _naive_visibility(queries: int, keys: int, documents: Tensor | None, device: torch.device) -> Tensor | None:
    return documents


def _naive_attention(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Tensor:
    return kernels.attention_reference(q, k, v, causal=True, documents=documents)


def _naive_cached_attention(feed: Feed) -> RunAttention:
    return RunAttention(feed, plain_partial, partial(_naive_attention, documents=None))


def triton() -> Backend:
    """Our kernels; in a compiled step, those that no compiler makes, attention and the head with its loss.

    The others pass over memory once, and what would pass before and after them cannot be fused with what a compiler
    does not see into: a step of GPT-2 on an H100 made 354,000 tokens/s with all of our kernels in its graph, 399,000
    with norms and activations left to the compiler, 368,000 uncompiled.
    """
    return Backend(
        name="triton",
        visibility=_triton_visibility,
        attention=_triton_attention,
        cached_attention=PageAttention,
        rms_norm=_triton_rms_norm,
        layer_norm=_triton_layer_norm,
        rotation=_cos_and_sin,
        rope=_triton_rope,
        swiglu=_triton_swiglu,
        gelu=_triton_gelu,
        cross_entropy=kernels.cross_entropy,
        linear_cross_entropy=_triton_linear_cross_entropy,
        linear_logprobs=_triton_linear_logprobs,
        quantize=kernels.quantize,
        quantized_linear=kernels.quantized_linear,
    )


def _triton_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return (_rms_norm if torch.compiler.is_compiling() else kernels.rms_norm)(x, weight, eps)


def _triton_layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    return (_layer_norm if torch.compiler.is_compiling() else kernels.layer_norm)(x, weight, bias, eps)


def _triton_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return (_rope if torch.compiler.is_compiling() else kernels.rope)(x, cos, sin)


def _triton_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return (_swiglu if torch.compiler.is_compiling() else kernels.swiglu)(gate, up)


def _triton_gelu(x: Tensor) -> Tensor:
    return (_gelu if torch.compiler.is_compiling() else kernels.gelu)(x)


def _triton_visibility(queries: int, keys: int, documents: Tensor | None, device: torch.device) -> Tensor:
    return kernels.key_intervals(queries, keys, device, causal=True, documents=documents)


def _triton_linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    return kernels.linear_cross_entropy(under_autocast(hidden), under_autocast(weight), targets, label_smoothing)


def _triton_linear_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, with_entropy: bool = False) -> Any:
    return kernels.linear_logprobs(under_autocast(hidden), under_autocast(weight), targets, with_entropy)


def _triton_attention(q: Tensor, k: Tensor, v: Tensor, intervals: Tensor) -> Tensor:
    return kernels.attention(q, k, v, intervals=intervals)


def sdpa() -> Backend:
    """PyTorch's own fused operators."""
    return Backend(
        name="sdpa",
        visibility=_sdpa_visibility,
        attention=_sdpa_attention,
        cached_attention=_sdpa_cached_attention,
        rms_norm=_rms_norm,
        layer_norm=_layer_norm,
        rotation=_cos_and_sin,
        rope=_rope,
        swiglu=_swiglu,
        gelu=_gelu,
        cross_entropy=_cross_entropy,
        linear_cross_entropy=_linear_cross_entropy,
        linear_logprobs=_linear_logprobs,
        quantize=_sdpa_quantize,
        quantized_linear=_sdpa_quantized_linear,
    )


def _sdpa_visibility(queries: int, keys: int, documents: Tensor | None, device: torch.device) -> Tensor | None:
    """(1 or B, 1, queries, keys) bool, True where a query may attend, or on a CPU what is added to scores, 0 or -inf;
    None where plain causality says it all: no documents, and one query or as many as keys.

    documents: (B, keys) int64, the number of each key's own; the queries are the last of the keys.
    """
    # PyTorch's own causality aligns the first query with the first key, ours the last with the last: only a square is
    # the same, and a single query, which sees everything.
    if documents is None:
        return None if queries in (1, keys) else kernels.causal_mask(queries, keys, device)[None, None]
    is_same = documents[:, keys - queries :, None] == documents[:, None, :]  # (B, queries, keys)
    may_attend = (is_same & kernels.causal_mask(queries, keys, device))[:, None]
    return cpu_ops.attention_bias(may_attend) if device.type == "cpu" else may_attend


def _sdpa_attention(q: Tensor, k: Tensor, v: Tensor, may_attend: Tensor | None) -> Tensor:
    is_causal = may_attend is None and q.size(-2) > 1
    if q.device.type == "cpu":
        return cpu_ops.attention(q, k, v, may_attend, is_causal)
    grouped = q.size(1) != k.size(1)
    return F.scaled_dot_product_attention(q, k, v, may_attend, is_causal=is_causal, enable_gqa=grouped)


def _sdpa_cached_attention(feed: Feed) -> RunAttention:
    fused = fused_partial if feed.cache.device.type == "cpu" else plain_partial
    return RunAttention(feed, fused, partial(_sdpa_attention, may_attend=None))


def _sdpa_quantize(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    if cpu_ops.can_multiply_packed(weight, bits, group):
        return cpu_ops.quantize(weight, bits, group)
    return kernels.quantize(weight, bits, group)


def _sdpa_quantized_linear(x: Tensor, packed: Tensor, scales: Tensor, bits: int) -> Tensor:
    if cpu_ops.is_packed(scales):
        return cpu_ops.quantized_linear(x, packed, scales, bits)
    return kernels.quantized_linear_reference(x, packed, scales, bits)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if x.device.type == "cpu":
        return cpu_ops.rms_norm(x, weight, eps)
    return F.rms_norm(x, weight.shape, weight, eps)


def _fused_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)


def _rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return cpu_ops.rope(x, cos, sin) if x.device.type == "cpu" else kernels.rope_reference(x, cos, sin)


def _cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Tensor:
    require_targets("cross_entropy", targets, logits.size(-1), _IGNORED)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    is_ignored = targets == _IGNORED
    targets, one_or_nan = known_targets(targets.masked_fill(is_ignored, 0), logits.size(-1))
    losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    if z_loss:
        losses = losses + z_loss * torch.logsumexp(logits, dim=-1).square()
    return (losses * one_or_nan).masked_fill(is_ignored, 0.0)


def _are_many_logits(hidden: Tensor, weight: Tensor) -> bool:
    return hidden.size(0) * weight.size(0) > _LOGITS_AT_ONCE


def _linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    if _are_many_logits(hidden, weight):
        return kernels.linear_cross_entropy_chunked(
            under_autocast(hidden), under_autocast(weight), targets, label_smoothing
        )
    return logits_then_losses(hidden, weight, targets, label_smoothing)


def logits_then_losses(hidden: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """`linear_cross_entropy` by way of all logits: the fastest way for a compiler, where there is memory for them."""
    return _cross_entropy(F.linear(hidden, weight), targets, label_smoothing)


def _linear_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, with_entropy: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    if _are_many_logits(hidden, weight):
        hidden, weight = under_autocast(hidden), under_autocast(weight)
        return kernels.linear_logprobs_chunked(hidden, weight, targets, with_entropy)
    require_targets("linear_logprobs", targets, len(weight))
    targets, one_or_nan = known_targets(targets, len(weight))
    logits = F.linear(hidden, weight)
    logprobs = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)  # (N, V)
    chosen = logprobs.gather(-1, targets[:, None]).squeeze(-1) * one_or_nan  # (N,)
    return (chosen, -(logprobs.exp() * logprobs).sum(-1)) if with_entropy else chosen
