"""Examples made by other processes before they are asked for: Python makes them one at a time, and a GPU does not wait.

A source is a pure function of the index, so whoever computes it, and when, changes nothing but the pace.
"""

from __future__ import annotations

import multiprocessing
import signal
import weakref
from collections import OrderedDict
from concurrent.futures import Future, ProcessPoolExecutor

import torch

from instructgpt.data.sources import ExampleSource
from instructgpt.data.tokens import Tokens
from instructgpt.runtime import cores

_BLOCK = 128
"""Examples that a process makes at a time: so many that handing them over is cheap."""
_KEPT = 8
"""Blocks behind the one that was read last that are kept: a packer's pool reaches back when it is restored."""


def ahead_for(source: ExampleSource, device: torch.device) -> ExampleSource:
    """The source for training on `device`: made ahead for a GPU, by half of the cores; a CPU has none to spare."""
    if device.type != "cuda":
        return source
    return Ahead(source, workers=max(1, min(8, cores() // 2)))


class Ahead:
    """`source[i]` for every i, made by `workers` processes in the order of the index, from the last one read on.

    The source must be one that can be pickled. What it raises is raised here, at the example it belongs to. The
    processes end with this object.
    """

    def __init__(self, source: ExampleSource, workers: int):
        self._workers = workers
        self._blocks: OrderedDict[int, Future[list[Tokens]]] = OrderedDict()
        # Not forked: a process that has used CUDA cannot be.
        self._pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (source,))
        weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)
        self._pool.submit(int)  # they begin now, which takes seconds, and not when the first example is asked for

    def __getitem__(self, index: int) -> Tokens:
        block, place = divmod(index, _BLOCK)
        for wanted in range(block, block + 2 * self._workers + 1):
            self._ask_for(wanted)
        self._blocks.move_to_end(block)
        while len(self._blocks) > 2 * self._workers + 1 + _KEPT:
            self._blocks.popitem(last=False)[1].cancel()
        return self._blocks[block].result()[place]

    def _ask_for(self, block: int) -> None:
        if block not in self._blocks:
            self._blocks[block] = self._pool.submit(_make, block)


_source: ExampleSource
"""In a worker: what it makes."""


def _begin(source: ExampleSource) -> None:
    global _source
    _source = source
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's goes to all; who trains decides when to end


def _make(block: int) -> list[Tokens]:
    return [_source[index] for index in range(block * _BLOCK, (block + 1) * _BLOCK)]
