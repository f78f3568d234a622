"""Every exercise: ours passes, each known mistake is told by its own sentence, an empty body fails."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import pytest

from instructgpt.course.attempt import beginning, function_of, solution
from instructgpt.course.exercise import PARTS, Exercise, exercise, names
from instructgpt.course.judge import judge, wrong_version
from instructgpt.course.source import Source

NAMES = names()
KERNELS = [name for name in NAMES if exercise(name).place >= 800]
"""The interpreter takes seconds for them."""


def marked(name: str, *values: object) -> object:
    return pytest.param(name, *values, marks=[pytest.mark.slow] if name in KERNELS else [])


an_exercise = pytest.mark.parametrize("name", [marked(name) for name in NAMES])


def test_there_are_as_many_as_promised() -> None:
    assert len(NAMES) >= 24
    assert sum(len(exercise(name).mistakes) for name in NAMES) >= 72
    places = [exercise(name).place for name in NAMES]
    assert places == sorted(set(places)) and {place // 100 for place in places} <= PARTS.keys()


@an_exercise
def test_ours_passes(name: str) -> None:
    what = exercise(name)
    verdict = judge(what, Source.of(what.target).function)
    assert verdict.failure is None, verdict


@an_exercise
def test_each_known_mistake_is_told_by_its_own_sentence(name: str) -> None:
    """All of an exercise in one test: what each gives in each check is kept, and compared with what the others give."""
    what = exercise(name)
    for mistake in what.mistakes:
        verdict = judge(what, wrong_version(mistake, Source.of(what.target)))
        assert verdict.failure is not None, f"it passes: {mistake.says}"
        assert verdict.mistake == mistake.says


@an_exercise
def test_the_file_that_one_starts_with_imports_and_fails(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.py"
    path.write_text(beginning(name, "exercise"), encoding="utf-8")
    what = exercise(name)
    verdict = judge(what, function_of(path, Source.of(what.target).name))
    assert verdict.failure is not None and verdict.is_unwritten


@an_exercise
def test_what_is_said_of_it_can_be_read(name: str) -> None:
    what = exercise(name)
    source = Source.of(what.target)
    assert source.docstring
    assert len(what.mistakes) >= 3 and len({mistake.says for mistake in what.mistakes}) == len(what.mistakes)
    assert len(what.checks) >= 2 and len({check.says for check in what.checks}) == len(what.checks)
    assert all(len(hint) > 40 for hint in what.hints) and what.about.endswith((".", ")"))
    assert not any(mistake.says.endswith(".") for mistake in what.mistakes)
    text = beginning(name, "exercise")
    begun = ast.parse(text)
    assert all(len(line) <= 120 for line in text.splitlines())
    (function,) = [node for node in begun.body if isinstance(node, ast.FunctionDef)]
    assert ast.get_docstring(function) == source.docstring
    assert ast.dump(function.args) == ast.dump(source.node.args)
    ast.parse(solution(name))
    assert solution(name).startswith(f"# {source.place}\n")
    assert is_used_up(what)


def is_used_up(what: Exercise) -> bool:
    """Names that are held back are names of the source."""
    kept = Source.of(what.target).imports()
    return all(name in kept for name in what.without)


def test_what_is_imported_meanwhile_has_ours_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is first imported while a student's function stands in its place takes that for ours."""
    (tmp_path / "imported_meanwhile.py").write_text("from instructgpt.data.packing import collate\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    source = Source.of("instructgpt.data.packing.collate")

    def another() -> None:
        """Not ours."""

    with source.replaced_by(another):
        module = importlib.import_module("imported_meanwhile")
        assert module.collate is another
    assert module.collate is source.function
    monkeypatch.delitem(sys.modules, "imported_meanwhile")
