"""What a documented command becomes."""

from __future__ import annotations

import shlex

import pytest

from tests.documents.shorter import shorter


@pytest.mark.parametrize(
    ("given", "run"),
    [
        ("train.py", "train.py"),
        ("-c 'import torch'", "-c 'import torch'"),
        ("train.py sft --data a.json --out b", "train.py sft --data a.json --out b --max-steps 2"),
        ("train.py new --max-steps 900 --out b", "train.py new --out b --max-steps 2"),
        ("train.py pipeline --out b", "train.py pipeline --out b --max-steps 2 --examples 1"),
        ("train.py tokenizer --vocab-size=800 --out b", "train.py tokenizer --out b --vocab-size 400"),
        ("train.py plan --preset gpt2", "train.py plan --preset gpt2 --layers 1"),
        ("train.py ppo --out b", "train.py ppo --out b --max-steps 2 --prompts 8 --val-examples 8"),
        ("train.py pretrain --text power.txt", "train.py pretrain --text power.txt --max-steps 2"),
        ("-m pip install jupyterlab", "-m pip install pip --dry-run --no-deps --no-index --no-build-isolation"),
        ("-m pytest tests/test_cli.py -s", "-m pytest tests/test_cli.py -s --collect-only"),
        ("-m kernels.lab compile all --arch 80 90", "-m kernels.lab compile softmax --arch 80 90 --first"),
        ("-m pytest -n 2 -m 'not slow'", "-m pytest -m 'not slow' -n 0 -k tidy tests/notebooks"),
    ],
)
def test_shorter(given: str, run: str) -> None:
    assert shorter(shlex.split(given)) == shlex.split(run)


def test_a_service_has_the_port_that_the_test_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "123")
    assert shorter(["-m", "instructgpt", "serve"]) == ["-m", "instructgpt", "serve", "--port", "123"]
