"""Every command of README and docs/ is run, page by page, as a reader would.

The test's own copy of the repository has a `.venv` whose Python shortens trainings and measurements
(`tests/documents/shorter.py`); all else is as documented. What is not run is marked in the page, with the reason:
`test_nearly_all_is_run` lists it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import documents
from tests.documents import walk
from tests.documents.reading import marks, plan, same, steps, written

ROOT = Path(__file__).parents[1]
PAGES = [page for page in documents.documents(ROOT) if not page.name.endswith(".zh.md")]
"""A Chinese page has the commands of the English one, see test_documents.py."""
STEPS = plan(PAGES, ROOT)
WALKED = [page for page in PAGES if any(step.page == str(page.relative_to(ROOT)) for step in STEPS)]


@pytest.fixture(scope="session")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy in which the first commands were run, made once for all processes of tests."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    copy, lock = shared / "documented", shared / "documented.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (copy / "begun").exists():
            shutil.rmtree(copy, ignore_errors=True)
            walk.copy_of(ROOT, copy)
            walker = walk.Walk(copy, {})
            for command in walk.FIRST:
                walker.take(next(step for step in STEPS if same(step.text.split("#")[0].strip()) == command))
            (copy / "begun").touch()
    return copy


@pytest.fixture
def walker(begun: Path, tmp_path: Path) -> Iterator[walk.Walk]:
    copy = tmp_path / "instructgpt"
    shutil.copytree(begun, copy, symlinks=True)
    found = walk.Walk(copy, walk.made_by(STEPS))
    yield found
    found.leave()


@pytest.mark.slow
@pytest.mark.parametrize("page", WALKED, ids=lambda page: page.name)
def test_what_a_page_says_can_be_done(page: Path, walker: walk.Walk) -> None:
    mine = [step for step in STEPS if step.page == str(page.relative_to(ROOT))]
    todo = [step for step in mine if not step.not_run and same(step.text.split("#")[0].strip()) not in walk.FIRST]
    for step in todo:
        walker.take(step)
    assert walker.done == todo


# ---- what is not run, and why


@pytest.mark.parametrize("page", documents.documents(ROOT), ids=lambda page: page.name)
def test_a_mark_has_a_reason_and_commands(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    given = marks(text)
    assert text.count("<!-- not run") == len(given), "a mark that is misspelt"
    for mark in given:
        assert len(mark.why.split()) > 1, f"{page.name}: not run, and why? {mark}"
    marked = {step.not_run for step in steps(page, ROOT)}
    assert [mark for mark in given if mark.why not in marked] == [], "a mark without commands"


def test_nearly_all_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    """And it is said what is not; what needs hardware, downloads or a person is the only thing that may be left out."""
    found = [step for step in STEPS if step.kind == "command"]
    left_out = [step for step in found if step.not_run]
    with capsys.disabled():
        print(f"\n{len(found)} commands in {len(WALKED)} pages, {len(found) - len(left_out)} run by `make test-all`, "
              f"{len(left_out)} not:")  # fmt: skip
        for step in left_out:
            print(f"  {step}  ({step.not_run})")
    assert len(found) > 90 and len(left_out) <= len(found) / 8
    assert {step.text.split("#")[0].strip() for step in found} >= set(walk.FIRST)


def test_each_command_is_run_once() -> None:
    times = Counter(same(step.text) for step in STEPS if step.kind == "command")
    assert {command: n for command, n in times.items() if n > 1} == {}


def test_no_two_commands_write_to_one_run() -> None:
    """Who follows both pages would be told that it holds a run already."""
    writers = Counter(run for step in STEPS if step.kind == "command" for run in written(step.text))
    assert writers["runs/my/sft"] and {run: n for run, n in writers.items() if n > 1} == {}
