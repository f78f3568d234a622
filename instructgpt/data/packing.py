"""Documents to batches of exactly rows × context tokens, with little padding.

Best-fit packing: a row is opened by the oldest document that waits, and filled with the longest waiting ones that
still fit. Documents keep their borders (`Batch.documents`), so packing changes what a batch costs, not what is learnt.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from instructgpt.data.batch import Batch
from instructgpt.data.sources import ExampleSource
from instructgpt.data.tokens import Tokens


def collate(rows: Sequence[Sequence[Tokens]], context: int) -> Batch:
    """Rows of documents as a batch: n tokens give n - 1 inputs and, as their targets, the tokens that follow them.

    Its tensors are (rows, context), the documents of a row one behind the other; the padding behind them is 0, its
    document -1.
    Raises ValueError when the documents of a row have more than `context` inputs.
    """
    shape = (len(rows), context)
    ids, targets, positions = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    is_target = np.zeros(shape, dtype=np.bool_)
    documents = np.full(shape, -1, dtype=np.int64)
    counting = np.arange(context)
    for row, items in enumerate(rows):
        start = 0
        for number, tokens in enumerate(items):
            end = start + len(tokens) - 1
            if end > context:
                raise ValueError(f"row {row} has more than {context} inputs")
            ids[row, start:end] = tokens.ids[:-1]
            targets[row, start:end] = tokens.ids[1:]
            is_target[row, start:end] = tokens.is_target[1:]
            positions[row, start:end] = counting[: end - start]
            documents[row, start:end] = number
            start = end
    return Batch(*map(torch.from_numpy, (ids, targets, is_target, positions, documents)))


class _Pool:
    """Documents that wait for a row, by age and by length."""

    def __init__(self, context: int):
        self._context = context
        self._waiting: dict[int, Tokens] = {}  # oldest first
        self._by_length: list[tuple[int, int]] = []  # (inputs, -index), sorted: of equal lengths the oldest is last

    def __len__(self) -> int:
        return len(self._waiting)

    def indices(self) -> list[int]:
        return list(self._waiting)

    def add(self, index: int, tokens: Tokens) -> None:
        """`index` must be larger than all before it. A text longer than a row loses its tail; a conversation comes here
        as windows that fit."""
        if len(tokens) < 2:
            raise ValueError(f"document {index} has {len(tokens)} tokens; predicting one from another takes two")
        self._waiting[index] = tokens = tokens.head(self._context + 1)
        insort(self._by_length, (len(tokens) - 1, -index))

    def take_row(self) -> list[Tokens]:
        """The oldest document, and the longest that fit behind it, each time the longest first."""
        oldest = next(iter(self._waiting))
        place = bisect_left(self._by_length, (len(self._waiting[oldest]) - 1, -oldest))
        row, room = [], self._context
        while place >= 0:
            inputs, age = self._by_length.pop(place)
            row.append(self._waiting.pop(-age))
            room -= inputs
            place = bisect_left(self._by_length, (room, 1)) - 1  # the last entry that needs no more than `room`
        return row


class PackedStream:
    """An endless stream of packed batches from a source, which can be saved and resumed exactly (a `BatchStream`).

    A batch depends on the source and the state alone: the indices of the documents that wait, and the next one to read.
    Every document is used exactly once for each of its indices, at most `pool` rows later than its turn.
    """

    def __init__(self, source: ExampleSource, context: int, rows: int, pool: int = 256):
        """`pool`: documents to choose from; more of them pad less and disturb the source's order more."""
        if min(context, rows, pool) < 1:
            raise ValueError(f"context {context}, rows {rows} and pool {pool} must be positive")
        self._source, self._context, self._rows, self._size = source, context, rows, pool
        self._next_index = 0
        self._pool = _Pool(context)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        rows = []
        for _ in range(self._rows):
            while len(self._pool) < self._size:
                self._pool.add(self._next_index, self._source[self._next_index])
                self._next_index += 1
            rows.append(self._pool.take_row())
        return collate(rows, self._context)

    def state(self) -> dict[str, Any]:
        return {"next_index": self._next_index, "pool": self._pool.indices()}

    def restore(self, state: dict[str, Any]) -> None:
        self._next_index = state["next_index"]
        self._pool = _Pool(self._context)
        for index in state["pool"]:
            self._pool.add(index, self._source[index])


def batches_of(items: Iterable[Tokens], context: int, rows: int, pool: int = 256) -> Iterator[Batch]:
    """One pass over `items` in packed batches; the last one is filled up with padding to the same shape."""
    waiting, iterator, packed = _Pool(context), enumerate(items), []
    while True:
        while len(waiting) < pool and (entry := next(iterator, None)) is not None:
            waiting.add(*entry)
        if not len(waiting):
            break
        packed.append(waiting.take_row())
        if len(packed) == rows:
            yield collate(packed, context)
            packed = []
    if packed:
        yield collate(packed + [[]] * (rows - len(packed)), context)
