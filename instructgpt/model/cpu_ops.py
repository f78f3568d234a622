"""Operators for a CPU, where PyTorch's own leave much of a training step's time: same results, hand-written backward.

Measured on 2 cores with AVX512-BF16, forward and backward of one layer (batch 16, T 128, 4 heads of 64, width 256):

    attention in bfloat16   17.0 ms as one fused op, 6.0 ms as two matrix products around a softmax
    RMSNorm                  1.7 ms as composed by PyTorch, 0.7 ms here
    RoPE                     1.6 ms as composed by autograd, 0.8 ms here

Each equation and gradient stands in the file of the same name in `kernels`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LONGEST_MATRIX = 512
"""Keys up to which the whole (T, T) matrix of attention weights is the fast way; it grows with T² in memory."""


def attention_bias(may_attend: Tensor) -> Tensor:
    """What is added to scores, 0 or -inf, in the format that autocast gives to products. Made once a forward, and not
    in every layer, of which it would be a fifth of attention's time."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    return torch.zeros_like(may_attend, dtype=dtype).masked_fill_(~may_attend, -math.inf)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, is_causal: bool) -> Tensor:
    """As PyTorch's `scaled_dot_product_attention` defines it, heads of k and v as many as q's or a divisor of them.

    bias: `attention_bias` of which keys may be attended to, or that itself, as bool.
    """
    group = q.size(1) // k.size(1)
    if bias is not None and bias.dtype != q.dtype:
        bias = (attention_bias(bias) if bias.dtype == torch.bool else bias).to(q.dtype)
    if q.dtype != torch.bfloat16 or k.size(-2) > LONGEST_MATRIX:
        return F.scaled_dot_product_attention(q, k, v, bias, is_causal=is_causal, enable_gqa=group > 1)
    if group > 1:
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)  # (B, Hq, Tk, D)
    scores = (q * (1 / math.sqrt(q.size(-1)))) @ k.transpose(-2, -1)  # (B, H, Tq, Tk)
    if is_causal:
        bias = attention_bias(torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril())
    if bias is not None:
        scores = scores + bias.to(q.dtype)  # not filled in: the gradient of a sum passes through without a copy
    return torch.softmax(scores, dim=-1) @ v


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square_().div_(x.size(-1))
        scale = mean_square.add_(eps).rsqrt_().to(x.dtype)  # (..., 1)
        normed = x * scale
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        normed, scale, weight = ctx.saved_tensors
        N = normed.size(-1)
        product = (dy * normed).reshape(-1, N)
        dweight = product.sum(0, dtype=weight.dtype)
        mean = (product @ (weight / N).to(dy.dtype)).view(scale.shape)  # mean_j(g_j·x̂_j), (..., 1)
        return torch.addcmul(dy * weight.to(dy.dtype), normed, mean, value=-1).mul_(scale), dweight, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `kernels.rms_norm_reference`, rounding in between to the dtype of x."""
    return _RMSNorm.apply(x, weight, eps)


class _RoPE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)  # (B, 1, T, D/2)
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _rotated(dy, cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The halves are computed where they belong: concatenated, they would be written twice."""
    y = (x.unflatten(-1, (2, -1)) * cos.unsqueeze(-2)).flatten(-2)
    (first, second), (a, b) = y.chunk(2, dim=-1), x.chunk(2, dim=-1)
    first.addcmul_(b, sin, value=-1)
    second.addcmul_(a, sin)
    return y


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As `kernels.rope_reference`, rounding in between to the dtype of x."""
    return _RoPE.apply(x, cos, sin)
