"""Weights of 8 or 4 bits, for generation: every linear layer of the blocks is exchanged for one that is quantized.

Generating a token reads every weight once and multiplies little, so fewer bytes are less time. Embedding and head stay
as they are: the one is looked up, and errors of the other go into the logits undamped.
"""

from __future__ import annotations

from torch import Tensor, nn

from instructgpt.errors import UserError, suggestion
from instructgpt.model.backend import Backend, under_autocast
from instructgpt.model.transformer import Transformer

FORMATS = {"int8": 8, "int4": 4}
"""Bits of a weight by the name that --quantize uses."""


class QuantizedLinear(nn.Module):
    """What `linear` computes, from integers and a scale for each group of them. No gradient reaches the weights."""

    packed: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear, backend: Backend, bits: int, group: int):
        super().__init__()
        self.backend, self.bits = backend, bits
        packed, scales = backend.quantize(linear.weight, bits, group)
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y = self.backend.quantized_linear(under_autocast(x), self.packed, self.scales, self.bits)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def quantize(model: Transformer, to: str, group: int = 64) -> Transformer:
    """The same model with the blocks' weights in `to` (int8 or int4), changed in place, for inference alone.

    group: weights that share a scale; 8 bits on a CPU have one for each row. Raises UserError for another format.
    """
    if to not in FORMATS:
        raise UserError(f"--quantize {to} is unknown{suggestion(to, FORMATS)}")
    for module in list(model.blocks.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, QuantizedLinear(child, model.backend, FORMATS[to], group))
    return model
