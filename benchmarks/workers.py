"""Measurements that take turns, each in a process of its own.

A process's peak memory is its own, and so is what it compiled. The processes prepare first, a few at a time; then each
measures once in every round, so that a change of the machine's pace meets them all. Where time is short, what was
prepared by three quarters of it is measured, and what was measured counts.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from contextlib import redirect_stdout
from multiprocessing.connection import Connection
from statistics import median
from typing import Any, NamedTuple, TypeVar

from instructgpt.errors import UserError, suggestion

_TOO_LATE = "no time was left for it"
"""Why a work was given up whose process was not to blame."""

Figures = dict[str, float]
Measure = Callable[[], Figures]
Work = TypeVar("Work")


class Prepared(NamedTuple):
    """What a process is to measure: `prepare(*arguments)` gives the function that measures once."""

    prepare: Callable[..., Measure]
    """Importable by name: the process is a new one."""
    arguments: tuple[Any, ...] = ()


class Failed(Exception):
    """A process could not prepare or measure; the message is the error's last line."""


class _Worker:
    def __init__(self, work: Prepared):
        context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
        self._line, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, work), daemon=True)
        self._process.start()
        other.close()

    def wait(self, deadline: float = math.inf) -> Figures:
        """What the process says next, until `deadline` on the clock of `time.monotonic`. Errors: Failed."""
        try:
            left = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
            if not self._line.poll(left):
                self._process.terminate()
                raise Failed(_TOO_LATE)
            said = self._line.recv()
        except EOFError:
            self._process.join()
            raise Failed(f"the process ended with code {self._process.exitcode}") from None
        if isinstance(said, str):
            raise Failed(said)
        return said

    def measure(self, deadline: float = math.inf) -> Figures:
        self._line.send(True)
        return self.wait(deadline)

    def end(self) -> None:
        self._line.close()  # where it waits for the next round, it ends by itself
        self._process.join(5)
        self._process.terminate()
        self._process.join()


def _serve(line: Connection, work: Prepared) -> None:
    """The process's part: prepares, says so, and measures as often as it is asked to."""
    try:
        with redirect_stdout(sys.stderr):  # what is measured may talk; the table is the parent's
            measure = work.prepare(*work.arguments)
            line.send({})
            while line.recv():
                line.send(measure())
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass
    except BaseException as error:
        if os.environ.get("BENCHMARKS_DEBUG"):
            traceback.print_exc()
        line.send((f"{type(error).__name__}: {error}".strip().splitlines() or ["it failed"])[0][:200])


def chosen(works: Mapping[str, Work], only: Collection[str], row: Callable[[str], str] = str) -> dict[str, Work]:
    """The works whose rows --only names; all, where it names none. Errors: UserError for a row that there is not."""
    rows = dict.fromkeys(map(row, works))
    for name in only:
        if name not in rows:
            raise UserError(f"--only {name!r} is no row of the table{suggestion(name, rows)}")
    return {name: work for name, work in works.items() if not only or row(name) in only}


def in_turn(
    works: Mapping[str, Prepared],
    rounds: int,
    prepared_at_once: int = 1,
    say: Callable[[str], None] = print,
    seconds: float = math.inf,
    after_round: Callable[[dict[str, list[Figures] | str]], None] = lambda found: None,
) -> dict[str, list[Figures] | str]:
    """The figures of each work, one a round; for one that failed, why.

    prepared_at_once: how many prepare at the same time, which compiling gains from where there are cores for it.
    seconds: how long it all may take; works are prepared in their order, so the first are sooner measured.
    after_round: told what was found so far, after every round, for what is written down survives being cut off.
    """
    began = time.monotonic()
    workers: dict[str, _Worker] = {}
    found: dict[str, list[Figures] | str] = {}
    try:
        waiting = list(works)
        starting: list[str] = []
        ready_by = began + 0.75 * seconds
        while waiting or starting:
            while waiting and len(starting) < prepared_at_once:
                starting.append(waiting.pop(0))
                workers[starting[-1]] = _Worker(works[starting[-1]])
            name = starting.pop(0)
            found[name] = _said(name, workers, lambda worker: worker.wait(ready_by), say)
        for _ in range(rounds):
            for name in works:
                figures = found[name]
                if isinstance(figures, str):
                    continue
                measured = _said(name, workers, lambda worker: worker.measure(began + seconds), say)
                # What was measured before the time was up is worth something without this round.
                found[name] = figures or measured if isinstance(measured, str) else figures + measured
            after_round(found)
            if not workers or time.monotonic() - began > seconds:
                break
    finally:
        for worker in workers.values():
            worker.end()
    return found


def _said(
    name: str, workers: dict[str, _Worker], ask: Callable[[_Worker], Figures], say: Callable[[str], None]
) -> list[Figures] | str:
    """What the process answers, as a list of one; none at the end of its preparation; why it failed."""
    try:
        figures = ask(workers[name])
    except Failed as error:
        say(f"{name}: {error}")
        workers.pop(name).end()
        return str(error)
    return [figures] if figures else []


def alone(work: Prepared) -> Figures:
    """Prepares and measures once, in a new process. Errors: Failed."""
    worker = _Worker(work)
    try:
        worker.wait()
        return worker.measure()
    finally:
        worker.end()


def middle(figures: list[Figures]) -> Figures:
    """The medians."""
    return {key: median(each[key] for each in figures) for key in figures[0]}
