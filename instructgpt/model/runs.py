"""Attention over the runs of a paged cache, in as few calls as there can be: the way of a CPU.

A run is a stretch of neighbouring blocks, so it is a view of memory, and nothing is gathered. What a query attends to
lies in one run or a few; each is computed apart, with its log-sum-exp, and then, as in `kernels/decode_attention.py`,

    o = Σ_s w_s·o_s / Σ_s w_s,   w_s = exp(lse_s - max_s lse_s)

Two things make many calls one. A run that several sequences share, their common prompt, is one call with all their
queries (Juravsky et al. 2024, Hydragen). And runs at equal distances in memory are one strided view, a lattice, over
which one call computes all, as far as the longest, with a bias that hides what is beyond each end. Measured for rows of
4 heads of 32 on one core, µs a layer: 64 of 100 tokens, a call each 1,286, gathered 2,358, a lattice 355; 256 of 100
tokens 6,674, 6,929 and 1,529.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from instructgpt.model.cache import Feed, PagedCache, Table

PartialAttention = Callable[[Tensor, Tensor, Tensor, "Tensor | None", bool], "tuple[Tensor, Tensor]"]
"""(q (B, K, Q, D), k and v (B, K, T, D), bias (B, 1, 1, T) or None, is_causal, then Q = T) -> the attention
(B, K, Q, D), and the log-sum-exp of its scores (B, K, Q)"""
_CALL = 40_000
"""What a call costs before it has read a key, in elements of keys that it could have read meanwhile."""
_STEPS_OF_A_PLAN = 32
"""Steps after which a lattice is laid anew, for what grew in it."""


def plain_partial(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, is_causal: bool) -> tuple[Tensor, Tensor]:
    """`PartialAttention` as it is defined."""
    scores = (q @ k.transpose(-2, -1)).to(torch.promote_types(q.dtype, torch.float32)) / math.sqrt(q.size(-1))
    if is_causal:
        is_after = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(is_after, -math.inf)
    if bias is not None:
        scores = scores + bias
    return scores.softmax(-1).to(v.dtype) @ v, scores.logsumexp(-1)


def fused_partial(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, is_causal: bool) -> tuple[Tensor, Tensor]:
    """The same in one of PyTorch's operators, on a CPU."""
    if bias is not None:
        bias = bias.expand(-1, -1, q.size(2), -1)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal, attn_mask=bias)


class _Group(NamedTuple):
    """Tokens that attend to the same run."""

    slot: int
    length: int
    tokens: list[int]


class _Lattice:
    """One call: runs at equal distances in memory."""

    def __init__(self, cache: PagedCache, groups: Sequence[_Group], stride: int):
        self.cache, self.stride, self.first = cache, stride, groups[0].slot
        self.cells = 1 + (groups[-1].slot - self.first) // stride if len(groups) > 1 else 1
        self.queries = max(len(group.tokens) for group in groups)
        places = [(group.slot - self.first) // stride for group in groups]
        # A cell without a run, and a run of fewer queries, computes what nobody reads.
        asked = [[groups[0].tokens[0]] * self.queries for _ in range(self.cells)]
        for place, group in zip(places, groups):
            asked[place][: len(group.tokens)] = group.tokens
        flat = [token for cell in asked for token in cell]
        self.tokens = [token for group in groups for token in group.tokens]
        answers = [place * self.queries + i for place, group in zip(places, groups) for i in range(len(group.tokens))]
        device = cache.device
        self.is_whole = flat == list(range(flat[0], flat[0] + len(flat))) and len(answers) == len(flat)
        self._start = flat[0]
        self._asked = None if self.is_whole else torch.tensor(flat, device=device)
        self._answers = None if len(answers) == len(flat) else torch.tensor(answers, device=device)
        self._places = torch.tensor(places, device=device)
        self.bias: Tensor | None = None
        self.longest = 0

    def measure(self, lengths: Sequence[int]) -> None:
        """Takes over how long the runs are now, one after another."""
        self.longest = longest = max(lengths)
        if min(lengths) == longest:
            self.bias = None  # cells without a run may have any
            return
        ends = torch.tensor(lengths, device=self.cache.device)
        if self.cells > len(lengths):
            ends = torch.full((self.cells,), longest, device=self.cache.device).index_copy_(0, self._places, ends)
        is_beyond = torch.arange(longest, device=self.cache.device) >= ends[:, None]  # (cells, longest)
        bias = torch.zeros(is_beyond.shape, dtype=self.cache.dtype, device=self.cache.device)
        self.bias = bias.masked_fill_(is_beyond, -math.inf)[:, None, None]

    @property
    def fits(self) -> bool:
        """The last cell's view ends within the cache."""
        return self.first + (self.cells - 1) * self.stride + self.longest <= self.cache.slots

    def attend(self, layer: int, q: Tensor, partial: PartialAttention) -> tuple[Tensor, Tensor]:
        """q (N, K, G, D) -> for each of `tokens` its part (M, K, G, D) and that part's log-sum-exp (M, K, G)."""
        _, K, G, D = q.shape
        Q, size = self.queries, self.cells * self.queries
        asked = q.narrow(0, self._start, size) if self._asked is None else q.index_select(0, self._asked)
        if Q > 1:
            asked = asked.view(self.cells, Q, K, G, D).transpose(1, 2).reshape(self.cells, K, Q * G, D)
        o, lse = partial(asked, self._view(self.cache.keys, layer), self._view(self.cache.values, layer),
                         self.bias, False)  # fmt: skip
        if Q > 1:
            o = o.view(self.cells, K, Q, G, D).transpose(1, 2).reshape(size, K, G, D)
            lse = lse.view(self.cells, K, Q, G).transpose(1, 2).reshape(size, K, G)
        if self._answers is not None:
            o, lse = o.index_select(0, self._answers), lse.index_select(0, self._answers)
        return o, lse

    def _view(self, held: Tensor, layer: int) -> Tensor:
        """(cells, K, longest, D)"""
        _, slots, K, D = held.shape
        offset = held.storage_offset() + (layer * slots + self.first) * K * D
        return held.as_strided((self.cells, K, self.longest, D), (self.stride * K * D, D, K * D, 1), offset)


def _lattices(cache: PagedCache, groups: list[_Group]) -> list[_Lattice]:
    """Calls that cover the groups: a run joins those before it where that costs less than a call of its own."""
    groups.sort(key=lambda group: group.slot)
    call = _CALL / (cache.keys.size(2) * cache.keys.size(3))  # in keys
    distances = [b.slot - a.slot for a, b in pairwise(groups) if b.slot > a.slot]
    stride = Counter(distances).most_common(1)[0][0] if distances else 1
    found: list[list[_Group]] = []
    cells = longest = 0
    for group in groups:
        first, last = (found[-1][0].slot, found[-1][-1].slot) if found else (0, group.slot)
        together, most = 1 + (group.slot - first) // stride, max(longest, group.length)
        if (
            group.slot > last
            and (group.slot - first) % stride == 0
            and together * most <= cells * longest + group.length + call
            and group.slot + most <= cache.slots
        ):
            found[-1].append(group)
            cells, longest = together, most
        else:
            found.append([group])
            cells, longest = 1, group.length
    made = []
    for members in found:
        made.append(_Lattice(cache, members, stride))
        made[-1].measure([group.length for group in members])
    return made


class _Part(NamedTuple):
    """Lattices that give each of some tokens one part of its attention."""

    lattices: list[_Lattice]
    tokens: Tensor | None
    """Whose parts they give, in this order; None for all, in theirs."""

    @classmethod
    def of(cls, cache: PagedCache, groups: list[_Group], tokens: int) -> _Part:
        lattices = _lattices(cache, groups)
        order = [token for lattice in lattices for token in lattice.tokens]
        return cls(lattices, None if order == list(range(tokens)) else torch.tensor(order, device=cache.device))

    def attend(self, layer: int, q: Tensor, partial: PartialAttention) -> tuple[Tensor, Tensor]:
        found = [lattice.attend(layer, q, partial) for lattice in self.lattices]
        if len(found) == 1:
            return found[0]
        return torch.cat([o for o, _ in found]), torch.cat([lse for _, lse in found])


def _merged(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    (o, lse), (other, other_lse) = a, b
    share = torch.sigmoid(other_lse - lse).to(o.dtype)[..., None]
    return torch.lerp(o, other, share), torch.logaddexp(lse, other_lse)


Attended = tuple[Tensor, Tensor]
"""The attention (N, K, G, D) of some tokens, and its log-sum-exp (N, K, G)."""


def _merged_into(found: Attended, part: Attended, tokens: Tensor | None) -> Attended:
    """The attention of all tokens, with a part of that of some, None for all, merged into it."""
    if tokens is None:
        return _merged(found, part)
    o, lse = found
    of_some = _merged((o.index_select(0, tokens), lse.index_select(0, tokens)), part)
    return o.index_copy(0, tokens, of_some[0]), lse.index_copy(0, tokens, of_some[1])


def _parts(cache: PagedCache, pieces: Sequence[Sequence[tuple[int, int]]], tokens_each: int) -> list[_Part]:
    """For the rows of `tokens_each` tokens, each attending to all of its pieces: the first pieces of all rows, the
    second ones, and so on. Rows with the same piece share it."""
    parts = []
    for level in range(max(map(len, pieces), default=0)):
        shared: dict[tuple[int, int], list[int]] = {}
        for row, its in enumerate(pieces):
            if level < len(its):
                shared.setdefault(its[level], []).extend(range(row * tokens_each, (row + 1) * tokens_each))
        groups = [_Group(slot, length, tokens) for (slot, length), tokens in shared.items()]
        parts.append(_Part.of(cache, groups, len(pieces) * tokens_each))
    return parts


class _Scattered:
    """Sequences in many runs, after memory ran short: their keys are gathered, for one call with all of them."""

    MANY = 3
    """Runs that cost more apart than copied together."""

    def __init__(self, cache: PagedCache, tables: Sequence[Table], tokens: list[int]):
        self.cache, self.tokens = cache, torch.tensor(tokens, device=cache.device)
        self._tables, self._rows = [tables[i] for i in tokens], tokens

    def measure(self, lengths: Sequence[int]) -> None:
        """lengths: of all sequences."""
        its, size = [lengths[i] for i in self._rows], self.cache.block_size
        blocks = -(-max(its) // size)
        table = torch.tensor([(its.blocks + [0] * blocks)[:blocks] for its in self._tables])  # (S, blocks)
        self._slots = (table[..., None] * size + torch.arange(size)).flatten().to(self.cache.device)
        is_beyond = torch.arange(blocks * size) >= torch.tensor(its)[:, None]
        bias = torch.zeros(is_beyond.shape, dtype=self.cache.dtype).masked_fill_(is_beyond, -math.inf)
        self._bias = bias[:, None, None].to(self.cache.device)

    def attend(self, layer: int, q: Tensor, partial: PartialAttention) -> Tensor:
        """q (S, K, G, D) -> the same"""
        k, v = (
            held[layer].index_select(0, self._slots).unflatten(0, (len(q), -1)).transpose(1, 2)
            for held in (self.cache.keys, self.cache.values)
        )  # (S, K, T, D)
        return partial(q, k, v, self._bias, False)[0]


class _DecodingRows:
    """Sequences with one new token each. Kept from step to step, while no run of theirs begins."""

    def __init__(self, cache: PagedCache, tables: Sequence[Table], lengths: Sequence[int]):
        pieces = [table.pieces(length, cache.block_size) for table, length in zip(tables, lengths)]
        scattered = [row for row, its in enumerate(pieces) if len(its) > _Scattered.MANY]
        self._scattered = _Scattered(cache, tables, scattered) if scattered else None
        if self._scattered is not None:
            self._scattered.measure(lengths)
            # What is said of them below is overwritten.
            pieces = [its if len(its) <= _Scattered.MANY else its[-1:] for its in pieces]
        self._closed = _parts(cache, [its[:-1] for its in pieces], 1)
        self._closed_lengths = [length - its[-1][1] for its, length in zip(pieces, lengths)]
        self._open = _Part.of(cache, [_Group(*its[-1], [row]) for row, its in enumerate(pieces)], len(tables))
        # A table may have blocks to spare, in other runs; its last run grows.
        self._ends = [
            (row, sum(count for _, count in table.runs[: len(its)]) * cache.block_size)
            for row, (table, its) in enumerate(zip(tables, pieces))
            if len(its) < len(table.runs) and row not in scattered
        ]  # fmt: skip
        self._steps = 0

    def grown(self, lengths: Sequence[int]) -> bool:
        """Takes over how long the sequences are now. False where a new plan is better, or needed."""
        self._steps += 1
        if self._steps == _STEPS_OF_A_PLAN or any(lengths[row] > end for row, end in self._ends):
            return False
        if self._scattered is not None:
            self._scattered.measure(lengths)
        for lattice in self._open.lattices:
            lattice.measure([lengths[row] - self._closed_lengths[row] for row in lattice.tokens])
            if not lattice.fits:
                return False
        return True

    def attend(self, layer: int, q: Tensor, partial: PartialAttention) -> Tensor:
        """q (rows, K, G, D) -> the same"""
        found = self._open.attend(layer, q, partial)
        if self._open.tokens is not None:
            order = self._open.tokens
            found = (
                torch.empty_like(found[0]).index_copy_(0, order, found[0]),
                torch.empty_like(found[1]).index_copy_(0, order, found[1]),
            )
        for part in self._closed:
            found = _merged_into(found, part.attend(layer, q, partial), part.tokens)
        if self._scattered is None:
            return found[0]
        tokens = self._scattered.tokens
        return found[0].index_copy(0, tokens, self._scattered.attend(layer, q.index_select(0, tokens), partial))


class _Chunks:
    """Sequences with as many new tokens each, several. To earlier ones they attend over runs, to each other as they
    come, without a way through the cache."""

    def __init__(self, cache: PagedCache, tables: Sequence[Table], starts: Sequence[int], tokens: int):
        self.rows, self.tokens = len(tables), tokens
        pieces = [table.pieces(start, cache.block_size) for table, start in zip(tables, starts)]
        self._closed = _parts(cache, pieces, tokens)

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, partial: PartialAttention, whole: Callable[..., Tensor]
    ) -> Tensor:
        """q (1, H, rows · tokens, D), k and v (1, K, rows · tokens, D) -> (rows · tokens, K, G, D)"""
        R, T, K, D = self.rows, self.tokens, k.size(1), q.size(-1)
        G = q.size(1) // K
        q_rows, k, v = (x[0].unflatten(1, (R, T)).transpose(0, 1) for x in (q, k, v))  # (R, H or K, T, D)
        if not self._closed:
            return whole(q_rows, k, v).transpose(1, 2).reshape(R * T, K, G, D)
        if G > 1:
            k, v = k.repeat_interleave(G, dim=1), v.repeat_interleave(G, dim=1)
        o, lse = partial(q_rows, k, v, None, T > 1)  # (R, H, T, D), (R, H, T)
        found = o.transpose(1, 2).reshape(R * T, K, G, D), lse.transpose(1, 2).reshape(R * T, K, G)
        flat = q[0].transpose(0, 1).reshape(R * T, K, G, D)
        for part in self._closed:
            found = _merged_into(found, part.attend(layer, flat, partial), part.tokens)
        return found[0]


class RunAttention:
    """The attention of one forward's new tokens, planned once for all layers."""

    def __init__(self, feed: Feed, partial: PartialAttention, whole: Callable[[Tensor, Tensor, Tensor], Tensor]):
        """whole: causal attention of q (B, H, T, D) over k and v (B, K, T, D)."""
        self.feed, self._partial, self._whole = feed, partial, whole
        cache, self._decoding = feed.cache, feed.decoding
        starts, counts = feed.starts.tolist(), feed.counts.tolist()
        self._rows = self._decoding_rows(cache, feed.tables[: self._decoding], starts) if self._decoding else None
        self._chunks: list[_Chunks] = []
        row = self._decoding
        while row < len(counts):
            end = row + 1
            while end < len(counts) and counts[end] == counts[row]:
                end += 1
            self._chunks.append(_Chunks(cache, feed.tables[row:end], starts[row:end], counts[row]))
            row = end

    def _decoding_rows(self, cache: PagedCache, tables: Sequence[Table], starts: list[int]) -> _DecodingRows:
        lengths = [start + 1 for start in starts[: self._decoding]]
        key = [(id(table), table.version) for table in tables]
        if cache.kept_plan is not None:
            kept_key, plan, _ = cache.kept_plan
            if key == kept_key and plan.grown(lengths):
                return plan
        plan = _DecodingRows(cache, tables, lengths)
        cache.kept_plan = key, plan, tables  # the tables, so that no other takes the place of one and is taken for it
        return plan

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (1, H, N, D), k and v (1, K, N, D), which are kept -> (1, H, N, D)"""
        self.feed.write(layer, k, v)
        dtype = self.feed.cache.dtype
        q, k, v = (x.detach().to(dtype) for x in (q, k, v))
        H, K, D = q.size(1), k.size(1), q.size(-1)
        found: list[Tensor] = []
        at = self._decoding
        if self._rows is not None:
            rows = q[0, :, :at].transpose(0, 1).reshape(at, K, H // K, D)
            found.append(self._rows.attend(layer, rows, self._partial))
        for chunk in self._chunks:
            its_q, its_k, its_v = (x.narrow(2, at, chunk.rows * chunk.tokens) for x in (q, k, v))
            found.append(chunk.attend(layer, its_q, its_k, its_v, self._partial, self._whole))
            at += chunk.rows * chunk.tokens
        y = found[0] if len(found) == 1 else torch.cat(found)
        return y.view(1, at, H, D).transpose(1, 2)
