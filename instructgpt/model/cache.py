"""The key/value cache: what attention keeps of earlier tokens, so that a new token costs one token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from instructgpt.config import ModelConfig


class KVCache:
    """Keys and values of every layer for a batch of sequences, filled from slot 0 on.

    Prompts of unequal length are padded on the left, so that all of them end at the same slot: row b's first
    `pad_lengths[b]` slots are padding, are never attended to, and its token in slot s has position
    s - pad_lengths[b].
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        pad_lengths: Sequence[int] | None = None,
        fixed: bool = False,
    ):
        """Holds `capacity` tokens a row, padding included; `dtype` is what the model computes keys in.

        fixed: a step of one token is the same operations on the same addresses wherever it stands, so that it can be
        recorded as a CUDA graph: what changes from step to step lies in tensors, `slot` and `pad_lengths`.
        """
        config = config.resolved()
        shape = (config.layers, batch, config.kv_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        channels = (config.heads + config.kv_heads) * config.head_dim
        self.recent = torch.zeros(config.layers, batch, config.qk_window - 1, channels, device=device, dtype=dtype)
        """Each layer's queries and keys of the last tokens, side by side, before the convolution over them."""
        self.length = 0
        """Slots filled so far, in every row."""
        self.slot = torch.zeros(1, device=device, dtype=torch.int64) if fixed else None
        """`length` on the device, where it is fixed."""
        self.pad_lengths: Tensor | None = None
        """(B,) int64; None when no row is padded, which lets attention do without a mask."""
        if pad_lengths is not None and any(pad_lengths):
            if len(pad_lengths) != batch:
                raise ValueError(f"{len(pad_lengths)} pad lengths for a batch of {batch}")
            self.pad_lengths = torch.tensor(list(pad_lengths), device=device)
        elif fixed:
            self.pad_lengths = torch.zeros(batch, device=device, dtype=torch.int64)

    @property
    def capacity(self) -> int:
        return self.keys.size(3)

    @property
    def batch(self) -> int:
        return self.keys.size(1)

    @property
    def bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.keys, self.values, self.recent))

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k and v (B, K, T, D) of one layer after the filled slots; gives all of it, (B, K, length + T, D), or
        the whole capacity where the cache is fixed and T is 1.

        `advance` then counts the T slots as filled, once all layers have stored theirs.
        """
        end = self.length + k.size(2)
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens a row and {end} were given")
        if self.slot is not None and k.size(2) == 1:
            keys, values = self.keys[layer], self.values[layer]
            k, v = k.to(keys.dtype), v.to(values.dtype)
            return keys.index_copy_(2, self.slot, k), values.index_copy_(2, self.slot, v)
        # `select` and `narrow` cost a third of what a tuple of slices does, and a token waits for every microsecond.
        keys, values = (held.select(0, layer).narrow(2, 0, end) for held in (self.keys, self.values))
        keys.narrow(2, self.length, k.size(2)).copy_(k)
        values.narrow(2, self.length, k.size(2)).copy_(v)
        return keys, values

    def follow(self, layer: int, qk: Tensor) -> Tensor:
        """The queries and keys (B, qk_window - 1, (H + K)·D) before qk (B, T, (H + K)·D); keeps the last of both."""
        before = self.recent[layer].clone()
        self.recent[layer] = torch.cat([before, qk], dim=1)[:, qk.size(1) :]
        return before

    def advance(self, tokens: int) -> None:
        self.length += tokens
        if self.slot is not None:
            self.slot.add_(tokens)

    def positions(self, tokens: int) -> Tensor:
        """(B, tokens) position of each of the next `tokens` tokens in its sequence; 0 for padding."""
        if self.slot is not None and tokens == 1:
            slots = self.slot.expand(self.batch, 1)
        else:
            slots = torch.arange(self.length, self.length + tokens, device=self.keys.device).expand(self.batch, -1)
        return slots if self.pad_lengths is None else (slots - self.pad_lengths[:, None]).clamp(min=0)

    def documents(self, tokens: int) -> Tensor | None:
        """(B, length + tokens) with the next `tokens` tokens: 0 for padding, 1 for the sequence; None without padding.

        So padding attends to padding, for a softmax over nothing is no number; nobody reads the result.
        """
        if self.pad_lengths is None:
            return None
        slots = torch.arange(self.length + tokens, device=self.keys.device)
        return (slots >= self.pad_lengths[:, None]).long()

    def span(self) -> tuple[Tensor | None, Tensor | None, int]:
        """(starts (B,), ends (B,), slots): the next token attends to slots start ≤ s < end of the `slots` that `append`
        gives it; None for 0 and for all of them."""
        if self.slot is None:
            return self.pad_lengths, None, self.length + 1
        return self.pad_lengths, (self.slot + 1).expand(self.batch).contiguous(), self.capacity

    def load(self, other: KVCache) -> None:
        """Takes over what `other` holds, a cache of as many rows or fewer; what is left of the rows stands empty."""
        if other.batch > self.batch or other.length > self.capacity:
            raise ValueError(
                f"{other.batch} rows of {other.length} tokens do not fit in {self.batch} of {self.capacity}"
            )
        self.keys[:, : other.batch, :, : other.length] = other.keys[:, :, :, : other.length]
        self.values[:, : other.batch, :, : other.length] = other.values[:, :, :, : other.length]
        self.recent[:, : other.batch] = other.recent
        self.length = other.length
        if self.slot is not None:
            self.slot.fill_(other.length)
        if self.pad_lengths is not None:
            self.pad_lengths.zero_()
            if other.pad_lengths is not None:
                self.pad_lengths[: other.batch] = other.pad_lengths

    def select(self, rows: Tensor) -> None:
        """Keeps the rows of these indices, in this order; an index may occur several times, to branch a sequence."""
        self.keys = self.keys.index_select(1, rows)
        self.values = self.values.index_select(1, rows)
        self.recent = self.recent.index_select(1, rows)
        if self.pad_lengths is not None:
            self.pad_lengths = self.pad_lengths.index_select(0, rows)
        if self.slot is not None:
            self.slot = self.slot.clone()  # a shallow copy that selects shares nothing any more
