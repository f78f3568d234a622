"""`data show`: what a reader of its output can rely on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from instructgpt.cli import run_command
from instructgpt.flags import run_main
from instructgpt.text.tokenizer import Tokenizer

Show = Callable[..., tuple[int, str, str]]
RECORDS = [
    {"instruction": "the cat", "output": "red birds", "images": ["a.png"]},
    {"instruction": "the cat", "output": "red birds"},
    {"instruction": "number " * 40, "output": "red \u200b\x1b[31m birds"},
    {"instruction": "no answer"},
]


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Show:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in RECORDS), encoding="utf-8")
    (tmp_path / "b.csv").write_text("frage,gut,schlecht\nwhat?,red,blue\nwho?,cat,bird\n", encoding="utf-8")

    def show(*argv: str) -> tuple[int, str, str]:
        code = run_main(lambda: run_command(["data", "show", *argv]))
        out, err = capsys.readouterr()
        return code, out, err

    return show


def test_without_a_tokenizer(show: Show) -> None:
    code, out, err = show("a.jsonl", "--examples", "3")
    assert (code, err) == (0, "")
    for line in (
        "a.jsonl: 4 records read, 3 kept, 1 dropped",
        "not used: images (1)",
        "read as conversations",
        "duplicates: 1 equal to an earlier one",
        "length in characters",
        "prompts mainly in: Latin 3",
        "<bos><user>the cat<end><assistant>[red birds<end>]",
        r"[red \u200b\x1b[31m birds<end>]",
    ):
        assert line in out


def test_with_a_tokenizer_and_a_context(show: Show) -> None:
    Tokenizer.train([f"the cat number {i} saw {i * 7} red birds." for i in range(60)], vocab_size=320).save("tokenizer")
    code, out, err = show("a.jsonl", "--tokenizer", "tokenizer", "--context", "32", "--long", "drop")
    assert (code, err) == (0, "")
    assert "length in tokens" in out
    assert "1 of 3 (33%) are longer than the context" in out and "were left out" in out


def test_templates_for_one_of_two_files(show: Show) -> None:
    entry = "b.csv:prompt=Good, or bad? {frage},chosen={gut},rejected={schlecht}"
    code, out, err = show("a.jsonl", "b.csv", "--map", entry, "--examples", "1")
    assert (code, err) == (0, "")
    assert "read as conversations" in out and "read as comparisons" in out
    assert "<user>Good, or bad? what?<end><assistant>\nbetter: [red<end>]\nworse: [blue<end>]" in out


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ((), "needs the files to show"),
        (("world",), "needs the files to show"),
        (("none.json",), "none.json: no such file"),
        (("a.jsonl", "--context", "8"), "--context is in tokens"),
        (("a.jsonl", "--model", "x", "--tokenizer", "y"), "--model brings its own tokenizer"),
        (("b.csv", "--prompt", "{frge}", "--answer", "{gut}"), "no field 'frge'; it has the fields frage, gut"),
        (("b.csv", "--prompt", "{frage}", "--answer", "{gut} {schlect?}"), "did you mean 'schlecht'?"),
        (("b.csv", "--answer", "{gut}"), "--prompt and --answer go together"),
        (("b.csv", "--map", "c.csv:prompt={a},answer={b}"), "--map c.csv: --data names no such file"),
    ],
)
def test_mistakes_are_one_line(show: Show, flags: tuple[str, ...], complaint: str) -> None:
    code, _, err = show(*flags)
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and complaint in err
