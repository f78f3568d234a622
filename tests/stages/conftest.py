"""A tokenizer and a base model of two steps, made once by the stages themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from instructgpt.flags import run_main
from instructgpt.stages import main

SMALL = "--context 64 --layers 1 --width 32 --heads 2 --rows 2 --max-steps 2 --val-rows 4 --device cpu --dtype float32"


def stage(*argv: object) -> int:
    """Runs a stage as train.py does; its exit code."""
    return run_main(lambda: main([str(word) for word in argv]))


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    text = folder / "text.txt"
    text.write_text("".join(f"the cat number {i} sees {i % 7} red birds\n" for i in range(3000)), encoding="utf-8")
    assert stage("tokenizer", "--text", text, "--vocab-size", 300, "--out", folder / "tokenizer") == 0
    arguments = ("--text", text, "--tokenizer", folder / "tokenizer", "--out", folder / "pretrain", *SMALL.split())
    assert stage("pretrain", *arguments) == 0
    return folder


@pytest.fixture(scope="session")
def world_runs(runs: Path) -> Path:
    """A model whose context has room for prompts of the world, spelt in bytes as they are by a tokenizer of `runs`."""
    folder = runs / "world"
    shape = SMALL.replace("--context 64", "--context 512").split()
    arguments = ("--text", runs / "text.txt", "--tokenizer", runs / "tokenizer", "--out", folder / "pretrain", *shape)
    assert stage("pretrain", *arguments) == 0
    return folder


@pytest.fixture(scope="session")
def reward_run(runs: Path) -> Path:
    """A reward model on the same base, barely trained."""
    pairs = runs / "pairs.jsonl"
    lines = [json.dumps({"prompt": f"cat {i}?", "chosen": "red birds", "rejected": "no"}) for i in range(40)]
    pairs.write_text("\n".join(lines) + "\n", encoding="utf-8")
    arguments = ("--data", pairs, "--init", runs / "pretrain", "--out", runs / "reward", "--max-steps", 2)
    assert stage("reward", *arguments, "--device", "cpu", "--dtype", "float32") == 0
    return runs / "reward"


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a stage that must refuse: exit code 2 and one line (after the log of training, if any), which it returns."""

    def run(*argv: object) -> str:
        capsys.readouterr()
        code = stage(*argv)
        errors = capsys.readouterr().err
        assert code == 2, (code, errors)
        *log, message = errors.splitlines()
        assert message.startswith("error: ") and all(line.startswith(f"{argv[0]} step ") for line in log), errors
        return message

    return run
