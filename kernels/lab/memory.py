"""Where a kernel's tensors lie: layouts of its inputs, and guard bands around all that it reads and writes.

A band is filled with bytes 0xFF, which are NaN in every floating-point format and -1 in every integer: whoever reads
past a tensor gets nonsense instead of a lucky zero, and whoever writes there is found out instead of crashing later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from mmap import mmap
from tempfile import TemporaryFile
from typing import Any
from unittest import mock

import torch
from torch import Tensor

BAND = 4096
"""Elements before and after each tensor; wider than the blocks that a kernel is checked with."""

LAYOUTS = ("contiguous", "padded", "strided", "transposed", "mixed", "far", "broadcast", "summed")
"""How inputs and cotangents lie: as slices with stride 1 in the last dimension (`padded`), with gaps in each dimension
(`strided`), with the dimensions stored in reversed order, each tensor in another of these ways (`mixed`), or along one
dimension so far apart that 32 bits do not count it (`far`; as `contiguous` on a GPU, whose memory has no holes).
The last two concern cotangents, which autograd delivers with strides of 0: in all dimensions but the last one, or in
all, as the gradient of `y.sum()` is."""

ALLOCATORS = (
    (torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (torch, "zeros"), (torch, "zeros_like"),
    (Tensor, "new_empty"), (Tensor, "new_empty_strided"), (Tensor, "new_zeros"),
)  # fmt: skip


NOT_A_NUMBER, NUMBERS = 255, 60
"""Bytes that fill what is not a tensor's. The first make NaN, which shows in any sum; the others 0.0115, or 1.06 in
float16, for a kernel that computes again what is NaN would hide what it has read."""

LARGEST_FILLED = 2**28
"""Bytes; a larger storage is filled only where its tensor is."""


@dataclass(frozen=True)
class Region:
    """A tensor in the middle of a storage of its own."""

    tensor: Tensor
    storage: Tensor
    """The whole of it, as bytes; in the layout `far`, whose storage has holes, the tensor's own bits."""
    filled: int = NOT_A_NUMBER

    def band_is_intact(self) -> bool:
        """Whether nothing was written before or after a tensor without gaps."""
        band = BAND * self.tensor.element_size()
        return bool((self.storage[:band] == self.filled).all() and (self.storage[-band:] == self.filled).all())


def region(
    shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, device: torch.device, fill: int
) -> Region:
    """A tensor of the byte `fill` within bands of it; of one that spans gigabytes, what lies between takes no room."""
    span = 1 + sum((size - 1) * step for size, step in zip(shape, stride)) if 0 not in shape else 0
    size = (span + 2 * BAND) * dtype.itemsize
    has_holes = device.type == "cpu" and size > LARGEST_FILLED
    storage = full_of_holes(size) if has_holes else torch.full((size,), fill, dtype=torch.uint8, device=device)
    tensor = torch.tensor([], dtype=dtype, device=device).set_(storage.untyped_storage(), BAND, shape, stride)
    if has_holes:
        band = BAND * dtype.itemsize
        storage[:band], storage[-band:] = fill, fill
        bits(tensor).fill_(int.from_bytes(bytes([fill]) * dtype.itemsize, "little", signed=dtype.itemsize > 1))
    return Region(tensor, storage, fill)


def full_of_holes(size: int) -> Tensor:
    """So many bytes of 0, of which only those that are written take room, in memory or on a disk."""
    with TemporaryFile() as file:
        file.truncate(size)
        return torch.frombuffer(mmap(file.fileno(), 0), dtype=torch.uint8)


def bits(t: Tensor) -> Tensor:
    """The same tensor as integers, so that NaN equals itself."""
    return t.detach().view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])


def without_repeats(t: Tensor) -> Tensor:
    """The part of a tensor that has a place of its own: one element along dimensions in which its stride is 0."""
    return t[tuple(slice(0, 1) if step == 0 else slice(None) for step in t.stride())]


def strides_of(shape: tuple[int, ...]) -> list[int]:
    """Strides of a tensor stored without gaps, its last dimension fastest; of an empty one none is 0, as in PyTorch."""
    strides = [1] * len(shape)
    for i in reversed(range(len(shape) - 1)):
        strides[i] = strides[i + 1] * max(shape[i + 1], 1)
    return strides


def lay_out(values: Tensor, layout: str, index: int, device: torch.device, fill: int = NOT_A_NUMBER) -> Region:
    """`values` in a layout of `LAYOUTS`, in memory of the byte `fill`; dimensions in which their stride is 0 keep it.

    `index` numbers an op's tensors, so that two of one shape get different strides.
    """
    stored = without_repeats(values)
    shape = tuple(stored.shape)
    if layout == "far" and device.type == "cpu":
        return far_apart(stored, index, fill)
    if layout == "mixed":
        layout = ("padded", "contiguous", "transposed", "strided")[index % 4]
    if layout == "padded":
        stride = strides_of(tuple(size + 3 + index for size in shape))
    elif layout == "strided":
        stride = [2 * step for step in strides_of(tuple(2 * size + 1 + index for size in shape))]
    elif layout == "transposed":
        stride = strides_of(shape[::-1])[::-1]
    else:
        stride = strides_of(shape)
    laid = region(shape, tuple(stride), values.dtype, device, fill)
    laid.tensor.copy_(stored)
    return Region(laid.tensor.expand(values.shape), laid.storage, fill)


def far_apart(values: Tensor, index: int, fill: int) -> Region:
    """`values` with 2³¹ elements or more between the first and the last place of one dimension, the last one excepted:
    an offset in 32 bits wraps around, though each stride fits. Contiguous where no dimension has the three places that
    this takes. Around the tensor is nothing but 0, 2³¹ elements before it too, where wrapped offsets lead to."""
    shape, stride = tuple(values.shape), strides_of(tuple(values.shape))
    long = [i for i, size in enumerate(shape[:-1]) if size >= 3]
    if not long or 0 in shape:
        laid = region(shape, tuple(stride), values.dtype, torch.device("cpu"), fill)
        laid.tensor.copy_(values)
        return laid
    far = long[index % len(long)]
    stride = strides_of(tuple(1 if i == far else size for i, size in enumerate(shape)))
    apart = -(-(2**31) // (shape[far] - 1))  # rounded up
    stride[far] = 64 * -(-max(apart, 1 + sum((size - 1) * step for size, step in zip(shape, stride))) // 64)
    span = 2**31 + 1 + sum((size - 1) * step for size, step in zip(shape, stride))
    storage = full_of_holes(span * values.element_size()).untyped_storage()
    tensor = torch.tensor([], dtype=values.dtype).set_(storage, 2**31, shape, tuple(stride))
    tensor.copy_(values)
    return Region(tensor, bits(tensor))


def broadcast(values: Tensor, layout: str) -> Tensor:
    """The cotangent that autograd would deliver with strides of 0; `values` itself in other layouts."""
    kept = {"broadcast": 1, "summed": 0}.get(layout, values.dim())
    index = tuple(slice(None) if i >= values.dim() - kept else slice(0, 1) for i in range(values.dim()))
    return values[index].expand(values.shape)


@contextmanager
def guarded_allocations(fill: int = NOT_A_NUMBER) -> Iterator[list[Region]]:
    """Inside, what Python allocates with `torch.empty` and its kin holds `fill` until written, and lies within bands.

    Yields the list of these tensors, which grows.
    """
    regions: list[Region] = []

    def guarding(allocate: Callable[..., Tensor], is_filled: bool) -> Callable[..., Tensor]:
        def allocate_guarded(*args: Any, **kwargs: Any) -> Tensor:
            plain = allocate(*args, **kwargs)
            if not plain.numel():  # the interpreter makes such ones for each argument of a launch
                return plain
            guarded = region(tuple(plain.shape), plain.stride(), plain.dtype, plain.device, fill)
            if is_filled:
                guarded.tensor.copy_(plain)
            regions.append(guarded)
            return guarded.tensor

        return allocate_guarded

    with ExitStack() as stack:
        for owner, name in ALLOCATORS:
            guarding_it = guarding(getattr(owner, name), is_filled="zeros" in name)
            stack.enter_context(mock.patch.object(owner, name, guarding_it))
        yield regions
