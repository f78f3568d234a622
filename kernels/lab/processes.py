"""Jobs in processes of their own, several at once, answered in their order.

A kernel may end its process (an interpreted store outside of memory corrupts the heap), registers ops that cannot be
registered twice, and should not find what another one left behind. The processes are forked from one that has imported
PyTorch and Triton already.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

PRELOADED = ["kernels.lab.check", "kernels.lab.compile"]


@dataclass(frozen=True)
class Ended:
    """A job that gave no answer."""

    exit_code: int | None
    """None where it was ended, since it took too long."""


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    job: Callable[..., Any], calls: Sequence[tuple[Any, ...]], longest: float = float("inf"), at_once: int = 0
) -> Iterator[Any]:
    """What job(*call) returns for each call, or Ended; `at_once` processes (as many as cores) of `longest` seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    running: dict[int, tuple[Any, Connection, float]] = {}
    answers: dict[int, Any] = {}
    started = 0
    try:
        for wanted in range(len(calls)):
            while wanted not in answers:
                while started < len(calls) and len(running) < (at_once or cores()):
                    receiver, sender = context.Pipe(duplex=False)
                    process = context.Process(target=answer, args=(sender, job, calls[started]))
                    process.start()
                    sender.close()  # so that the receiver notices when the process ends without an answer
                    running[started] = process, receiver, time.monotonic() + longest
                    started += 1
                first_end = min(end for _, _, end in running.values()) - time.monotonic()
                ready = wait([receiver for _, receiver, _ in running.values()], timeout=min(max(first_end, 0.0), 1e6))
                for index, (process, receiver, end) in list(running.items()):
                    if receiver in ready:
                        answers[index] = received(process, receiver)
                    elif time.monotonic() > end:
                        answers[index] = Ended(None)
                    else:
                        continue
                    stop(*running.pop(index)[:2])
            answered = answers.pop(wanted)
            if isinstance(answered, Exception):
                raise answered
            yield answered
    finally:
        for process, receiver, _ in running.values():
            stop(process, receiver)


def answer(answers: Connection, job: Callable[..., Any], call: tuple[Any, ...]) -> None:
    """In the process: an exception is an answer too. What is printed there is none: it goes where errors go."""
    os.dup2(2, 1)
    try:
        value = job(*call)
    except Exception as error:
        value = error
    answers.send(value)


def received(process: Any, receiver: Connection) -> Any:
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        return Ended(process.exitcode)


def stop(process: Any, receiver: Connection) -> None:
    receiver.close()
    process.kill()
    process.join()
