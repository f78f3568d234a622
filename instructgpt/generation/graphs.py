"""Decoding from CUDA graphs: a step is recorded once and then launched whole, for a token's kernels take the GPU less
time than Python takes to name them.

A graph is a list of launches on fixed addresses. So a batch is moved into the buffers of a recorded size, the next
power of two, and moves on into smaller ones as its rows finish. What changes from step to step lies in tensors: the
slot to be written, the tokens, the random numbers. A decoder lives for one call and records anew: weights that have
changed since, or moved, are those of the next call.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from instructgpt.generation.decoding import Decoder, DecodeState
from instructgpt.generation.sampling import SamplingConfig
from instructgpt.model.cache import KVCache
from instructgpt.model.transformer import Transformer
from instructgpt.text.tokenizer import Tokenizer
from kernels.launch import cdiv, next_power_of_2

WORTH_RECORDING = 8
"""Steps from which on it pays: recording takes as long as a few steps called one by one."""
_CAPACITY_UNIT = 256
"""Recorded buffers hold a multiple of so many tokens, so that the next batch, a little longer, finds room in them."""


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """Where steps are recorded: one for all, since libraries keep memory for each stream that they were called on."""
    return torch.cuda.Stream(device)


@dataclass
class _Recording:
    state: DecodeState
    replay: Callable[[], None]


class GraphedDecoder(Decoder):
    """A decoder on a CUDA device whose steps are recorded, and replayed on states that it holds."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, config: SamplingConfig):
        super().__init__(model, tokenizer, config)
        self._recordings: dict[int, _Recording] = {}  # by rows
        self._pool: Any = None
        self._may_record = not config.punishes  # what was generated grows

    def rows_for(self, rows: int) -> int:
        return next_power_of_2(rows) if self._may_record else rows

    def hold(self, state: DecodeState, steps: int) -> DecodeState:
        if not self._may_record or steps < WORTH_RECORDING:
            return state
        rows = next_power_of_2(state.rows)
        recording = self._recordings.get(rows)
        if recording is None or recording.state.cache.capacity < state.cache.capacity:
            self._recordings.pop(rows, None)
            del recording  # its memory goes before other is asked for
            try:
                self._recordings[rows] = recording = self._record(rows, state)
            except RuntimeError as error:
                self._may_record = False
                reason = str(error).partition("\n")[0]
                print(f"no CUDA graphs, steps are launched one by one: {reason}", file=sys.stderr)
                return state
        recording.state.load(state)
        return recording.state

    def advance(self, state: DecodeState) -> None:
        recording = self._recordings.get(state.rows)
        if recording is None or recording.state is not state:
            return super().advance(state)
        if state.cache.length >= state.cache.capacity:
            raise ValueError(f"the cache holds {state.cache.capacity} tokens a row, and it is full")
        recording.replay()
        state.cache.length += 1  # what the graph does not know of

    def _record(self, rows: int, like: DecodeState) -> _Recording:
        """Buffers for so many rows, otherwise as `like` has them, and the step on them."""
        capacity = _CAPACITY_UNIT * cdiv(like.cache.capacity, _CAPACITY_UNIT)
        cache = KVCache(self.model.config, rows, capacity, self.device, like.cache.keys.dtype, fixed=True)
        state = self.empty_state(cache, torch.zeros(rows, like.numbers.size(1), device=self.device))
        return _Recording(state, self._capture(state))

    def _capture(self, state: DecodeState) -> Callable[[], None]:
        """What does on the device what `Decoder.advance` would; it leaves the state somewhere, to be loaded anew."""
        advance, graph = super().advance, torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            current, side = torch.cuda.current_stream(), _side_stream(torch.cuda.current_device())
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(2):  # kernels are compiled, libraries take their memory
                    advance(state)
            # Another thread may copy a batch meanwhile; only this one is recorded. What PyTorch keeps of its first
            # recording must not belong to inference mode, or later ones outside of it fail (PyTorch 2.10).
            recording = torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local")
            with torch.inference_mode(False), recording, torch.inference_mode():
                advance(state)
            current.wait_stream(side)
        return graph.replay
