"""Which launch is fastest on this very device? Measured when asked for, kept in a file that `kernels.launch` reads."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels.lab.calls import cotangents_for, describe, prepare
from kernels.lab.find import add_kernel_argument, find
from kernels.lab.instruments import Instruments, cuda_instruments, have_same_values, in_turn
from kernels.lab.output import table, write_json
from kernels.lab.spec import Case, Spec
from kernels.launch import Launch, choosing, tuned_file


@dataclass(frozen=True)
class Question:
    """What a kernel asked `tuned` in one phase of a case."""

    op: str
    key: str
    default: Launch
    others: tuple[Launch, ...]


@dataclass(frozen=True)
class Tuned:
    """The answer."""

    op: str
    key: str
    best: Launch
    milliseconds: float
    default_milliseconds: float
    tried: int
    refused: int
    """Launches that failed, or computed something else."""


def tune_case(spec: Spec, case: Case, instruments: Instruments) -> list[Tuned]:
    """Tries every launch that the case's kernels offer, forward and backward, one kernel at a time."""
    with torch.cuda.stream(instruments.stream):
        return _tune_case(spec, case, instruments)


def _tune_case(spec: Spec, case: Case, instruments: Instruments) -> list[Tuned]:
    torch.manual_seed(0)
    call = prepare(spec, case, instruments.device)
    calls = [call, *(call.copy() for _ in range(2 * instruments.cache_bytes // max(call.bytes, 1)))]
    forwards = [lambda c=c: c.forward(spec.op) for c in calls]
    found = _tune_phase(forwards, instruments)
    outputs = [forward() for forward in forwards]
    cotangents = cotangents_for(outputs[0])
    if cotangents:
        backwards = [lambda c=c, y=y: c.backward(y, cotangents, again=True) for c, y in zip(calls, outputs)]
        found += _tune_phase(backwards, instruments)
    return found


def _tune_phase(calls: Sequence[Callable[[], list[Tensor]]], instruments: Instruments) -> list[Tuned]:
    questions: dict[tuple[str, str], Question] = {}

    def note(op: str, key: str, default: Launch, others: Sequence[Launch]) -> Launch:
        questions[op, key] = Question(op, key, default, tuple(others))
        return default

    with choosing(note), nan_in_new_memory():
        expected = calls[0]()
    chosen: dict[tuple[str, str], Launch] = {}
    return [_answer(question, calls, expected, chosen, instruments) for question in questions.values()]


def _answer(
    question: Question,
    calls: Sequence[Callable[[], list[Tensor]]],
    expected: list[Tensor],
    chosen: dict[tuple[str, str], Launch],
    instruments: Instruments,
) -> Tuned:
    """Measures one kernel's launches; `chosen` holds what the kernels before it were given, and takes the best."""
    asked = question.op, question.key
    candidates = [question.default, *(launch for launch in question.others if launch != question.default)]
    times: list[tuple[float, int]] = []
    for index, candidate in enumerate(candidates):
        given = {**chosen, asked: candidate}
        with choosing(lambda op, key, default, others, given=given: given.get((op, key), default)):
            try:
                with nan_in_new_memory():
                    got = calls[0]()
                if have_same_values(got, expected):
                    times.append((instruments.timing(in_turn(calls)).median, index))
            except Exception:  # too much shared memory, or too many registers: each Triton has errors of its own
                if index == 0:
                    raise
    time, index = min(times)
    chosen[asked] = candidates[index]
    return Tuned(*asked, candidates[index], time, times[0][0], len(candidates), len(candidates) - len(times))


@contextmanager
def nan_in_new_memory() -> Iterator[None]:
    """Inside, `torch.empty` gives NaN, so that results left over from another launch are not taken for this one's."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_kernel_argument(parser)


def run(options: argparse.Namespace) -> int:
    """Tunes on the specs' benchmark cases, prints, and adds to the file that `tuned` reads."""
    specs = [kernel.spec for kernel in find(options.kernel)]
    instruments = cuda_instruments()
    if instruments is None:
        print("no CUDA device here: nothing tuned, nothing written")
        return 0
    found = []
    for spec in specs:
        for case in spec.benchmarks:
            answers = tune_case(spec, case, instruments)
            print(f"{spec.name}: {describe(case)}" + ("" if answers else ": its kernels ask for no tuning"))
            found += answers
    path = Path(tuned_file())
    save(path, instruments.name, found)
    print(report(found), f"written to {path}", sep="\n")
    return 0


def save(path: Path, device: str, found: Sequence[Tuned]) -> None:
    """Adds answers to the file; what other devices, ops and keys hold stays."""
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for answer in found:
        known.setdefault(device, {}).setdefault(answer.op, {})[answer.key] = asdict(answer.best)
    write_json(path, known)


def report(found: Sequence[Tuned]) -> str:
    rows = [
        [
            t.op, t.key, " ".join(f"{key}={value}" for key, value in t.best.options.items()),
            f"{t.milliseconds:.4f}", f"{t.default_milliseconds:.4f}", f"{t.tried - t.refused} of {t.tried}",
        ]
        for t in found
    ]  # fmt: skip
    return table(["op", "key", "best launch", "ms", "default ms", "usable"], rows)
