"""Jobs that wait for one another, as many at once as there are workers, each in a process of its own.

Small models do not fill several cores: two processes of one thread each are nearly twice as fast as one of two. A
process of its own also makes a job's peak memory its own.
"""

from __future__ import annotations

import multiprocessing
import re
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from instructgpt.errors import UserError
from instructgpt.flags import run_main
from instructgpt.runtime import cores
from instructgpt.stages.advice import advising


@dataclass(frozen=True)
class Job:
    """A function call that needs other jobs done first."""

    name: str
    function: Callable[..., Any]
    """Importable by name, as are its arguments' types: the process is a new one."""
    arguments: tuple[Any, ...]
    log: Path
    """Where its output goes."""
    needs: tuple[str, ...] = ()
    """Names of jobs; those that are not among the jobs count as done."""


def threads_of(job: Job, jobs: Sequence[Job], workers: int) -> int:
    """Threads for `job`: its share of the cores beside those jobs that may run at the same time.

    It follows from the jobs alone, and not from which of them happen to run when it begins: another number of threads
    would add up in another order, and give another model on a busier machine.
    """
    needs = {each.name: each.needs for each in jobs}

    def before(name: str) -> set[str]:
        direct = {need for need in needs[name] if need in needs}
        return direct.union(*map(before, direct))

    beside = sum(job.name not in before(each.name) and each.name not in before(job.name) for each in jobs)  # and itself
    return max(1, cores() // min(workers, beside))


def run_jobs(jobs: Sequence[Job], workers: int, done: Collection[str] = ()) -> None:
    """Runs all jobs but those that are `done`, by name; returns when all are done.

    A line on standard output says which begins and which ends, and what it says of how long it will take.

    Raises UserError when one fails, with the last line of its log, after the running ones are stopped (a training stage
    saves before it stops); KeyboardInterrupt likewise.
    """
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    waiting = [job for job in jobs if job.name not in done]
    running: dict[Any, tuple[Job, Any, float]] = {}
    unfinished = {job.name for job in waiting}
    unheard = set(unfinished)
    started = time.monotonic()
    try:
        while waiting or running:
            ready = [job for job in waiting if not unfinished.intersection(job.needs)]
            for job in ready[: workers - len(running)]:
                waiting.remove(job)
                job.log.parent.mkdir(parents=True, exist_ok=True)
                job.log.unlink(missing_ok=True)
                arguments = (job.function, job.arguments, str(job.log), threads_of(job, jobs, workers))
                process = context.Process(target=_run, args=arguments, name=job.name)
                process.start()
                running[process.sentinel] = (job, process, time.monotonic())
                _say(started, f"{job.name} begins")
            ended = wait(list(running), timeout=None if unheard.isdisjoint(_names(running)) else 1.0)
            for job, _, _ in running.values():
                if job.name in unheard and (line := _foretold(job)):
                    unheard.discard(job.name)
                    _say(started, line)
            for sentinel in ended:
                job, process, began = running.pop(sentinel)
                process.join()
                if process.exitcode:
                    raise UserError(f"{job.name} failed: {_last_line(job.log)}", job.log)
                unfinished.discard(job.name)
                unheard.discard(job.name)
                _say(started, f"{job.name} done in {(time.monotonic() - began) / 60:.1f} min")
    except KeyboardInterrupt:
        # They were interrupted with this process, and save: a second signal would cut that short.
        for _, process, _ in running.values():
            process.join(60)
        raise
    finally:
        for _, process, _ in running.values():
            process.terminate()
        for _, process, _ in running.values():
            process.join()


def _run(function: Callable[..., Any], arguments: tuple[Any, ...], log: str, threads: int) -> None:
    """The new process's part."""
    torch.set_num_threads(threads)
    with Path(log).open("w", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        code = run_main(lambda: _call(function, arguments))
    sys.exit(code)


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    with advising(arguments[0] if arguments else None):
        function(*arguments)


def _say(started: float, line: str) -> None:
    minutes, seconds = divmod(int(time.monotonic() - started), 60)
    print(f"{minutes:3}:{seconds:02}  {line}", flush=True)


def _names(running: dict[Any, tuple[Job, Any, float]]) -> list[str]:
    return [job.name for job, _, _ in running.values()]


def _foretold(job: Job) -> str:
    """What a stage's log says of how long it will take (`ConsoleLog`), or nothing yet."""
    text = job.log.read_text(encoding="utf-8", errors="replace") if job.log.exists() else ""
    found = re.search(r"^(\w+: about .* minutes? at this pace.*)\n", text, re.MULTILINE)
    return f"{job.name}: {found[1].partition(': ')[2]}" if found else ""


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "it said nothing"
