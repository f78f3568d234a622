"""A student's file: written with an empty body, and judged in a process of its own, which may crash or never end."""

from __future__ import annotations

import ast
import importlib.util
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from textwrap import fill, indent

import torch

from instructgpt.course.at_hand import comment
from instructgpt.course.exercise import exercise
from instructgpt.course.judge import Verdict, judge
from instructgpt.course.source import Function, Source
from instructgpt.errors import UserError
from kernels.lab.limits import Wrong
from kernels.lab.processes import Ended, in_order
from kernels.lab.surroundings import Names

STARTING = 120.0
"""Seconds that a process may take to be there, on a busy machine, before its own time begins."""
PRINTED = 1 << 20
"""Bytes that a file may print."""
JUDGING = ("instructgpt.course.", "kernels.lab.")
"""Modules that judge, in which nothing may be replaced."""


# ---- beginning


def beginning(name: str, judged_by: str) -> str:
    """The file that a student starts with; judged_by: the command that judges it."""
    what = exercise(name)
    source = Source.of(what.target)
    imports = source.imports(what.without, what.helpers)
    at_hand = comment(source.names(what.without, what.helpers), what.has)
    title = what.title if what.title.endswith("?") else f"{what.title}."
    # A comment: in a docstring, a backslash of a path would be no backslash.
    command = indent(f"Judge it with: {judged_by}", "# ")
    return f'"""{title}\n\n{fill(what.about, 116)}\n"""\n{command}\n\n{imports}\n{at_hand}\n\n{source.empty()}'


def solution(name: str) -> str:
    """Ours, and where it stands."""
    source = Source.of(exercise(name).target)
    return f"# {source.place}\n{source.text}"


# ---- judging


@dataclass(frozen=True)
class Judged:
    """What is to be told of a student's file."""

    verdict: Verdict | None
    """None where no verdict was reached, as `ended` says."""
    ended: str = ""
    printed: tuple[str, ...] = ()
    """Lines that it printed."""
    printed_in: int = 0
    """The check in which it did; 0: all that it printed anywhere."""


def require_function(path: Path, name: str, written_by: str) -> None:
    """UserError unless the file can be read, is Python, and has a function of this name. written_by: the command that
    writes one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in a text is no reason for another line
            tree = ast.parse(path.read_bytes())  # bytes, for Python to see in which encoding they are
    except FileNotFoundError:
        raise UserError(f"there is no such file; write one with: {written_by}", path) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", path) from None
    except SyntaxError as error:
        raise UserError(f"is not Python: {error.msg}", path, error.lineno or 1) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"is not Python: {error or 'it is nested too deeply'}", path) from None
    if not any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body):
        raise UserError(f"has no function {name!r} at its left margin: that is what is judged", path)


def attempt(name: str, path: Path, written_by: str) -> Judged:
    """Judges a student's file. UserError for one that cannot be read, imported, or lacks the function. written_by: the
    command that writes one."""
    what = exercise(name)
    require_function(path, Source.of(what.target).name, written_by)
    # Read by the process that judges. Where there is a GPU too: there, kernels choose other ways for what is small, and
    # the student's might not be called at all.
    os.environ["TRITON_INTERPRET"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        log, at = Path(folder, "log"), Path(folder, "at")
        log.touch()
        call = (name, path.resolve(), log, at, what.seconds)
        (answer,) = in_order(judged_file, [call], what.seconds + STARTING)
        is_flood = log.stat().st_size >= PRINTED
        begun = [tuple(map(int, line.split())) for line in at.read_text().splitlines()] if at.exists() else []
        last = max((number for number, _ in begun), default=0)
        failure = answer.failure if isinstance(answer, Verdict) else None
        looked_at = failure.number if failure else 0 if isinstance(answer, Verdict) else last
        printed = printed_in(log.read_bytes(), begun, looked_at)
    where = f"in check {last} of {len(what.checks)} ({what.checks[last - 1].says})" if last else "on import"
    if is_flood:
        return Judged(None, f"it had printed {PRINTED >> 20} MB, {where}: does a loop print for ever?", *printed)
    if isinstance(answer, Verdict):
        return Judged(answer, "", *printed)
    if isinstance(answer, str):
        return Judged(None, answer, *printed)
    if answer.exit_code in (None, -signal.SIGALRM):
        return Judged(None, f"it had not ended after {what.seconds:g} s, {where}: does a loop run for ever?", *printed)
    return Judged(None, f"it ended its process (exit code {answer.exit_code}), {where}", *printed)


def printed_in(log: bytes, begun: list[tuple[int, ...]], number: int) -> tuple[tuple[str, ...], int]:
    """The lines that were printed in the check of this number, and the number; where there are none, all lines, and 0.

    begun: (number, bytes of the log by then) of each check in turn.
    """
    ends = [size for _, size in begun[1:]] + [len(log)]
    own = b"".join(log[begin:end] for (each, begin), end in zip(begun, ends) if each == number)
    text = (own.strip() and number and own) or log
    return tuple(text.decode("utf-8", errors="replace").splitlines()), number if text is own else 0


def judged_file(name: str, path: Path, log: Path, at: Path, seconds: float) -> Verdict | str | Ended:
    """In a process of its own: the verdict, or why there is none. What the file prints goes to `log`, the number of the
    check to `at`, with how much was printed by then. Raises UserError for a file that cannot be imported."""
    torch.set_num_threads(1)
    limit_files(PRINTED)
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        what = exercise(name)
        source, judging = Source.of(what.target), Names(JUDGING, of_others=False)
        signal.setitimer(signal.ITIMER_REAL, seconds)  # ends the process, whatever it is doing

        def begin(number: int) -> None:
            with suppress(OSError):  # it has printed too much, which is told
                sys.stdout.flush()
                sys.stderr.flush()
            with open(at, "a") as file:
                file.write(f"{number} {log.stat().st_size}\n")

        function = function_of(path, source.name)
        if function is source.function:
            return f"its {source.name} is our own, imported: write it yourself"
        verdict = judge(what, function, begin)
        judging.require_unchanged()
        return verdict
    except Wrong as error:
        return str(error)
    except SystemExit as exit:
        return Ended(exit.code if isinstance(exit.code, int) else 1)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def limit_files(size: int) -> None:
    """So that no file grows beyond this, whatever is written to it: Python raises an OSError then."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def function_of(path: Path, name: str) -> Function:
    """Imports the file. UserError, with the line, for whatever it raises, and where it has no such function."""
    loader = SourceFileLoader(f"student_{path.stem}", str(path.absolute()))  # whatever the file's ending
    declaration = importlib.util.spec_from_file_location(loader.name, path, loader=loader)
    assert declaration is not None
    module = importlib.util.module_from_spec(declaration)
    sys.modules[module.__name__] = module
    with blaming(path, "importing it"):
        loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"has no function {name!r}", path)
    return function


@contextmanager
def blaming(path: Path, what: str) -> Iterator[None]:
    """UserError, with the file's line, for whatever is raised inside while `what` is done."""
    try:
        yield
    except Exception as error:
        own = str(path.absolute())  # as Python names it
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own]
        told = str(error) if isinstance(error, UserError) else f"{what} raised {type(error).__name__}: {error}"
        raise UserError(told, path, lines[-1] if lines else None) from None
