from __future__ import annotations

import gc
import multiprocessing
import time

import numpy as np
import pytest
import torch

from instructgpt.data.ahead import Ahead, ahead_for
from instructgpt.data.packing import PackedStream
from instructgpt.data.tokens import Tokens


class Numbered:
    """Example i holds i, i + 1, …, in one of seven lengths; number 1,000 cannot be made."""

    def __getitem__(self, index: int) -> Tokens:
        if index == 1000:
            raise ValueError("there is no example 1000")
        return Tokens.of_text(np.arange(index, index + 2 + index % 7))


@pytest.fixture(scope="module")
def ahead() -> Ahead:
    return Ahead(Numbered(), workers=1)


def test_every_example_is_the_sources_own_in_any_order(ahead: Ahead):
    for index in (0, 1, 127, 128, 700, 3, 5000, 129):
        expected = Numbered()[index]
        assert np.array_equal(ahead[index].ids, expected.ids)
        assert np.array_equal(ahead[index].is_target, expected.is_target)


def test_a_packed_stream_over_it_is_the_same_and_restores(ahead: Ahead):
    plain, quick = (PackedStream(source, 16, 2, pool=32) for source in (Numbered(), ahead))
    for _ in range(20):
        assert torch.equal(next(quick).ids, next(plain).ids)
    resumed = PackedStream(ahead, 16, 2, pool=32)
    resumed.restore(quick.state())
    assert torch.equal(next(resumed).ids, next(plain).ids)


def test_what_the_source_raises_is_raised(ahead: Ahead):
    with pytest.raises(ValueError, match="no example 1000"):
        ahead[1000]
    assert ahead[999 - 128].ids[0] == 999 - 128  # others can still be had


def test_its_processes_end_with_it():
    before = set(multiprocessing.active_children())
    ahead = Ahead(Numbered(), workers=1)
    ahead[0]
    begun = set(multiprocessing.active_children()) - before
    assert len(begun) == 1
    del ahead
    gc.collect()
    deadline = time.monotonic() + 30
    # Not joined here: the pool's thread does it, and what two threads wait for seems alive to one of them.
    while any(process.is_alive() for process in begun) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(process.is_alive() for process in begun)


def test_a_cpu_has_no_core_to_spare():
    source = Numbered()
    assert ahead_for(source, torch.device("cpu")) is source
    assert isinstance(ahead_for(source, torch.device("cuda")), Ahead)
