"""Operators for a CPU, where PyTorch's own leave much of a training step's time: same results, hand-written backward.

Measured on 2 cores with AVX512-BF16, forward and backward of one layer (batch 16, T 128, 4 heads of 64, width 256):

    attention in bfloat16   17.0 ms as one fused op, 6.0 ms as two matrix products around a softmax
    RMSNorm                  1.7 ms as composed by PyTorch, 0.7 ms here
    RoPE                     1.6 ms as composed by autograd, 0.8 ms here

Each equation and gradient stands in the file of the same name in `kernels`.

For generation, products with weights of 16, 8 or 4 bits in the order that PyTorch's own CPU kernels read. One row by
384 × 1,152 on one core: float32 67 µs; bfloat16 as `F.linear` has it 89 µs, packed 55 µs; 8 bits 33 µs, 4 bits 30 µs.
PyTorch's products with quantized activations are as fast at one row and faster at many, but quantize all rows with one
scale: what a row gives would depend on the others in its batch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels

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
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None, None]:  # type: ignore[override]
        """dx (..., N) and dweight (N,), None for eps. Saved are x̂ = x·r (..., N), r (..., 1) and the weight."""
        normed, scale, weight = ctx.saved_tensors
        N = normed.size(-1)
        product = (dy * normed).reshape(-1, N)
        dweight = product.sum(0, dtype=weight.dtype) if ctx.needs_input_grad[1] else None
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


# ---- without gradients, for generation


def rotation(cos: Tensor, sin: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin (B, T, D/2) as `rotated` takes them, each (B, 1, T, D): (cos, cos) and (-sin, sin)."""
    return torch.cat((cos, cos), -1)[:, None].to(dtype), torch.cat((-sin, sin), -1)[:, None].to(dtype)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rope` in three operators: a token's rotations wait for their number, not for what they compute.

    One token of 9 heads of 64: 6 µs, as above 26.
    """
    return torch.addcmul(x * cos, x.roll(x.size(-1) // 2, -1), sin)


# ---- packed weights, for generation


class PackedLinear(nn.Module):
    """`linear` in bfloat16, its weight in oneDNN's own order. Without gradients, and without a look at later changes of
    the weight."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().bfloat16())
        self.bias = None if bias is None else bias.detach().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.bfloat16(), self.weight, self.bias, "none", [], "")


class PackedIntegers(nn.Module):
    """The same from integers and scales of `quantize`."""

    def __init__(self, packed: Tensor, scales: Tensor, bias: Tensor | None, bits: int):
        super().__init__()
        self.packed, self.scales, self.bits = packed, scales.bfloat16(), bits
        self.bias = None if bias is None else bias.detach().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.bfloat16().flatten(0, -2)
        y = _packed_product(rows, self.packed, self.scales, self.bits)
        return (y if self.bias is None else y.add_(self.bias)).view(*x.shape[:-1], -1)


def can_pack() -> bool:
    """oneDNN is in this PyTorch, and this CPU multiplies bfloat16."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


_LARGEST_GATHERED = 32
"""Rows from which on 8 bits are unpacked before the product, which then is that of any matrices."""


def can_multiply_packed(weight: Tensor, bits: int, group: int, shape: tuple[int, int] | None = None) -> bool:
    """PyTorch's products with packed integers are made for weights like this one, or of this shape; on other shapes
    they read beyond their ends."""
    M, K = shape or weight.shape
    is_even = M % 16 == 0 and K % 32 == 0 and (bits == 8 or K % group == 0)
    op = "_weight_int8pack_mm" if bits == 8 else "_weight_int4pack_mm_for_cpu"
    return weight.device.type == "cpu" and weight.dtype != torch.float64 and is_even and hasattr(torch.ops.aten, op)


def quantize(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """weight (M, K) as `quantized_linear` takes it: int8 (M, K) and a scale for each row, bfloat16 (M,); or 4 bits as
    PyTorch packs them, uint8 (M, K/2), and a scale and an offset, which is 0, for each group, bfloat16 (K/group, M, 2).
    """
    if bits == 8:
        scales = (weight.detach().abs().amax(1) / 127).bfloat16()  # (M,)
        step = scales.float()[:, None]
        integers = torch.where(step > 0, weight.detach().float() / step, 0.0).round().clamp(-127, 127)
        return integers.to(torch.int8), scales
    return repacked(*kernels.quantize(weight, 4, group))


def repacked(packed: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """4 bits of `kernels.quantize`, whose groups divide their rows, as `quantize` gives them."""
    integers = kernels.dequantize(packed, torch.ones_like(scales), 4)  # (M, K), from -7 to 7
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu((integers + 8).int(), 1)
    return packed, torch.stack((scales.T, torch.zeros_like(scales.T)), dim=-1).bfloat16()


def dequantize(packed: Tensor, scales: Tensor, bits: int) -> Tensor:
    """ŵ (M, K) of `quantize`, float32."""
    if bits == 8:
        return _unpacked(packed, scales, torch.float32)
    groups, M, _ = scales.shape
    K = 2 * packed.numel() // M
    # Only the product knows the order of packed bits: with the unit matrix and scales of 1 it gives the integers.
    one = torch.stack((torch.ones_like(scales[..., 0]), torch.zeros_like(scales[..., 0])), dim=-1)
    integers = _packed_product(torch.eye(K, dtype=torch.bfloat16), packed, one, bits).T  # (M, K)
    return integers.float() * scales[..., 0].T.float().repeat_interleave(K // groups, dim=1)


def is_packed(scales: Tensor) -> bool:
    """They are of `quantize` here, not of `kernels.quantize`, which gives (M, groups)."""
    return scales.dim() != 2


def quantized_linear(x: Tensor, packed: Tensor, scales: Tensor, bits: int) -> Tensor:
    """x (..., K), packed and scales from `quantize` -> (..., M) in the dtype of x. x is rounded to bfloat16 first."""
    if x.requires_grad and bits == 8:
        return F.linear(x, _unpacked(packed, scales, x.dtype))
    scales = scales.bfloat16()  # they are, unless the whole model was cast
    y = _packed_product(x.flatten(0, -2).bfloat16(), packed, scales, bits)
    return y.to(x.dtype).view(*x.shape[:-1], -1)


def _packed_product(rows: Tensor, packed: Tensor, scales: Tensor, bits: int) -> Tensor:
    """rows (N, K) -> (N, M), all in bfloat16 but the integers."""
    if bits == 4:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(rows, packed, rows.size(1) // scales.size(0), scales)
    if rows.size(0) > _LARGEST_GATHERED:
        return F.linear(rows, _unpacked(packed, scales, rows.dtype))
    return torch.ops.aten._weight_int8pack_mm(rows, packed, scales)


def _unpacked(packed: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """ŵ (M, K) of 8 bits."""
    return packed.to(dtype) * scales.to(dtype)[:, None]
