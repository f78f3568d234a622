"""Every notebook has the form of a lesson, runs from its first cell to its last, and gives what is stored in it."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import nbformat
import pytest
from _pytest.mark import ParameterSet
from nbformat import NotebookNode

from instructgpt.course.exercise import exercise, names
from instructgpt.course.source import Source
from tests.notebooks.runner import ROOT, TAGS, differences, pictures, printed, read, run, tidied
from tests.test_repository import MACHINE_PATHS

FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9]*.ipynb"))
QUICK = {"01_tokens", "02_transformer", "10_service"}
"""Those that `make test` runs too; all run in `make test-all`."""

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def prose(notebook: NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@cache
def public_functions() -> set[str]:
    """Functions and classes of the package and the kernels that are not private."""
    files = [file for room in ("instructgpt", "kernels") for file in (ROOT / room).rglob("*.py")]
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files if "exercises" not in file.parts]
    return {name for tree in trees for name in defined(tree) if not name.startswith("_")}


def defined(tree: ast.Module) -> list[str]:
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def marked(path: Path) -> ParameterSet:
    return pytest.param(path, marks=[] if path.stem in QUICK else pytest.mark.slow, id=path.stem)


@pytest.mark.parametrize("path", [marked(path) for path in NOTEBOOKS])
def test_gives_what_is_stored(path: Path) -> None:
    stored = read(path)
    assert differences(stored, run(stored)) == []


def test_quick_ones_are_there() -> None:
    assert len(QUICK) == 3 and {path.stem for path in NOTEBOOKS} >= QUICK


def test_every_notebook_has_a_place_of_its_own_in_the_order() -> None:
    assert NOTEBOOKS == sorted(FOLDER.glob("*.ipynb"))
    assert len({path.stem[:2] for path in NOTEBOOKS}) == len(NOTEBOOKS)


@each
def test_is_kept_tidy(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook == tidied(notebook), f"run: python -m tests.notebooks.runner {path.relative_to(ROOT)} --write"
    assert {tag for cell in notebook.cells for tag in cell.metadata.get("tags", ())} <= set(TAGS)


@each
def test_stored_outputs_are_clean_and_have_a_picture(path: Path) -> None:
    cells = code(read(path))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}  # no error
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert sum(pictures(cell) for cell in cells) >= 1
    texts = [output.get("text") or output.data.get("text/plain", "") for output in outputs]
    assert not [text for text in texts if MACHINE_PATHS.search(text)]


@each
def test_needs_nothing_but_python(path: Path) -> None:
    lines = [line for cell in code(read(path)) for line in cell.source.splitlines()]
    assert not [line for line in lines if line.lstrip().startswith(("%", "!"))]
    assert [line for line in lines if re.match(r"(import|from) (instructgpt|kernels)\b", line)]


@each
def test_redefines_nothing_of_the_package(path: Path) -> None:
    cells = [cell for cell in code(read(path)) if "by-hand" not in cell.metadata.get("tags", ())]
    own = {name for cell in cells for name in defined(ast.parse(cell.source))}
    assert own & public_functions() == set()


@each
def test_shows_the_source_as_it_is(path: Path) -> None:
    """Slow notebooks, too: what shows a function's head is told at once that it was changed."""
    imports = [node for cell in code(read(path)) for node in ast.parse(cell.source).body if is_import(node)]
    shown = [cell for cell in code(read(path)) if re.fullmatch(r"print\(Source\.of\(\S+\)\.empty\(\)\)", cell.source)]
    known: dict[str, object] = {}
    for node in imports if shown else ():
        exec(ast.unparse(node), known)
    for cell in shown:
        source = eval(cell.source.removeprefix("print"), known)
        assert cell.outputs[0].text == source + "\n", f"{cell.source} prints something else now"


@each
def test_prints_no_solution_of_an_exercise(path: Path) -> None:
    printed_lines = [line.strip() for cell in code(read(path)) for line in printed(cell)]
    text = "\n".join(printed_lines)
    assert [name for name, body in bodies().items() if body in text] == []


@cache
def bodies() -> dict[str, str]:
    """What is to be written in each exercise, as ours has it, its lines without their margin."""
    return {name: body(Source.of(exercise(name).target)) for name in names()}


def body(source: Source) -> str:
    statements = source.node.body[1:]  # behind the docstring
    lines = source.path.read_text(encoding="utf-8").splitlines()[statements[0].lineno - 1 : source.node.end_lineno]
    return "\n".join(line.strip() for line in lines)


def is_import(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


@each
def test_begins_with_its_question_and_its_time(path: Path) -> None:
    first = prose(read(path))[0]
    assert re.match(r"# \S", first)
    assert re.search(r"^\*\*Question\.\*\* .*\?", first, re.MULTILINE)
    assert re.search(r"^\*\*Time\.\*\* .*\b(minutes?|seconds)\b", first, re.MULTILINE)


@each
def test_asks_for_predictions_and_answers_them_further_down(path: Path) -> None:
    cells = read(path).cells
    asked = [place for place, cell in enumerate(cells) if "**Predict first.**" in cell.source]
    answered = [place for place, cell in enumerate(cells) if "<details><summary>Answer" in cell.source]
    assert len(asked) >= 2
    for place, following in zip(asked, [*asked[1:], len(cells)]):
        assert [answer for answer in answered if place < answer <= following], f"cell {place} is not answered"


@each
def test_ends_with_two_exercises_and_the_way_on(path: Path) -> None:
    last = prose(read(path))[-1]
    assert last == read(path).cells[-1].source
    started = re.findall(r"^\.venv/bin/python -m instructgpt exercise start (\S+)$", last, re.MULTILINE)
    assert len(started) == 2 and set(started) <= set(names())
    commands = re.findall(r"\S*python (?:-m instructgpt|train\.py)", "\n".join(prose(read(path))))
    assert {command.split()[0].strip("`(") for command in commands} == {".venv/bin/python"}  # as the documents have it
    links = set(re.findall(r"\]\(([^)#]+)\)", last))
    number = int(path.stem[:2]) + 1
    following = [other for other in NOTEBOOKS if other.stem.startswith(f"{number:02}_")]
    assert {"../docs/learn.md", *(next_one.name for next_one in following)} <= links


def exercises_of(path: Path) -> list[str]:
    """The two that a notebook begins, and others that it names beside them."""
    last = prose(read(path))[-1]
    return re.findall(r"exercise start (\S+)$", last, re.MULTILINE) + [
        name for name in re.findall(r"`(\w+)`", last) if name in names()
    ]


def test_every_exercise_belongs_to_one_notebook() -> None:
    assert sorted(name for path in NOTEBOOKS for name in exercises_of(path)) == sorted(names())


@pytest.mark.parametrize("document", ["learn.md", "learn.zh.md"])
def test_the_table_of_notebooks_says_what_they_say(document: str) -> None:
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    row = r"^\| \[(\d\d) .*\]\(\.\./notebooks/(\S+)\.ipynb\) \| .* \| (.*) \| (.*) \|$"
    told = [(stem, re.findall(r"\w+", named), seconds(time)) for _, stem, named, time in re.findall(row, text, re.M)]
    assert told == [(path.stem, exercises_of(path), seconds(time_of(path))) for path in NOTEBOOKS]


def time_of(path: Path) -> str:
    return re.findall(r"^\*\*Time\.\*\* (.*)", prose(read(path))[0], re.MULTILINE)[0]


def seconds(told: str) -> int:
    """`About 90 seconds on two cores`, `1 min` and `1 分钟` in seconds."""
    (number, unit) = re.findall(r"(\d+) ?(s|m|秒|分)", told)[0]
    return int(number) * (60 if unit in "m分" else 1)


@each
def test_links_and_paths_lead_somewhere(path: Path) -> None:
    text = "\n".join(prose(read(path)))
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in link]
    assert [link for link in links if not (FOLDER / link).exists()] == []
    named = re.findall(r"`((?:instructgpt|kernels|tests|docs|benchmarks)/[\w./]+)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []
