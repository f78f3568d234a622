"""A student's file: written with an empty body, and judged in a process of its own, which may crash or never end."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from textwrap import fill
from typing import Any

import torch

from instructgpt.course.at_hand import comment
from instructgpt.course.exercise import Exercise, exercise
from instructgpt.course.judge import Verdict, judge
from instructgpt.course.source import Function, Source
from instructgpt.errors import UserError
from instructgpt.strict_json import write_json
from kernels.lab.processes import Ended, in_order

PROGRESS = "progress.json"
STARTING = 120.0
"""Seconds that a process may take to be there, on a busy machine, before its own time begins."""


# ---- beginning


def beginning(name: str, command: str) -> str:
    """The file that a student starts with; command: what judges it."""
    what = exercise(name)
    source = Source.of(what.target)
    about = f"{fill(what.about, 116)}\n\nJudge it with: {command} check {name}"
    imports = source.imports(what.without, what.helpers)
    at_hand = comment(source.names(what.without, what.helpers), what.has)
    title = what.title if what.title.endswith("?") else f"{what.title}."
    return f'"""{title}\n\n{about}\n"""\n\n{imports}\n{at_hand}\n\n{source.empty()}'


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


def require_function(path: Path, name: str, written_by: str) -> None:
    """UserError unless the file can be read, is Python, and has a function of this name. written_by: what makes one."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no such file; {written_by}", path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {error}", path) from None
    except SyntaxError as error:
        raise UserError(f"is not Python: {error.msg}", path, error.lineno or 1) from None
    if not any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body):
        raise UserError(f"has no function {name!r} at its left margin: that is what is judged", path)


def attempt(name: str, path: Path) -> Judged:
    """Judges a student's file. UserError for one that cannot be read, imported, or lacks the function."""
    what = exercise(name)
    require_function(path, Source.of(what.target).name, f"exercise start {path.stem} writes it")
    # Read by the process that judges. Where there is a GPU too: there, kernels choose other ways for what is small, and
    # the student's might not be called at all.
    os.environ["TRITON_INTERPRET"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        log, at = Path(folder, "log"), Path(folder, "at")
        log.touch()
        call = (name, path.resolve(), log, at, what.seconds)
        (answer,) = in_order(judged_file, [call], what.seconds + STARTING)
        printed = tuple(log.read_text(encoding="utf-8", errors="replace").splitlines())
        number = at.read_text() if at.exists() else ""
    if isinstance(answer, UserError):
        raise answer
    if isinstance(answer, Verdict):
        return Judged(answer, printed=printed)
    where = f"in check {number} of {len(what.checks)} ({what.checks[int(number) - 1].says})" if number else "on import"
    if answer.exit_code in (None, -signal.SIGALRM):
        return Judged(None, f"it had not ended after {what.seconds:g} s, {where}: does a loop run for ever?", printed)
    return Judged(None, f"it ended its process (exit code {answer.exit_code}), {where}", printed)


def judged_file(name: str, path: Path, log: Path, at: Path, seconds: float) -> Verdict | UserError | Ended:
    """In a process of its own: the verdict; what the file prints goes to `log`, the number of the check to `at`."""
    torch.set_num_threads(1)
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        what = exercise(name)
        signal.setitimer(signal.ITIMER_REAL, seconds)  # ends the process, whatever it is doing

        def begin(number: int) -> None:
            at.write_text(str(number))

        function = function_of(path, Source.of(what.target).name)
        return judge(what, function, begin)
    except UserError as error:
        return error
    except SystemExit as exit:
        return Ended(exit.code if isinstance(exit.code, int) else 1)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


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


# ---- progress


def read_progress(folder: Path) -> dict[str, dict[str, Any]]:
    """By exercise: `tries`, `solved`, `hints` given, `seen` where ours was shown. UserError for a broken file."""
    path = folder / PROGRESS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"is no record of progress: {error}; remove it to begin anew", path) from None
    if not isinstance(found, dict) or not all(isinstance(entry, dict) for entry in found.values()):
        raise UserError("is no record of progress: it should have an object for each exercise; remove it", path)
    return found


def note(folder: Path, name: str, **news: Any) -> dict[str, Any]:
    """Writes what is new of an exercise into the record, and gives all that it says of it."""
    progress = read_progress(folder)
    entry = progress.setdefault(name, {}) | news
    progress[name] = entry
    write_json(folder / PROGRESS, progress)
    return entry


def hint(what: Exercise, entry: dict[str, Any]) -> tuple[int, str]:
    """The next hint of an exercise, by what its record says, and its number; the last one again after the last."""
    given = entry.get("hints", 0)
    number = min((given if isinstance(given, int) and given >= 0 else 0) + 1, len(what.hints))
    return number, what.hints[number - 1]
