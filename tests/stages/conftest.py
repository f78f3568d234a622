"""A tokenizer and a base model of two steps, made once by the stages themselves."""

from __future__ import annotations

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
