"""Weights of 8 or 4 bits: every linear layer of the blocks is exchanged for one that is quantized.

Generating a token reads every weight once and multiplies little, so fewer bytes are less time. The embedding stays as
it is, for it is looked up. The head's errors go into the logits undamped: it stays, too, except on a CPU, where it has
8 bits; in a small model with many tokens it is a quarter of all bytes.

Training adapters beside such weights (`adapters.py`) needs few bytes for another reason: that of memory. A batch has
many rows, for which weights are unpacked before the product, in the forward and once more in the backward (Dettmers et
al. 2023, section 3), so that no unpacked weight is kept between the two.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from instructgpt.errors import UserError, suggestion
from instructgpt.model import cpu_ops
from instructgpt.model.backend import Backend, under_autocast
from instructgpt.model.transformer import Transformer
from instructgpt.model.tree import linear_of

FORMATS = {"int8": 8, "int4": 4}
"""Bits of a weight by the name that --quantize uses."""
_HEAD_BITS = 8
_GROUP = 64
_TRAINED_BESIDE = (64, 32)
"""Weights of 4 bits that share a scale in training: as many as QLoRA's, or half of them where these do not divide."""


class QuantizedLinear(nn.Module):
    """What `linear` computes, from integers and a scale for each group of them. No gradient reaches the weights."""

    packed: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear, backend: Backend, bits: int, group: int, for_training: bool = False):
        super().__init__()
        self.backend, self.bits, self.for_training = backend, bits, for_training
        self.in_features, self.out_features = linear.in_features, linear.out_features
        if for_training and bits == 4:  # a CPU's own order of 4 bits cannot be unpacked; bfloat16 is what it has then
            packed, scales = kernels.quantize(linear.weight, bits, group)
            scales = scales.bfloat16()
        else:
            packed, scales = backend.quantize(linear.weight, bits, group)
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        x = under_autocast(x)
        if self.for_training:
            y = _FrozenProduct.apply(x, self.packed, self.scales, self.bits)
        else:
            y = self.backend.quantized_linear(x, self.packed, self.scales, self.bits)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def dequantized(self) -> Tensor:
        """ŵ (out, in) in float32."""
        return _dequantized(self.packed, self.scales, self.bits, self.in_features)

    def for_generation(self) -> QuantizedLinear:
        """The same weights in the order that products of few rows read."""
        if not self.for_training:
            return self
        twin = copy.copy(self)
        twin.__dict__["_buffers"] = dict(self._buffers)
        twin.for_training = False
        if self.becomes_packed and not cpu_ops.is_packed(self.scales):
            twin.packed, twin.scales = cpu_ops.repacked(self.packed, self.scales)
        return twin

    @property
    def becomes_packed(self) -> bool:
        """A CPU's own products take these weights, as they are or by `for_generation`."""
        if cpu_ops.is_packed(self.scales) or not self.for_training or self.bits == 8:
            return cpu_ops.is_packed(self.scales)
        group = self.in_features // self.scales.size(1)
        return cpu_ops.can_multiply_packed(self.scales, 4, group, (self.out_features, self.in_features))


class _FrozenProduct(torch.autograd.Function):
    """x (..., in) times ŵᵀ. Only x has a gradient, dx = dy ŵ, and only the integers are kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, scales: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(packed, scales)
        ctx.bits, ctx.width = bits, x.size(-1)
        return F.linear(x, _dequantized(packed, scales, bits, x.size(-1)).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        packed, scales = ctx.saved_tensors
        return dy @ _dequantized(packed, scales, ctx.bits, ctx.width).to(dy.dtype), None, None, None


def _dequantized(packed: Tensor, scales: Tensor, bits: int, width: int) -> Tensor:
    """ŵ (out, in) in float32, from any of the orders that there are."""
    if cpu_ops.is_packed(scales):
        return cpu_ops.dequantize(packed, scales, bits)
    return kernels.dequantize(packed, scales.float(), bits)[:, :width]


def quantize(model: Transformer, to: str, group: int = _GROUP, for_training: bool = False) -> Transformer:
    """The same model with the blocks' weights in `to` (int8 or int4), changed in place.

    group: weights that share a scale; 8 bits on a CPU have one for each row. for_training: adapters will be trained
    beside these weights; then 4 bits choose their group by themselves, and otherwise the model is for inference alone.
    Raises UserError for another format, weights that are in few bits already, and with `for_training` for 4 bits where
    no group divides a width.
    """
    if to not in FORMATS:
        raise UserError(f"--quantize {to} is unknown{suggestion(to, FORMATS)}")
    if any(isinstance(module, QuantizedLinear) for module in model.modules()):
        raise UserError(f"--quantize {to}: the model's weights are in few bits already")
    bits = FORMATS[to]
    for module in list(model.blocks.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                size = _group_for(child, name) if for_training and bits == 4 else group
                setattr(module, name, QuantizedLinear(child, model.backend, bits, size, for_training))
    if not for_training and cpu_ops.can_multiply_packed(model.output_weight, _HEAD_BITS, group):
        head = linear_of(nn.Parameter(model.output_weight, requires_grad=False), None)
        model.packed_head = QuantizedLinear(head, model.backend, _HEAD_BITS, group)
    return model


def _group_for(linear: nn.Linear, name: str) -> int:
    for group in _TRAINED_BESIDE:
        if linear.in_features % group == 0:
            return group
    raise UserError(
        f"--base-format int4 has a scale for {' or '.join(map(str, _TRAINED_BESIDE))} weights, and {name} is "
        f"{linear.in_features} wide: use int8"
    )


@torch.no_grad()
def unquantize(model: Transformer) -> Transformer:
    """The same model with its weights of few bits as numbers again, which they are rounded to for good."""
    for module in list(model.blocks.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, QuantizedLinear):
                weight = child.dequantized().to(model.embedding.weight.dtype)
                setattr(module, name, linear_of(nn.Parameter(weight), child.bias))
    model.packed_head = None
    return model
