"""A model as it is generated from: its own modules, over weights in the format that they are multiplied in.

Under autocast, every product casts its weight first. In training that is once a step; in generation once a token, which
takes longer than the product. So weights are cast once for all tokens, and on a CPU put in the order its products read.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instructgpt.model import cpu_ops
from instructgpt.model.quantize import QuantizedLinear
from instructgpt.model.transformer import Transformer


class CastLinear(nn.Module):
    """`linear` as autocast computes it, its weight cast already."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        self.weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.dtype), self.weight, self.bias)


def computed_dtype(model: Transformer) -> torch.dtype:
    """What the model computes keys and values in, under the caller's autocast if there is one."""
    device = model.device.type
    if isinstance(model.packed_head, cpu_ops.PackedLinear):
        return torch.bfloat16
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.embedding.weight.dtype


def for_inference(model: Transformer) -> Transformer:
    """`model` for a while of generation, without gradients: it shares what is not multiplied by, and holds copies of
    the weights as they are now, for the caller's autocast. Where nothing would be gained it is the model itself.

    On a CPU, packed integers are multiplied in bfloat16 in any case; then the rest of the model is, too.
    """
    dtype = computed_dtype(model)
    on_cpu = model.device.type == "cpu"
    layers = [layer for layer in model.modules() if isinstance(layer, QuantizedLinear)]
    is_quantized = bool(layers) and all(cpu_ops.is_packed(layer.scales) for layer in layers)
    if on_cpu and cpu_ops.can_pack() and (dtype == torch.bfloat16 or is_quantized):
        make: Make = cpu_ops.PackedLinear
    elif dtype != model.embedding.weight.dtype:
        make = partial(CastLinear, dtype=dtype)
    else:
        return model
    twin = _exchanged(model, make)
    twin.packed_head = make(model.output_weight, None)
    return twin.eval()


Make = Callable[[Tensor, Tensor | None], nn.Module]
"""(weight, bias) -> what computes with them"""
Module = TypeVar("Module", bound=nn.Module)


def _exchanged(module: Module, make: Make) -> Module:
    """A copy of the tree of modules, not of what they hold, with its linear layers made anew."""

    def exchanged(child: nn.Module) -> nn.Module:
        if isinstance(child, nn.Linear):
            return make(child.weight, child.bias)
        if isinstance(child, QuantizedLinear) and make is cpu_ops.PackedLinear and cpu_ops.is_packed(child.scales):
            return cpu_ops.PackedIntegers(child.packed, child.scales, child.bias, child.bits)
        return _exchanged(child, make)

    twin = copy.copy(module)
    twin.__dict__["_modules"] = {name: child and exchanged(child) for name, child in module._modules.items()}
    return twin
