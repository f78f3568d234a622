"""Steps from CUDA graphs: a step is recorded once and then launched whole, for a token's kernels take the GPU less time
than Python takes to name them.

A graph is a list of launches on fixed addresses. What changes from step to step lies in tensors: each row's token, its
position, its pages. So a step in which every answer goes on by one token is moved into the buffers of a recorded number
of rows, the next power of two; rows to spare read and write a block that belongs to nobody. What is recorded ends with
logits: choosing is a few launches, whose number depends on what was asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from instructgpt.generation.decoding import Decoder, Launched
from instructgpt.generation.scheduler import Work
from instructgpt.model.cache import Feed, PagedCache
from instructgpt.model.transformer import Transformer
from instructgpt.text.tokenizer import Tokenizer
from kernels.launch import next_power_of_2

WORTH_RECORDING = 8
"""Steps from which on it pays: recording takes as long as a few steps called one by one."""
_LEAST_PAGES = 16
"""Recorded tables have at least so many, so that answers that grow a little find room in them."""


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """Where steps are recorded: one for all, since libraries keep memory for each stream that they were called on."""
    return torch.cuda.Stream(device)


class RowsOfPages(Feed):
    """One new token for each of P sequences, all of whose places are worked out on the device."""

    def __init__(self, cache: PagedCache, pages: Tensor, positions: Tensor):
        """pages: (P, M) int32, the blocks of each. positions: (P,) int64."""
        self.cache, self.tables = cache, ()
        self.starts = self.counts = np.ones(len(pages), dtype=np.int64)
        self.positions = positions[None]
        self.page_table, self.lengths = pages, (positions + 1).int()
        self.slots = self._places(pages, positions[:, None])[:, 0]
        self.before = self.is_before = None
        if cache.reach:
            wanted = positions[:, None] - torch.arange(1, cache.reach + 1, device=pages.device)
            self.before = self._places(pages, wanted.clamp(min=0))
            self.is_before = (wanted >= 0).to(cache.dtype)[..., None]

    def _places(self, pages: Tensor, positions: Tensor) -> Tensor:
        """The slots of positions (P, n)."""
        size = self.cache.block_size
        return pages.long().gather(1, positions // size) * size + positions % size


@dataclass
class _Recording:
    ids: Tensor
    """(P,) int64"""
    positions: Tensor
    """(P,) int64"""
    pages: Tensor
    """(P, M) int32"""
    logits: Tensor
    """(P, V), what a replay gives."""
    replay: Callable[[], None]
    tables: list[tuple[int, int]]
    """Which tables, and how many blocks of each, `pages` holds."""


class GraphedDecoder(Decoder):
    """A decoder on a CUDA device whose steps are recorded, and replayed."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, blocks: int, block_size: int):
        super().__init__(model, tokenizer, blocks + 1, block_size)
        self._spare = blocks  # the block of rows to spare
        self._recordings: dict[tuple[str | None, int, int], _Recording] = {}
        self._pool: Any = None
        self._may_record = True

    def _logits(self, work: Sequence[Work], places: list[int], before: Launched | None) -> Tensor:
        recording = self._recording(work, places)
        if recording is None:
            return super()._logits(work, places, before)
        rows = [each.row for each in work]
        ids = torch.tensor([each.ids[0] for each in work]) if before is None else before.tokens_of(rows)
        recording.ids[: len(work)] = ids.to(self.device, non_blocking=True)
        starts = torch.tensor([each.start for each in work]).to(self.device, non_blocking=True)
        recording.positions.zero_()[: len(work)] = starts
        tables = [(id(row.table), len(row.table.blocks)) for row in rows]
        if tables != recording.tables:
            pages = np.full(recording.pages.shape, self._spare, dtype=np.int32)
            for place, row in zip(pages, rows):
                place[: len(row.table.blocks)] = row.table.blocks
            recording.pages.copy_(torch.from_numpy(pages), non_blocking=True)
            recording.tables = tables
        recording.replay()
        return recording.logits[: len(work)].clone()  # the next replay may be launched before anybody reads them

    def _recording(self, work: Sequence[Work], places: list[int]) -> _Recording | None:
        """What does this step's work; None where nothing is recorded for it."""
        adapters = {each.row.request.adapter for each in work}
        is_plain = all(len(each.ids) <= 1 and each.chosen == 1 and not each.row.branches for each in work)
        if not self._may_record or not is_plain or len(adapters) > 1:
            return None
        (adapter,) = adapters
        rows = next_power_of_2(len(work))
        pages = next_power_of_2(max(_LEAST_PAGES, *(len(each.row.table.blocks) for each in work)))
        found = self._recordings.get((adapter, rows, pages))
        if found is None and max(each.row.limit - each.row.chosen for each in work) >= WORTH_RECORDING:
            try:
                found = self._recordings[adapter, rows, pages] = self._record(adapter, rows, pages)
            except RuntimeError as error:
                self._may_record = False
                reason = str(error).partition("\n")[0]
                print(f"no CUDA graphs, steps are launched one by one: {reason}", file=sys.stderr)
        return found

    def _record(self, adapter: str | None, rows: int, width: int) -> _Recording:
        """Buffers for so many rows and pages, and the step on them."""
        ids, positions = (torch.zeros(rows, dtype=torch.int64, device=self.device) for _ in range(2))
        pages = torch.full((rows, width), self._spare, dtype=torch.int32, device=self.device)
        model = self.twin(adapter)

        def step() -> Tensor:
            hidden = model.hidden(ids[None], cache=RowsOfPages(self.cache, pages, positions))[0]
            logits = model.head(hidden)
            return logits.to(torch.promote_types(logits.dtype, torch.float32))

        logits, replay = self._capture(step)
        return _Recording(ids, positions, pages, logits, replay, [])

    def _capture(self, step: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """What `step` gives, and what makes it anew there."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            current, side = torch.cuda.current_stream(), _side_stream(torch.cuda.current_device())
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(2):  # kernels are compiled, libraries take their memory
                    step()
            # Another thread may copy a batch meanwhile; only this one is recorded. What PyTorch keeps of its first
            # recording must not belong to inference mode, or later ones outside of it fail (PyTorch 2.10).
            recording = torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local")
            with torch.inference_mode(False), recording, torch.inference_mode():
                logits = step()
            current.wait_stream(side)
        return logits, graph.replay
