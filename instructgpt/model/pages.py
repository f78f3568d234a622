"""Attention over a paged cache by our kernels: the way of a GPU.

Rows with one new token find their keys in pages (`kernels.paged_decode_attention`); nothing but tensors decides what is
read, so a step of such rows can be recorded (`generation/graphs.py`). Tokens of prompts attend to each other as they
come, all prompts in one call, or, where some of a prompt is in the cache, over a copy of its keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

import kernels
from instructgpt.model.cache import Feed


class PageAttention:
    """The attention of one forward's new tokens, planned once for all layers."""

    def __init__(self, feed: Feed):
        self.feed = feed
        self._decoding, device = feed.decoding, feed.cache.device
        rest = [(int(start), int(count)) for start, count in zip(feed.starts, feed.counts)][self._decoding :]
        self._chunks: list[tuple[int, int, Tensor]] = []
        """(first token, tokens, slots of the whole sequence) of each that goes on."""
        fresh: list[Tensor] = []
        documents: list[Tensor] = []
        at, size = self._decoding, feed.cache.block_size
        for table, (start, count) in zip(feed.tables[self._decoding :], rest):
            here = torch.arange(at, at + count)
            if start == 0:
                documents.append(torch.full((count,), len(documents)))
                fresh.append(here)
            else:
                blocks = torch.tensor(table.blocks)[:, None] * size + torch.arange(size)
                self._chunks.append((at, count, blocks.flatten()[: start + count].to(device)))
            at += count
        self._fresh = torch.cat(fresh).to(device) if fresh else None
        if fresh:
            number = torch.cat(documents).to(device)[None]
            self._intervals = kernels.key_intervals(
                number.size(1), number.size(1), device, causal=True, documents=number
            )

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (1, H, N, D), k and v (1, K, N, D), which are kept -> (1, H, N, D)"""
        feed, cache = self.feed, self.feed.cache
        feed.write(layer, k, v)
        q, k, v = (x.detach().to(cache.dtype) for x in (q, k, v))
        keys, values = cache.keys[layer], cache.values[layer]  # (slots, K, D)
        if self._decoding == q.size(2):
            return self._decoded(q, keys, values)
        y = torch.empty_like(q)
        if self._decoding:
            y[:, :, : self._decoding] = self._decoded(q[:, :, : self._decoding], keys, values)
        if self._fresh is not None:
            its_q, its_k, its_v = (x.index_select(2, self._fresh) for x in (q, k, v))
            y.index_copy_(2, self._fresh, kernels.attention(its_q, its_k, its_v, intervals=self._intervals))
        for at, count, slots in self._chunks:
            past_k, past_v = (held.index_select(0, slots).transpose(0, 1)[None] for held in (keys, values))
            y[:, :, at : at + count] = kernels.attention(q[:, :, at : at + count], past_k, past_v, causal=True)
        return y

    def _decoded(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        size = self.feed.cache.block_size
        k, v = (held.unflatten(0, (-1, size)).transpose(1, 2) for held in (keys, values))  # (pages, K, page, D)
        y = kernels.paged_decode_attention(q[0].transpose(0, 1), k, v, self.feed.page_table, self.feed.lengths)
        return y.transpose(0, 1)[None]
