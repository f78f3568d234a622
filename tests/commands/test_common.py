"""What commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from instructgpt.cli import run_command
from instructgpt.commands.common import require_folder
from instructgpt.errors import UserError


@pytest.mark.parametrize(
    "line",
    [
        "exercise start NAME", "exercise check NAME", "exercise hint NAME", "exercise solution NAME", "exercise list",
        "race start [FILE]", "race run [FILE]", "race table", "data get NAME", "data show FILE...", "data list",
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_named", [False, True])
def test_help_says_what_stands_before_the_flags(line: str, is_named: bool, capsys: pytest.CaptureFixture[str]) -> None:
    command, action, *takes = line.split()
    with pytest.raises(SystemExit) as ended:
        run_command([command, action, *(["gae"] if is_named and takes else []), "--help"])
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert not ended.value.code and f"usage: instructgpt {line} [-h]" in told
    assert not takes or takes[0].strip("[].") in told.partition("[-h]")[2].partition("─")[0]  # and what that is


@pytest.mark.parametrize("name", ["ex\udcff", "two\nlines", "\x1b[2J"])
def test_a_folder_whose_name_cannot_be_printed_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be printed") as told:
        require_folder(str(tmp_path / name))
    assert str(told.value).isprintable()
