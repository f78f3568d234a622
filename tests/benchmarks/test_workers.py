from __future__ import annotations

import itertools
import os
import time
from types import SimpleNamespace

import pytest

from benchmarks import workers
from benchmarks.workers import Failed, Measure, Prepared, alone, chosen, in_turn, middle
from instructgpt.errors import UserError


def counting(step: float) -> Measure:
    """Measures step, 2·step, …, and the process that it is in."""
    count = 0

    def measure() -> dict[str, float]:
        nonlocal count
        count += 1
        if step < 0:
            raise ValueError("it cannot be\nmeasured")
        return {"value": count * step, "process": os.getpid()}

    return measure


def impossible() -> Measure:
    raise ImportError("No module named 'nothing'")


def ending() -> Measure:
    os._exit(7)


@pytest.fixture(scope="module")
def found() -> tuple[dict[str, object], list[str]]:
    said: list[str] = []
    works = {
        "one": Prepared(counting, (1.0,)),
        "unmeasured": Prepared(counting, (-1.0,)),
        "impossible": Prepared(impossible),
        "ending": Prepared(ending),
        "ten": Prepared(counting, (10.0,)),
    }
    return dict(in_turn(works, rounds=3, prepared_at_once=5, say=said.append)), said


def test_each_measures_once_a_round_in_a_process_of_its_own(found):
    one, ten = found[0]["one"], found[0]["ten"]
    assert [each["value"] for each in one] == [1, 2, 3] and [each["value"] for each in ten] == [10, 20, 30]
    processes = {each["process"] for each in one} | {each["process"] for each in ten}
    assert len(processes) == 2 and os.getpid() not in processes


def test_what_fails_says_why_and_the_others_go_on(found):
    figures, said = found
    assert figures["unmeasured"] == "ValueError: it cannot be"
    assert figures["impossible"] == "ImportError: No module named 'nothing'"
    assert figures["ending"] == "the process ended with code 7"
    assert len(said) == 3


def test_alone_raises():
    with pytest.raises(Failed, match="No module named 'nothing'"):
        alone(Prepared(impossible))


def test_middle_is_the_median_of_each_figure():
    assert middle([{"a": 1.0, "b": 5.0}, {"a": 9.0, "b": 4.0}, {"a": 2.0, "b": 6.0}]) == {"a": 2.0, "b": 5.0}


def never() -> Measure:
    time.sleep(600)
    raise AssertionError


def test_what_is_not_ready_in_time_is_given_up_and_the_rest_counts(monkeypatch):
    """One that is prepared in time is measured for as long as there is time; one that is not says so."""
    times = itertools.chain([0.0, 0.0], itertools.repeat(800.0))  # the beginning, the wait for the first, all later
    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: next(times)))
    rounds: list[dict[str, object]] = []
    works = {"quick": Prepared(counting, (1.0,)), "slow": Prepared(never), "never begun": Prepared(never)}
    found = in_turn(
        works, rounds=2, say=lambda _: None, seconds=1000.0, after_round=lambda so_far: rounds.append(dict(so_far))
    )
    assert [each["value"] for each in found["quick"]] == [1, 2]  # type: ignore[index]
    assert found["slow"] == found["never begun"] == "no time was left for it"
    assert len(rounds) == 2 and len(rounds[0]["quick"]) == 1  # type: ignore[arg-type]


def test_only_chooses_rows_and_a_row_that_there_is_not_is_told() -> None:
    works = {"1  float32": 1, "3  float32": 2, "3  int8": 3}
    assert chosen(works, ()) == works
    assert chosen(works, ("3  int8",)) == {"3  int8": 3}
    assert chosen(works, ("float32",), lambda name: name[3:]) == {"1  float32": 1, "3  float32": 2}
    for only in (("off",), ("3  int8", "of"), ("3 int8",)):
        with pytest.raises(UserError, match=f"--only '{only[-1]}' is no row of the table; .*int8"):
            chosen(works, only)
