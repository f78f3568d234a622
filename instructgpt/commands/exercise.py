"""`instructgpt exercise`: functions of this project to write oneself, judged at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

from instructgpt.atomic import write_text
from instructgpt.commands.common import choose, command, require_folder
from instructgpt.course import attempt as attempts
from instructgpt.course import progress
from instructgpt.course.exercise import PARTS, exercise, names
from instructgpt.course.source import Source
from instructgpt.errors import UserError
from instructgpt.flags import parse, program
from instructgpt.settings import FilePath, Settings

SHOWN, WIDTH = 20, 200
"""Lines of what a student's code prints that are shown, and letters of each."""


@dataclass(frozen=True)
class ExerciseConfig(Settings):
    """Functions of this project to write yourself. NAME is one of those that `exercise list` shows."""

    folder: FilePath = "exercises"
    """Where your files are, NAME.py each, and the record of your progress."""

    @property
    def path(self) -> Path:
        return Path(self.folder)

    def command(self, *words: str) -> str:
        """What to type for `exercise WORDS` on the same folder."""
        return command("exercise", *words, folder=self.folder, default=ExerciseConfig.folder)


def exercises(argv: Sequence[str]) -> int:
    """Lists the exercises, writes the file of one, judges it, gives hints, shows ours."""
    if (chosen := choose(argv, "exercise", ACTIONS, "list", "ACTION [NAME] [--folder DIR]")) is None:
        return 0
    action, rest = chosen
    prog = f"{program()} exercise"
    named = [] if action == "list" or not rest or rest[0].startswith("-") else rest[:1]
    config = parse(ExerciseConfig, rest[len(named) :], f"{prog} {action}", takes="" if action == "list" else "NAME")
    require_folder(config.folder)
    if action == "list":
        return _list(config)
    if not named:
        raise UserError(f"{prog} {action} needs the name of an exercise, as listed by: {config.command('list')}")
    exercise(named[0])
    return ACTIONS[action][0](named[0], config)


def _list(config: ExerciseConfig) -> int:
    known = progress.read(config.path)
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
    where = f"{config.path.absolute()}{'' if config.path.exists() else ', which is not there yet'}"
    print(
        f"{solved} of {len(found)} solved (✓; begun: ·) in {where}. Begin one with: {config.command('start', 'NAME')}"
    )
    return 0


def _start(name: str, config: ExerciseConfig) -> int:
    path = config.path / f"{name}.py"
    if path.exists():
        raise UserError("is there already, and stays as it is; move it away to begin anew", path)
    progress.read(config.path)  # before anything is written
    check = config.command("check", name)
    write_text(path, attempts.beginning(name, check))
    progress.note(config.path, name)
    print(f"wrote {path}: write the body of {Source.of(exercise(name).target).name}, then: {check}")
    return 0


def _check(name: str, config: ExerciseConfig) -> int:
    """0 for a right function, 1 for a wrong one."""
    before = progress.read(config.path)
    judged = attempts.attempt(name, config.path / f"{name}.py", written_by=config.command("start", name))
    verdict = judged.verdict
    is_right = verdict is not None and verdict.failure is None
    progress.note(config.path, name, before, tries=1, **({"solved": True} if is_right else {}))
    if judged.printed:
        _show_printed(judged)
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
    if failure.differs:
        print(f"  differs   {failure.differs}")
    if verdict.mistake:
        print(f"It behaves like a known mistake: {verdict.mistake}.")
    return 1


def _show_printed(judged: attempts.Judged) -> None:
    print(f"it printed in check {judged.printed_in}:" if judged.printed_in else "it printed:")
    for line in judged.printed[:SHOWN]:
        print("  " + "".join(letter if letter.isprintable() else " " for letter in line[:WIDTH]))
    if (more := len(judged.printed) - SHOWN) > 0:
        print(f"  … {more} more {'line' if more == 1 else 'lines'}")


def _hint(name: str, config: ExerciseConfig) -> int:
    what = exercise(name)
    number = min(progress.read(config.path).get(name, {}).get("hints", 0) + 1, len(what.hints))
    progress.note(config.path, name, hints=number)
    print(fill(f"hint {number} of {len(what.hints)}: {what.hints[number - 1]}", 120))
    return 0


def _solution(name: str, config: ExerciseConfig) -> int:
    progress.note(config.path, name, seen=True)
    print(attempts.solution(name), end="")
    return 0


ACTIONS: dict[str, tuple[Callable[..., int], str]] = {
    "list": (_list, "the exercises, and which of them you have solved"),
    "start": (_start, "write NAME.py: signature and docstring of the real function, and an empty body"),
    "check": (_check, "judge your function in the place of ours"),
    "hint": (_hint, "one more hint, of three"),
    "solution": (_solution, "our function, and where it stands"),
}
