"""What an optimizer remembers of past gradients, in 32, 16 or 8 bits a number.

In 8 bits (Dettmers et al. 2022) a block of 256 numbers shares a scale, its largest magnitude s, and a code c means
s·sign(c)·(c/127)² for a mean, s·(c/255)⁴ for a mean square: codes lie closer near zero, where most numbers are, as in
their table. A mean is rounded to the nearest. A mean square changes by a share 1 - β₂ in a step, which may be less than
half the way to the next number: rounded to the nearest it would rise and never fall again. So it is rounded up or down
at random, right on average, and never to 0 from above, for it is divided by.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

StateFormat = Literal["float32", "bfloat16", "int8"]

BLOCK = 256
"""Numbers that share a scale, which is float32: 1.6% on top of their bytes."""
SMALL = 4096
"""Tensors of fewer numbers stay in float32: there is nothing to gain."""


def encode_means(x: Tensor) -> tuple[Tensor, Tensor]:
    """float32 (..., n) -> codes (..., n) int8 and scales (..., n / 256 rounded up) float32."""
    blocks, scales = _blocks(x)
    codes = (blocks / scales.clamp(min=1e-38)[..., None]).clamp_(-1, 1)  # (..., blocks, 256)
    codes = codes.abs().sqrt_().mul_(127).copysign_(codes).round_().to(torch.int8)
    return codes.flatten(-2)[..., : x.size(-1)], scales


def decode_means(codes: Tensor, scales: Tensor) -> Tensor:
    wide = codes.float()
    return wide.mul_(wide.abs()).mul_(_spread(scales / 127**2, codes.size(-1)))


def encode_squares(x: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
    """float32 (..., n), not negative, and as many uniform numbers in [0, 1) -> codes uint8 and scales."""
    blocks, scales = _blocks(x)
    shares = (blocks / scales.clamp(min=1e-38)[..., None]).flatten(-2)[..., : x.size(-1)].clamp_(0, 1)
    below = shares.sqrt().sqrt_().mul_(255).floor_().clamp_(0, 254)
    low, high = (below / 255) ** 4, ((below + 1) / 255) ** 4
    is_up = (shares - low) > chance * (high - low)
    codes = torch.maximum(below + is_up, (x > 0).float())
    return codes.to(torch.uint8), scales


def decode_squares(codes: Tensor, scales: Tensor) -> Tensor:
    wide = codes.float().mul_(1 / 255).square_().square_()
    return wide.mul_(_spread(scales, codes.size(-1)))


def round_at_random(x: Tensor, noise: Tensor) -> Tensor:
    """float32 -> bfloat16, up or down, right on average. noise: as many int32 in [0, 2^16)."""
    bits = x.view(torch.int32) + noise  # bfloat16 is the upper half of float32
    return (bits & -65536).view(torch.float32).to(torch.bfloat16)


def _blocks(x: Tensor) -> tuple[Tensor, Tensor]:
    """(..., n) as (..., blocks, 256), zeros at the end, and the largest magnitude of each."""
    blocks = F.pad(x, (0, -x.size(-1) % BLOCK)).unflatten(-1, (-1, BLOCK))
    return blocks, blocks.abs().amax(-1)


def _spread(scales: Tensor, size: int) -> Tensor:
    """Each number's scale."""
    return scales.repeat_interleave(BLOCK, dim=-1)[..., :size]


class Moments:
    """Numbers of a tensor, one for each of its own: read in float32, kept in `how`."""

    def __init__(self, like: Tensor, how: StateFormat, is_square: bool = False):
        """like: (..., n); blocks lie along the last dimension. float32 keeps `like`'s own format."""
        self.is_square = is_square
        kinds = {"float32": like.dtype, "bfloat16": torch.bfloat16, "int8": torch.uint8 if is_square else torch.int8}
        self.values = torch.zeros(like.shape, dtype=kinds[how], device=like.device)
        blocks = -(-like.size(-1) // BLOCK)
        self.scales = torch.zeros(*like.shape[:-1], blocks, device=like.device) if how == "int8" else None
        self.is_wide = how == "float32"

    def read(self, part: slice = slice(None)) -> Tensor:
        """(..., part), where they are wide the numbers themselves; `part` begins and ends with blocks."""
        values = self.values[..., part]
        if self.scales is None:
            return values if self.is_wide else values.float()
        decode = decode_squares if self.is_square else decode_means
        return decode(values, self.scales[..., _of_blocks(part)])

    def write(self, new: Tensor, is_good: Tensor, random: torch.Generator | None, part: slice = slice(None)) -> None:
        """Keeps `new` (..., part), what was read and changed in place; where `is_good` is 0, all stays as it is."""
        if self.is_wide:
            return
        values = self.values[..., part]
        if self.scales is None:
            values.copy_(torch.where(is_good > 0, self._in_bfloat16(new, random), values))
            return
        scales = self.scales[..., _of_blocks(part)]
        if self.is_square:
            codes, fresh = encode_squares(new, torch.rand(new.shape, generator=random, device=new.device))
        else:
            codes, fresh = encode_means(new)
        values.copy_(torch.where(is_good > 0, codes, values))
        scales.copy_(torch.where(is_good > 0, fresh, scales))

    def _in_bfloat16(self, new: Tensor, random: torch.Generator | None) -> Tensor:
        if not self.is_square:
            return new.to(torch.bfloat16)
        noise = torch.randint(1 << 16, new.shape, generator=random, dtype=torch.int32, device=new.device)
        return round_at_random(new, noise)

    def state(self, kind: str) -> dict[str, Tensor]:
        """By kind; the tensors themselves."""
        return {kind: self.values} | ({} if self.scales is None else {f"{kind}_scale": self.scales})


def _of_blocks(part: slice) -> slice:
    """The blocks of a part that begins and ends with them, or ends with the tensor."""
    if part == slice(None):
        return part
    return slice(part.start // BLOCK, -(-part.stop // BLOCK))
