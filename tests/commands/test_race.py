"""`instructgpt race`, from an empty folder to the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from instructgpt.cli import run_command
from instructgpt.commands import race as command
from instructgpt.course.race import board
from instructgpt.course.race.judge import Finish
from instructgpt.flags import run_main

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs `race ARGV` in an empty folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(board, "OURS", tmp_path / "none.json")

    def call(*argv: str) -> tuple[int, str, str]:
        code = run_main(lambda: run_command(["race", *argv]))
        told = capfd.readouterr()
        return code, told.out, told.err

    return call


def test_start_run_table(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, told, _ = call("start")
    assert code == 0 and "wrote race/mine.py" in told and "race run race/mine.py" in told
    assert (tmp_path / "race/mine.py").read_text().startswith('"""My entry, begun from our record `gpt2`')
    assert call("start", "race/other.py", "--record", "muon")[0] == 0
    told_of = {"change": "mine", "updates": 3, "tokens": 9, "parameters": 9, "vocab_size": 9, "cpu_seconds": 1.0,
               "stopped_by": ""}  # fmt: skip
    monkeypatch.setattr(command, "race", lambda path, rules, seed: Finish(seed, told_of, [9.0, 8.0 + seed], [9, 8]))
    code, told, _ = call("run", "race/other.py", "--seeds", "2", "--minutes", "0.5")
    assert code == 0 and "other, seed 1: 2.0e+12 FLOPs" in told
    code, told, _ = call("table")
    assert code == 0 and "to be shown with --minutes: 0.5" in told
    assert "other  1.0294" in call("table", "--minutes", "0.5")[1]


def test_the_command_that_start_says_names_file_and_folder(call: Call) -> None:
    assert call("start", "--folder", "a b")[1].rstrip().endswith("race run 'a b/mine.py' --folder 'a b'")
    assert call("start", "my file.py")[1].rstrip().endswith("race run 'my file.py'")


@pytest.mark.parametrize("action", ["start", "run", "table"])
def test_a_file_in_the_place_of_the_folder_is_told(call: Call, tmp_path: Path, action: str) -> None:
    (tmp_path / "file.md").write_text("mine")
    assert call(action, "--folder", "file.md/below") == (
        2,
        "",
        "error: file.md: is a file, and --folder names a folder\n",
    )


@pytest.mark.parametrize(
    "argv, told",
    [
        (["strat"], "did you mean 'start'"),
        (["run"], "race/mine.py: there is no such file; write one with: instructgpt race start\n"),
        (
            ["run", "no.py", "--folder", "a b"],
            "no.py: there is no such file; write one with: instructgpt race start no.py --folder 'a b'\n",
        ),
        (["run", "--minutes", "0"], "minutes is 0.0; it must be above 0"),
        (["run", "--seeds", "0"], "seeds is 0; it must be at least 1"),
        (["run", "a.py", "b.py"], "has no use for 'b.py'"),
        (["start", "--record", "gpt3"], "there is no record 'gpt3'; did you mean 'gpt2'?"),
        (["table", "mine.py"], "has no use for 'mine.py'"),
    ],
)
def test_wrong_input_is_one_line(argv: list[str], told: str, call: Call) -> None:
    code, _, error = call(*argv)
    assert code == 2 and error.startswith("error: ") and told in error and error.count("\n") == 1, error


def test_what_is_there_is_not_overwritten(call: Call, tmp_path: Path) -> None:
    call("start")
    (tmp_path / "race/mine.py").write_text("mine")
    code, _, error = call("start")
    assert code == 2 and "is there already" in error and (tmp_path / "race/mine.py").read_text() == "mine"


def test_where_no_result_can_be_kept_nothing_is_trained(call: Call, tmp_path: Path) -> None:
    call("start")
    (tmp_path / "a file").touch()
    for folder in ("a file", "a file/race"):
        code, told, error = call("run", "race/mine.py", "--folder", folder)
        assert code == 2 and "a file" in error and error.count("\n") == 1 and "FLOPs" not in told
