"""A model as it is generated from: its own modules, over weights in the format that they are multiplied in.

Under autocast, every product casts its weight first. In training that is once a step; in generation once a token, which
takes longer than the product. So weights are cast once for all tokens, and on a CPU put in the order its products read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instructgpt.model import cpu_ops
from instructgpt.model.adapters import AdaptedLinear, LowRank, adapters_of
from instructgpt.model.attention import Attention
from instructgpt.model.backend import without_gradients
from instructgpt.model.quantize import QuantizedLinear
from instructgpt.model.transformer import Norm, Transformer
from instructgpt.model.tree import with_exchanged


class CastLinear(nn.Module):
    """`linear` as autocast computes it, its weight cast already."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        self.weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.dtype), self.weight, self.bias)


class Beside(nn.Module):
    """A layer with an adapter in two products, whatever its parts: A is one matrix, B has zeros between them."""

    def __init__(self, made: nn.Module, adapter: LowRank, base: nn.Linear | QuantizedLinear, dtype: torch.dtype):
        """made: what computes the base's part, in `dtype`."""
        super().__init__()
        self.made, self.dtype = made, dtype
        self.gain = self.offset = None
        A, B = adapter.as_two()
        if adapter.is_dora:
            gain = adapter.gain(base).detach()  # (out,)
            self.gain, B = gain.to(dtype), gain[:, None] * B
            self.offset = None if base.bias is None else ((1 - gain) * base.bias.detach()).to(dtype)
        self.A, self.B = A.detach().to(dtype), B.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2).to(self.dtype)
        y = self.made(rows).to(self.dtype)
        if self.gain is not None:
            y = y * self.gain if self.offset is None else torch.addcmul(self.offset, y, self.gain)
        return torch.addmm(y, F.linear(rows, self.A), self.B.T).view(*x.shape[:-1], -1)


def computed_dtype(model: Transformer) -> torch.dtype:
    """What the model computes keys and values in, under the caller's autocast if there is one."""
    device = model.device.type
    if isinstance(model.packed_head, cpu_ops.PackedLinear | cpu_ops.PackedIntegers):
        return torch.bfloat16
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.embedding.weight.dtype


def for_inference(model: Transformer) -> Transformer:
    """`model` for a while of generation, without gradients: it shares what is not multiplied by, and holds copies of
    the weights as they are now, for the caller's autocast. Where nothing would be gained it is the model itself.

    On a CPU, packed integers are multiplied in bfloat16 in any case; then the rest of the model is, too. An adapter is
    the one that is in use now, whichever is used later.
    """
    dtype = computed_dtype(model)
    on_cpu = model.device.type == "cpu"
    layers = [layer for layer in model.modules() if isinstance(layer, QuantizedLinear)]
    is_quantized = bool(layers) and all(layer.becomes_packed for layer in layers)
    make: Make | None = None
    if on_cpu and cpu_ops.can_pack() and (dtype == torch.bfloat16 or is_quantized):
        make, dtype = cpu_ops.PackedLinear, torch.bfloat16
    elif dtype != model.embedding.weight.dtype:
        make = partial(CastLinear, dtype=dtype)
    backend = without_gradients(model.backend, model.device, dtype)
    is_as_trained = adapters_of(model) or any(layer.for_training for layer in layers)
    if make is None and backend is model.backend and not is_as_trained:
        return model
    twin = with_exchanged(model, partial(_exchanged, make=make, dtype=dtype))
    for module in twin.modules():
        if isinstance(module, (Transformer, Attention, Norm)):  # these are the twin's own
            module.backend = backend
    if make is not None and model.packed_head is None:
        twin.packed_head = make(model.output_weight, None)
    return twin.eval()


Make = Callable[[Tensor, Tensor | None], nn.Module]
"""(weight, bias) -> what computes with them"""


def _exchanged(layer: nn.Module, make: Make | None, dtype: torch.dtype) -> nn.Module | None:
    """What computes in a linear layer's place; None for other modules, and for what stays as it is."""
    if isinstance(layer, AdaptedLinear):
        alone = layer.active is None or layer.merged_name == layer.active
        base = layer.alone() if alone else layer.base
        made = _exchanged(base, make, dtype) or base
        return made if alone or layer.in_use is None else Beside(made, layer.in_use, layer.base, dtype)
    if isinstance(layer, nn.Linear) and make is not None:
        return make(layer.weight, layer.bias)
    if isinstance(layer, QuantizedLinear):
        layer = layer.for_generation()
        if make is cpu_ops.PackedLinear and cpu_ops.is_packed(layer.scales):
            return cpu_ops.PackedIntegers(layer.packed, layer.scales, layer.bias, layer.bits)
        return layer
    return None
