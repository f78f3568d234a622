"""Every notebook runs from its first cell to its last, and what is stored in it is what it gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path: Path) -> None:
    # A process of its own, as a reader starts one: the first cell decides how Triton is imported.
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    runner = Path(__file__).with_name("run_notebook.py")
    done = subprocess.run([sys.executable, str(runner), str(path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_as_it_ran_from_the_top(path: Path) -> None:
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert kinds <= {"stream", "display_data", "execute_result"}  # "error" is none of them
    assert not any(output.get("name") == "stderr" for cell in cells for output in cell["outputs"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_needs_nothing_but_python(path: Path) -> None:
    lines = [line for cell in code_cells(path) for line in cell["source"]]
    assert not [line for line in lines if line.lstrip().startswith(("%", "!"))]
