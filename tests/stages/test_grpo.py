"""GRPO as a user runs it: that it learns, in its variants, and its wrong input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from instructgpt.flags import run_main
from instructgpt.stages import main
from instructgpt.training.metrics import read_metrics

SMALL = (
    "--prompts 4 --answers 4 --minibatches 2 --max-new-tokens 6 --val-examples 8 --device cpu --dtype float32".split()
)
SMALL += "--warmup-steps 1 --log-every 1 --learning-rate 3e-3 --unfinished-penalty 0".split()


def stage(*argv: object) -> int:
    return run_main(lambda: main([str(word) for word in argv]))


@pytest.fixture
def source(runs: Path, tmp_path: Path) -> tuple[object, ...]:
    """Prompts of a file, and a reward that is easy to raise: short answers."""
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"instruction": f"cat {i}?", "output": f"{i}"}) + "\n" for i in range(30)))
    (tmp_path / "rewards.py").write_text(
        "def shorter(prompts, answers):\n    return [-len(a) / 10 for a in answers]\n"
        "def constant(prompts, answers):\n    return [1.0] * len(answers)\n"
    )
    return ("--data", file, "--init", runs / "pretrain", "--out", tmp_path / "o", *SMALL)


@pytest.mark.parametrize(
    "variant", [(), ("--no-normalise", "--length", "constant"), ("--length", "token", "--epochs", 2)]
)
def test_it_raises_a_reward_that_is_easy_to_raise(source: tuple[object, ...], tmp_path: Path, variant: tuple) -> None:
    function = ("--reward-function", f"{tmp_path / 'rewards.py'}:shorter")
    settings = ("--max-steps", 160, "--prompts", 8, "--kl-coefficient", 0, "--learning-rate", 1e-2)
    assert stage("grpo", *source, *function, *settings, *variant) == 0
    steps = [record for record in read_metrics(tmp_path / "o" / "metrics.jsonl") if "loss" in record]
    rewards = [record["reward"] for record in steps]
    assert sum(rewards[-8:]) / 8 > sum(rewards[:8]) / 8 + 0.2, (rewards[:8], rewards[-8:])
    assert {"kl", "entropy", "clip_fraction", "ratio", "answer_length", "ended", "groups_that_agree"} <= steps[0].keys()


def test_groups_that_all_agree_move_nothing_but_the_kl(source: tuple[object, ...], tmp_path: Path) -> None:
    function = ("--reward-function", f"{tmp_path / 'rewards.py'}:constant")
    assert stage("grpo", *source, *function, "--max-steps", 4) == 0
    steps = [record for record in read_metrics(tmp_path / "o" / "metrics.jsonl") if "loss" in record]
    assert all(record["groups_that_agree"] == 1 for record in steps)
    assert all(record["policy_loss"] == 0 and record["kl"] == 0 for record in steps)


def test_a_group_of_one(refused: Callable[..., str], source: tuple[object, ...], tmp_path: Path) -> None:
    function = ("--reward-function", f"{tmp_path / 'rewards.py'}:shorter")
    message = refused("grpo", *source, *function, "--answers", 1)
    assert "--answers 1: an answer is compared with others" in message


def test_groups_that_do_not_divide(refused: Callable[..., str], source: tuple[object, ...], tmp_path: Path) -> None:
    function = ("--reward-function", f"{tmp_path / 'rewards.py'}:shorter")
    message = refused("grpo", *source, *function, "--minibatches", 5)
    assert "4 prompts x 4 answers = 16 do not divide into --minibatches 5; try 4" in message
