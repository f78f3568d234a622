"""Best of n as a user runs it: what is kept, what is learnt, and its wrong input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from instructgpt.flags import run_main
from instructgpt.stages import main

SMALL = "--prompts 12 --answers 6 --max-new-tokens 6 --val-examples 8 --rows 2 --device cpu --dtype float32".split()
SMALL += "--warmup-steps 1 --learning-rate 3e-3 --unfinished-penalty 0".split()


def stage(*argv: object) -> int:
    return run_main(lambda: main([str(word) for word in argv]))


@pytest.fixture
def source(runs: Path, tmp_path: Path) -> tuple[object, ...]:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"instruction": f"cat {i}?", "output": f"{i}"}) + "\n" for i in range(30)))
    (tmp_path / "rewards.py").write_text(
        "def shorter(prompts, answers):\n    return [-float(len(a)) for a in answers]\n"
    )
    function = ("--reward-function", f"{tmp_path / 'rewards.py'}:shorter")
    return ("best_of_n", "--data", file, "--init", runs / "pretrain", "--out", tmp_path / "o", *function, *SMALL)


def test_it_keeps_the_best_that_ended_and_learns_them(
    source: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage(*source, "--max-steps", 200, "--muon-learning-rate", 0.02, "--prompts", 60, "--answers", 60) == 0
    printed = capsys.readouterr().out
    kept = [json.loads(line) for line in (tmp_path / "o" / "best.jsonl").open()]
    assert f"best of 60: {len(kept)} answers kept for 60 prompts" in printed
    for line in kept:
        assert line["messages"][-1]["role"] == "assistant"
        assert line["reward"] == -len(line["messages"][-1]["content"])
    before, after = printed.split("reward ")[1].split("\n")[0].split(" -> ")
    report = json.loads((tmp_path / "o" / "eval.json").read_text())
    assert float(before) < report["val_reward"], "it moved towards what was kept"
    assert float(before) < float(after) and report["val_kl"] > 0


def test_the_best_of_one(refused: Callable[..., str], source: tuple[object, ...]) -> None:
    assert "--answers 1: the best of one answer is no choice" in refused(*source, "--answers", 1)


def test_nothing_worth_keeping(refused: Callable[..., str], source: tuple[object, ...]) -> None:
    message = refused(*source, "--min-reward", 5)
    assert "no answer is worth keeping: of 12 best ones" in message and "--min-reward 5.0" in message
