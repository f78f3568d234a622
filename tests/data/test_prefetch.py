from __future__ import annotations

import threading
from typing import Any

import pytest

from instructgpt.data.prefetch import Prefetched


class Counting:
    """A stream of the numbers from 0; raises at `fails_at`."""

    def __init__(self, fails_at: int = -1):
        self.value, self.fails_at = 0, fails_at

    def __iter__(self) -> Counting:
        return self

    def __next__(self) -> int:
        if self.value == self.fails_at:
            raise StopIteration if self.fails_at % 2 else OSError("unreadable")
        self.value += 1
        return self.value - 1

    def state(self) -> dict[str, Any]:
        return {"value": self.value}

    def restore(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


def test_batches_are_the_streams_own_in_order():
    stream = Prefetched(Counting())
    assert [next(stream) for _ in range(100)] == list(range(100))
    stream.close()


def test_the_state_is_that_of_what_was_handed_out():
    inner = Counting()
    stream = Prefetched(inner, depth=3)
    assert stream.state() == {"value": 0}
    for _ in range(5):
        next(stream)
    assert stream.state() == {"value": 5}
    resumed = Prefetched(Counting())
    resumed.restore(stream.state())
    assert [next(resumed) for _ in range(4)] == [5, 6, 7, 8] == [next(stream) for _ in range(4)]
    stream.close()
    resumed.close()


def test_restoring_throws_away_what_was_made_ahead():
    stream = Prefetched(Counting())
    for _ in range(10):
        next(stream)
    stream.restore({"value": 3})
    assert [next(stream), stream.state()] == [3, {"value": 4}]
    stream.close()


def test_closing_ends_the_thread_and_loses_nothing():
    before = threading.active_count()
    stream = Prefetched(Counting())
    next(stream)
    stream.close()
    assert threading.active_count() == before
    assert next(stream) == 1
    stream.close()


@pytest.mark.parametrize(("fails_at", "error"), [(4, OSError), (5, StopIteration)])
def test_an_error_is_raised_at_the_batch_it_belongs_to(fails_at, error):
    stream = Prefetched(Counting(fails_at))
    assert [next(stream) for _ in range(fails_at)] == list(range(fails_at))
    with pytest.raises(error):
        next(stream)
    assert stream.state() == {"value": fails_at}
