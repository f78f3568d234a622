"""`instructgpt look`: the page it writes, and what it refuses in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.untrained import random_run
from instructgpt.cli import run_command
from instructgpt.config import ModelConfig
from instructgpt.flags import run_main
from instructgpt.training.checkpoint import RunDirectory


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = ModelConfig(vocab_size=320, context=64, layers=1, width=16, heads=2)
    return random_run(tmp_path_factory.mktemp("look") / "sft", shape)


def look(*argv: object) -> int:
    return run_main(lambda: run_command(["look", "--device", "cpu", *map(str, argv)]))


def test_it_writes_a_page(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "new" / "page.html"
    assert look("--model", run, "--prompt", " the cat ", "--out", out, "--answer-tokens", 2) == 0
    html = out.read_text(encoding="utf-8")
    assert html.startswith("<!DOCTYPE html>") and '"prompt": "the cat"' in html and '"name": "sft"' in html
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2].startswith("answer: ") and printed[-1].startswith(f"wrote {out} (0.0 MB)")


@pytest.mark.parametrize("flags", [("--raw",), ("--quantize", "int8"), ("--backend", "naive")])
def test_other_ways_of_asking(run: Path, tmp_path: Path, flags: tuple[str, ...]):
    assert (
        look("--model", run, "--prompt", "the cat", "--out", tmp_path / "page.html", "--answer-tokens", 1, *flags) == 0
    )


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ((), "--prompt is missing"),
        (("--prompt", "  "), "--prompt is missing"),
        (("--prompt", "cat", "--model", ""), "--model is missing"),
        (("--prompt", "cat", "--model", "no/such"), "no such run directory"),
        (("--prompt", "cat " * 90), "the model's context holds 64 with the answer"),
        (("--prompt", "cat", "--pair", "the cat saw"), "--pair has"),
        (("--prompt", "cat", "--pair", " "), "--pair is empty"),
        (("--prompt", "cat", "--pair", "cat"), "--pair is the same as --prompt"),
        (("--prompt", "cat", "--dtype", "bfloat16"), "--dtype"),
        (("--prompt", "cat", "--backend", "triton"), "look takes naive or sdpa"),
        (("--prompt", "cat", "--answer-tokens", "0"), "answer_tokens is 0"),
        (("--prompt", "cat", "--out", "."), "it is a folder"),
    ],
)
def test_what_is_refused_in_one_line(run, flags, complaint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = look(*(() if "--model" in flags else ("--model", run)), *flags)
    printed = capsys.readouterr()
    assert code == 2 and printed.err.count("\n") == 1 and complaint in printed.err, printed
    assert not list(tmp_path.iterdir())


def test_a_reward_model_has_nothing_to_say(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    base = RunDirectory(run)
    shape, tokenizer = base.describe()
    reward = RunDirectory(tmp_path / "reward")
    reward.path.mkdir()
    reward.write_config("reward", shape, tokenizer, {}, head="reward")
    assert look("--model", reward.path, "--prompt", "cat", "--out", tmp_path / "page.html") == 2
    assert "holds a reward model" in capsys.readouterr().err and not (tmp_path / "page.html").exists()
