"""Does `check` see bugs? Each mutant of a spec is planted in a copy of the kernel's file, which must then fail.

Every mutant runs in a process of its own: a custom op is registered once a process, and what a mutant writes outside of
its tensors may end one.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import kernels
from kernels.lab.check import check
from kernels.lab.find import Kernel, UsageError, add_kernel_argument, find, load
from kernels.lab.processes import Ended, in_order
from kernels.lab.spec import Mutant

LONGEST = 300.0
"""Seconds after which a mutant that does not end is given up."""


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant."""

    mutant: str
    examples: int
    """Tried until it was caught, or in all."""
    is_caught: bool
    what: str
    """How it was caught, or why it was not."""


def plant(kernel: Kernel, mutant: Mutant) -> str:
    """The source of the mutant's file with the mutant in it; UsageError where it cannot be placed."""
    path = kernel.path.with_name(mutant.file) if mutant.file else kernel.path
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    # The specs, further down, quote the text of their mutants.
    end = len(source) if mutant.file else sum(map(len, lines[: kernel.specs_begin - 1]))
    count = source.count(mutant.old, 0, end)
    if count != 1:
        raise UsageError(
            f"{path}: the text of mutant {mutant.name!r} occurs {count} times above the specs; it must occur once"
        )
    return source[:end].replace(mutant.old, mutant.new) + source[end:]


def run_mutants(kernel: Kernel, examples: int = 100, seed: int = 0) -> Iterator[Outcome]:
    """Plants one mutant after the other; each is over when `check` fails, or has drawn all examples."""
    planted = [(mutant, plant(kernel, mutant)) for mutant in kernel.spec.mutants]
    with ExitStack() as folders:
        calls = []
        for mutant, source in planted:
            folder = folders.enter_context(tempfile.TemporaryDirectory())
            path = Path(folder, mutant.file or kernel.path.name)
            path.write_text(source, encoding="utf-8")
            calls.append((mutant.name, path, kernel.path, kernel.declare.__name__, examples, seed))
        for (mutant, _), answer in zip(planted, in_order(try_mutant, calls, LONGEST)):
            if not isinstance(answer, Ended):
                yield answer
            elif answer.exit_code is None:
                yield Outcome(mutant.name, 0, False, f"error: no end after {LONGEST:.0f} s")
            else:
                yield Outcome(mutant.name, 1, True, f"its process died (exit code {answer.exit_code})")


def try_mutant(name: str, path: Path, original: Path, declaration: str, examples: int, seed: int) -> Outcome:
    """In a process of its own: checks the mutated file."""
    try:
        if path.name != original.name:  # the spec's own file is as it was, and imports the mutated one
            load(path, f"{kernels.__name__}.{path.stem}")
            path = original
        module = load(path, f"mutant_{path.stem}", neighbours=original.parent)
        report = check(getattr(module, declaration)(), examples, seed=seed, shrink=False)
    except Exception as error:
        return Outcome(name, 0, False, f"error: {type(error).__name__}: {error}")
    if report.failure is None:
        return Outcome(name, report.examples, False, "survived")
    failure = report.failure
    if failure.is_exception:  # a mutant that does not even run shows nothing about the check
        return Outcome(name, report.examples, False, f"error: {failure.what}")
    return Outcome(name, report.examples, True, f"{failure.what}; {failure.dtype}, {failure.layout}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_kernel_argument(parser)
    parser.add_argument("--examples", type=int, default=100, metavar="N", help="at most for a mutant (default 100)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="draws other examples (default 0)")
    parser.add_argument("--interpret", action="store_true", help="in the interpreter, on a machine with a GPU too")


def run(options: argparse.Namespace) -> int:
    """The command: a line for each mutant; 1 where one survives or does not run."""
    if options.examples < 1:
        raise UsageError(f"--examples is {options.examples}; it must be at least 1")
    all_caught = True
    for kernel in find(options.kernel):
        mutants = kernel.spec.mutants
        width = max((len(mutant.name) for mutant in mutants), default=0)
        print(f"{kernel.target}: {len(mutants)} mutants, by the examples that each took to be caught")
        for outcome in run_mutants(kernel, options.examples, options.seed):
            after = f"{outcome.examples:5}" if outcome.is_caught else " FAIL"
            print(f"  {outcome.mutant:{width}} {after}  {outcome.what}", flush=True)
            all_caught &= outcome.is_caught
    return int(not all_caught)
