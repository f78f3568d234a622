"""The key/value cache: what attention keeps of earlier tokens, so that a new token costs one token.

Memory is cut into blocks of a few tokens (Kwon et al. 2023, PagedAttention). A sequence is a `Table` of blocks, which
need not be neighbours and may be those of another sequence that begins with the same tokens. One forward reads new
tokens of any number of sequences, side by side in one flat row without padding: a `Feed` says whose they are.

    cache = PagedCache(config, blocks=64)             the memory
    Feed(cache, tables, starts, counts)               counts[i] new tokens of sequence i, from position starts[i] on
    rows = Sequences(config, 3, 100)                  the simplest case: three sequences of up to 100 tokens,
    model(ids, cache=rows.feed(ids.size(1)))          fed side by side

Which block belongs to whom is not known here (`generation/blocks.py`); how attention finds its keys is in `runs.py` and
`pages.py`. Nothing here carries a gradient.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from instructgpt.config import ModelConfig


def _zeros(shape: tuple[int, ...], device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """`torch.zeros`, which writes them; a CPU's system has pages of zeros that are no memory until they are written."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    own = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    held = mmap.mmap(-1, max(1, math.prod(shape)) * dtype.itemsize, **own)
    return torch.frombuffer(held, dtype=dtype, count=-1)[: math.prod(shape)].view(shape)


class PagedCache:
    """Keys and values of every layer, by slot: block b holds the slots from b · block_size on."""

    def __init__(
        self,
        config: ModelConfig,
        blocks: int,
        block_size: int = 16,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        """dtype: what the model computes keys in. Memory that was never written is not taken on a CPU, and is zeros:
        what stands beyond a sequence's end is multiplied by 0, and must be a number."""
        config = config.resolved()
        self.blocks, self.block_size = blocks, block_size
        slots = blocks * block_size
        shape = (config.layers, slots, config.kv_heads, config.head_dim)
        self.keys = _zeros(shape, device, dtype)
        self.values = _zeros(shape, device, dtype)
        self.reach = config.qk_window - 1
        """Tokens before its own that make up a query or a key."""
        channels = (config.heads + config.kv_heads) * config.head_dim if self.reach else 0
        self.unmixed = _zeros((config.layers, slots, channels), device, dtype)
        """Queries and keys, side by side, before the convolution over them; nothing where there is none."""
        self.kept_plan: Any = None
        """How attention went in the last forward, which the next one mostly goes like."""

    @property
    def slots(self) -> int:
        return self.keys.size(1)

    @property
    def device(self) -> torch.device:
        return self.keys.device

    @property
    def dtype(self) -> torch.dtype:
        return self.keys.dtype

    @property
    def bytes(self) -> int:
        return sum(held.numel() * held.element_size() for held in (self.keys, self.values, self.unmixed))

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Blocks `targets` become what `sources` were, all read before any is written; no target comes twice."""
        source, target = (torch.tensor(blocks, device=self.device) for blocks in (sources, targets))
        for held in (self.keys, self.values, self.unmixed):
            by_block = held.view(held.size(0), self.blocks, self.block_size, *held.shape[2:])
            by_block[:, target] = by_block[:, source]


class Table:
    """The blocks of one sequence, in order, and the runs of neighbours that they form."""

    __slots__ = ("blocks", "runs", "version")

    def __init__(self, blocks: Sequence[int] = ()):
        """blocks: what is shared with other sequences; they are runs of their own, whatever comes after."""
        self.blocks: list[int] = []
        self.runs: list[tuple[int, int]] = []
        """(first block, blocks): neighbours in memory that follow each other."""
        self.version = 0
        """Other runs, another number; the last run grows without."""
        for block in blocks:
            self.append(block)
        self.runs.append((-1, 0))

    def append(self, block: int) -> None:
        self.blocks.append(block)
        if self.runs:
            first, count = self.runs[-1]
            if block == first + count:
                self.runs[-1] = (first, count + 1)
                return
            if count == 0:
                self.runs.pop()
        self.runs.append((block, 1))
        self.version += 1

    def pieces(self, tokens: int, block_size: int) -> list[tuple[int, int]]:
        """(first slot, slots) of each run, up to the sequence's first `tokens` tokens."""
        found = []
        for first, count in self.runs:
            if tokens <= 0:
                break
            found.append((first * block_size, min(tokens, count * block_size)))
            tokens -= count * block_size
        return found


class Feed:
    """The new tokens of one forward, N in all, those of each sequence after those of the one before."""

    def __init__(self, cache: PagedCache, tables: Sequence[Table], starts: Sequence[int], counts: Sequence[int]):
        """tables[i] has blocks for starts[i] + counts[i] tokens, of which the first starts[i] are in the cache."""
        self.cache, self.tables = cache, tables
        self.starts, self.counts = np.asarray(starts), np.asarray(counts)
        rows, positions = np.arange(len(tables)), self.starts
        if self.decoding < len(tables):
            rows = np.repeat(rows, self.counts)  # (N,)
            offsets = np.arange(len(rows)) - np.repeat(np.cumsum(self.counts) - self.counts, self.counts)
            positions = self.starts[rows] + offsets  # (N,)
        self.positions = torch.from_numpy(positions).to(cache.device)[None]
        """(1, N), how many tokens stand before each in its sequence."""
        self.slots = self._slots(rows, positions)
        """(N,), where each token's key and value go."""
        self.before: Tensor | None = None
        """(N, reach), the slots of the tokens before each, the nearest first; any where there are none."""
        self.is_before: Tensor | None = None
        """(N, reach, 1), 1 where there is one, else 0; None where all are."""
        if cache.reach:
            wanted = positions[:, None] - np.arange(1, cache.reach + 1)  # (N, reach)
            self.before = self._slots(rows[:, None], np.maximum(wanted, 0))
            if positions.min() < cache.reach:
                self.is_before = torch.from_numpy(wanted >= 0).to(cache.device, cache.dtype)[..., None]

    @cached_property
    def _padded(self) -> np.ndarray:
        width = max([len(table.blocks) for table in self.tables])
        return np.array([table.blocks + [0] * (width - len(table.blocks)) for table in self.tables])

    def _slots(self, rows: np.ndarray, positions: np.ndarray) -> Tensor:
        """The slots, on the cache's device, of the tokens at `positions` of the sequences `rows`, by their tables.

        rows, positions: of one shape, or of two that are broadcast. `_padded` (sequences, blocks) has the tables."""
        size = self.cache.block_size
        return torch.from_numpy(self._padded[rows, positions // size] * size + positions % size).to(self.cache.device)

    @cached_property
    def decoding(self) -> int:
        """So many of the first sequences have one new token."""
        is_more = self.counts != 1
        return int(is_more.argmax()) if is_more.any() else len(self.counts)

    @cached_property
    def page_table(self) -> Tensor:
        """(decoding, M) int32, the blocks of the first sequences, on the device."""
        return torch.from_numpy(self._padded[: self.decoding].astype(np.int32)).to(self.cache.device)

    @cached_property
    def lengths(self) -> Tensor:
        """(decoding,) int32, their tokens, the new one included."""
        return (self.positions[0, : self.decoding] + 1).int()

    def follow(self, layer: int, qk: Tensor) -> Tensor:
        """Keeps qk (1, N, channels); gives what stands before each, the nearest first, (N, reach, channels)."""
        held = self.cache.unmixed[layer]
        held.index_copy_(0, self.slots, qk.detach()[0].to(held.dtype))
        assert self.before is not None
        found = held[self.before]
        return found if self.is_before is None else found * self.is_before

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Keeps k and v (1, K, N, D) of one layer."""
        for held, new in ((self.cache.keys, k), (self.cache.values, v)):
            held[layer].index_copy_(0, self.slots, new.detach()[0].transpose(0, 1).to(held.dtype))


class Sequences:
    """A batch of sequences in a cache of their own, each with room for as many tokens; `lengths` are in it."""

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        capacity: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        block_size: int = 16,
    ):
        each = -(-capacity // block_size)
        self.cache = PagedCache(config, rows * each, block_size, device, dtype)
        self.capacity = capacity
        self.lengths = [0] * rows
        self._tables = [Table() for _ in range(rows)]
        for row, table in enumerate(self._tables):
            for block in range(row * each, (row + 1) * each):
                table.append(block)

    def feed(self, tokens: int | Sequence[int]) -> Feed:
        """The next tokens of each sequence, all as many or a number for each, 0 for none. They count as fed.

        The ids are (rows, tokens), or flat (1, sum of tokens). Raises ValueError where there is no room.
        """
        counts = [tokens] * len(self._tables) if isinstance(tokens, int) else list(tokens)
        starts, self.lengths = self.lengths, [start + count for start, count in zip(self.lengths, counts, strict=True)]
        if max(self.lengths) > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens a row and {max(self.lengths)} were given")
        fed = [row for row, count in enumerate(counts) if count]
        return Feed(
            self.cache, [self._tables[r] for r in fed], [starts[r] for r in fed], [counts[r] for r in fed]
        )  # fmt: skip
