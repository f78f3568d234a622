"""What a page's blocks and marks mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.documents.reading import Step, marks, plain, plan, steps, written

PAGE = """# A page

<!-- not run: needs a GPU -->

```sh
a_command --of-a-gpu      # long
```

<!-- not run (make big): downloads 93 MB -->
```sh
make big          # all of it
make small        # exit code 3
python x.py \\
    --more
```

<!-- in it.py instead of:
    one = 1
-->
```python
    one = 2
```

Prose names `make small`, `python other.py --x` <!-- not run (python other.py): asks a person --> and `make twice`.

```text
$ make shown
output
```
```python
print(1)
```
"""


@pytest.fixture
def found(tmp_path: Path) -> list[Step]:
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    return plan([page], tmp_path)


def test_commands_come_in_order_and_once_each_in_a_block_rather_than_in_prose(found: list[Step]) -> None:
    assert [plain(step.text) for step in found if step.kind == "command"] == [
        "a_command --of-a-gpu", "make big", "make small", "python x.py --more", "make shown", "python other.py --x",
        "make twice",
    ]  # fmt: skip


def test_marks_reach_a_block_or_a_beginning(found: list[Step]) -> None:
    assert {step.text.split("#")[0].strip(): step.not_run for step in found if step.not_run} == {
        "a_command --of-a-gpu": "needs a GPU",
        "make big": "downloads 93 MB",
        "python other.py --x": "asks a person",
    }


def test_an_exit_code_is_read_where_a_reader_sees_it(found: list[Step]) -> None:
    assert {step.text.split()[1]: step.exit_code for step in found if step.exit_code} == {"small": 3}


def test_a_block_that_replaces_is_an_edit(found: list[Step]) -> None:
    edit = next(step for step in found if step.kind == "edit")
    assert edit.edit and edit.edit.file == "it.py" and edit.edit.old.strip() == "one = 1" and "one = 2" in edit.text


def test_a_mark_without_a_reason_is_one(tmp_path: Path) -> None:
    assert marks("<!-- not run: -->")[0].why == ""
    page = tmp_path / "page.md"
    page.write_text("<!-- not run (make none): no such command -->\n```sh\nmake it\n```\n", encoding="utf-8")
    assert [step.not_run for step in steps(page, tmp_path)] == [""]


@pytest.mark.parametrize(
    ("command", "runs"),
    [
        ("python train.py sft --init runs/a --out runs/b   # --out runs/c", ["runs/b"]),
        ("make train PRESET=tiny OUT=runs/a", ["runs/a"]),
        ("python -m benchmarks.decode --json out.json", []),
    ],
)
def test_runs_that_a_command_writes(command: str, runs: list[str]) -> None:
    assert written(command) == runs
