"""An entry's file: our records can be read, and what is wrong with anybody's is told with its line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from instructgpt.course.race.entry import RECORDS, Entry, Rules, load_entry, record_text
from instructgpt.errors import UserError

IMPORTS = "from instructgpt.config import ModelConfig\nfrom instructgpt.course.race.entry import Entry\n"


@pytest.fixture
def entry(tmp_path: Path) -> Callable[[str], Entry]:
    def entry(text: str) -> Entry:
        (tmp_path / "mine.py").write_text(text)
        return load_entry(tmp_path / "mine.py")

    return entry


@pytest.mark.parametrize("name", RECORDS)
def test_our_records_are_entries(name: str, entry) -> None:
    text = record_text(name)
    found = entry(text)
    assert 10 < len(found.change) < 70 and found.build is not None
    assert text.startswith('"""') and "def entry() -> Entry:" in text


def test_every_record_is_in_the_order() -> None:
    folder = Path(__file__).parents[3] / "instructgpt/course/race/records"
    assert sorted(RECORDS) == sorted(path.stem for path in folder.glob("[a-z]*.py"))


@pytest.mark.parametrize(
    "text, told",
    [
        ("x = 1", r"mine.py: has no function 'entry'"),
        ("def entry(:\n", r"mine.py:1: is not Python"),
        ("import nothing_of_this_name\ndef entry(): ...", r"mine.py:1: importing it raised ModuleNotFoundError"),
        ("def entry():\n    x = 1\n    return x / 0", r"mine.py:3: entry\(\) raised ZeroDivisionError"),
        ("def entry():\n    return 3", r"mine.py: its entry\(\) gives int; it should give an Entry"),
        ("def entry(needed): ...", r"mine.py: entry\(\) raised TypeError"),
        (
            IMPORTS + "def entry():\n    return Entry('x', ModelConfig(), rows=0)",
            "mine.py:4: rows is 0; it must",
        ),
        (IMPORTS + "def entry():\n    return Entry(3, ModelConfig())", "its change is 3; it should be a line"),
        (
            IMPORTS + "def entry():\n    return Entry('x\\ny', ModelConfig())",
            r"its change is 'x\\ny'; it should be a line",
        ),
        (IMPORTS + "def entry():\n    return Entry('', ModelConfig())", "its change is ''; it should be a line"),
        *(
            (
                f"{IMPORTS}from instructgpt.training.loop import FitConfig\n"
                f"def entry():\n    return Entry('x', ModelConfig(), FitConfig({name}=3))",
                f"its fit has {name}, but",
            )
            for name in ("max_minutes", "eval_every", "patience")
        ),
        (IMPORTS + "def entry():\n    return Entry('x', 'llama')", "its model is str; it should be a ModelConfig"),
        (IMPORTS + "def entry():\n    return Entry('x', ModelConfig(), 0.1)", "its fit is float"),
        (IMPORTS + "def entry():\n    return Entry('x', ModelConfig(context=64))", "rows of 256 tokens do not fit"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(text: str, told: str, entry) -> None:
    with pytest.raises(UserError, match=told) as raised:
        entry(text)
    assert "\n" not in str(raised.value)


def test_a_line_is_told_of_a_relative_path_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def entry():\n    return 1 / 0\n")
    with pytest.raises(UserError, match=r"^mine\.py:2: entry\(\) raised ZeroDivisionError"):
        load_entry(Path("mine.py"))


def test_a_file_of_any_name_is_read(tmp_path: Path) -> None:
    for name in ("mine", "my entry.txt"):
        (tmp_path / name).write_text(record_text("gpt2"))
        assert load_entry(tmp_path / name).rows == 6


def test_an_unknown_file_and_an_unknown_record(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.py: there is no such file; write one with: race start"):
        load_entry(tmp_path / "none.py")
    with pytest.raises(UserError, match="did you mean 'llama'"):
        record_text("lama")


def test_a_budget_of_nothing_is_none() -> None:
    with pytest.raises(UserError, match="minutes is 0; it must be above 0"):
        Rules(minutes=0)
    assert Rules().flops == 2e13
