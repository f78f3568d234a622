"""`instructgpt exercise`: functions of this project to write oneself, judged at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

from instructgpt.atomic import write_text
from instructgpt.commands.common import choose
from instructgpt.course import attempt as attempts
from instructgpt.course import progress
from instructgpt.course.exercise import PARTS, exercise, names
from instructgpt.course.source import Source
from instructgpt.errors import UserError
from instructgpt.flags import parse, program
from instructgpt.settings import FilePath, Settings


@dataclass(frozen=True)
class ExerciseConfig(Settings):
    """Functions of this project to write yourself. NAME is one of those that `exercise list` shows."""

    folder: FilePath = "exercises"
    """Where your files are, NAME.py each, and the record of your progress."""


def exercises(argv: Sequence[str]) -> int:
    """Lists the exercises, writes the file of one, judges it, gives hints, shows ours."""
    if (chosen := choose(argv, "exercise", ACTIONS, "list", "ACTION [NAME] [--folder DIR]")) is None:
        return 0
    action, rest = chosen
    prog = f"{program()} exercise"
    named = [] if action == "list" or not rest or rest[0].startswith("-") else rest[:1]
    is_help = bool({"-h", "--help"} & set(rest))
    takes = " NAME" if is_help and action != "list" else ""
    config = parse(ExerciseConfig, rest[len(named) :], f"{prog} {action}{takes}")
    if action == "list":
        return _list(Path(config.folder))
    if not named:
        raise UserError(f"{prog} {action} needs the name of an exercise; {prog} list shows them")
    exercise(named[0])
    return ACTIONS[action][0](named[0], Path(config.folder))


def _list(folder: Path) -> int:
    known = progress.read(folder)
    found = names()
    part = ""
    for number, name in enumerate(found, start=1):
        what, entry = exercise(name), known.get(name, {})
        if (of := PARTS.get(what.place // 100, "more")) != part:
            part = of
            print(f"{part}:")
        mark = "✓" if entry.get("solved") else "·" if entry else " "
        print(f"  {mark} {number:2}  {name:<22} {what.title}")
    solved = sum(known.get(name, {}).get("solved", False) for name in found)
    print(f"{solved} of {len(found)} solved (✓; begun: ·). Begin one with: {program()} exercise start NAME")
    return 0


def _start(name: str, folder: Path) -> int:
    path = folder / f"{name}.py"
    if path.exists():
        raise UserError("is there already, and stays as it is; move it away to begin anew", path)
    progress.read(folder)  # before anything is written
    write_text(path, attempts.beginning(name, f"{program()} exercise"))
    progress.note(folder, name)
    print(f"wrote {path}: write the body of {Source.of(exercise(name).target).name}, then: "
          f"{program()} exercise check {name}")  # fmt: skip
    return 0


def _check(name: str, folder: Path) -> int:
    """0 for a right function, 1 for a wrong one."""
    before = progress.read(folder)
    judged = attempts.attempt(name, folder / f"{name}.py")
    verdict = judged.verdict
    is_right = verdict is not None and verdict.failure is None
    progress.note(folder, name, before, tries=1, **({"solved": True} if is_right else {}))
    if judged.printed:
        first = "".join(letter if letter.isprintable() else " " for letter in judged.printed[0][:100])
        print(f"(it printed {len(judged.printed)} lines, the first: {first})")
    if verdict is None:
        print(f"wrong: {judged.ended}")
        return 1
    if verdict.failure is None:
        print(f"right: {name} passes all {verdict.checks} checks, as ours in {Source.of(exercise(name).target).place}")
        return 0
    failure = verdict.failure
    if verdict.is_unwritten:
        print(f"wrong: the body is still to be written: it raises NotImplementedError in check 1: {failure.says}")
        return 1
    if verdict.is_ours:
        ours = Source.of(exercise(name).target).name
        print(f"wrong: it calls our own {ours}, which it is to replace: write it yourself")
        return 1
    print(f"wrong: {verdict.failed} of {verdict.checks} checks fail. Check {failure.number}: {failure.says}")
    print(f"  given     {failure.given}\n  expected  {failure.expected}\n  got       {failure.got}")
    if verdict.mistake:
        print(f"It behaves like a known mistake: {verdict.mistake}.")
    return 1


def _hint(name: str, folder: Path) -> int:
    what = exercise(name)
    number = min(progress.read(folder).get(name, {}).get("hints", 0) + 1, len(what.hints))
    progress.note(folder, name, hints=number)
    print(fill(f"hint {number} of {len(what.hints)}: {what.hints[number - 1]}", 120))
    return 0


def _solution(name: str, folder: Path) -> int:
    progress.note(folder, name, seen=True)
    print(attempts.solution(name), end="")
    return 0


ACTIONS: dict[str, tuple[Callable[..., int], str]] = {
    "list": (_list, "the exercises, and which of them you have solved"),
    "start": (_start, "write NAME.py: signature and docstring of the real function, and an empty body"),
    "check": (_check, "judge your function in the place of ours"),
    "hint": (_hint, "one more hint, of three"),
    "solution": (_solution, "our function, and where it stands"),
}
