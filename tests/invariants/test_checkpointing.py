"""Invariant: a stage that computes activations again ends with the very weights of one that keeps them (on a CPU)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from instructgpt.flags import run_main
from instructgpt.stages import main
from instructgpt.training.checkpoint import load, load_reward_model

COMMON = "--max-steps 2 --device cpu --dtype float32 --seed 3".split()
SHAPE = "--context 32 --layers 2 --width 16 --heads 2 --dropout 0.2 --rows 2 --val-rows 4".split()


def stage(*argv: object) -> None:
    assert run_main(lambda: main([str(word) for word in argv])) == 0


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    (folder / "text.txt").write_text("".join(f"cat {i} sees {i % 7} birds\n" for i in range(400)))
    pairs = [{"prompt": f"cat {i}?", "chosen": "birds", "rejected": "no"} for i in range(20)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)) + "\n")
    stage("tokenizer", "--text", folder / "text.txt", "--vocab-size", 290, "--out", folder / "tokenizer")
    pretrain(folder, "none", folder / "none")
    return folder


def pretrain(folder: Path, how: str, out: Path) -> None:
    where = ("--text", folder / "text.txt", "--tokenizer", folder / "tokenizer", "--out", out)
    stage("pretrain", *where, *SHAPE, *COMMON, "--checkpointing", how)


@pytest.mark.parametrize("how", ["blocks", "selective"])
def test_pretraining(base: Path, how: str, tmp_path: Path) -> None:
    pretrain(base, how, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (base / "none" / "model.safetensors").read_bytes()
    assert all(block.checkpointing == "none" for block in load(tmp_path, "cpu")[0].blocks), "a matter of training alone"


def test_a_reward_model(base: Path, tmp_path: Path) -> None:
    for how in ("none", "blocks"):
        where = ("--data", base / "pairs.jsonl", "--init", base / "none", "--out", tmp_path / how)
        stage("reward", *where, *COMMON, "--prompts", 4, "--checkpointing", how)
        load_reward_model(tmp_path / how, "cpu")
    none, blocks = ((tmp_path / how / "model.safetensors").read_bytes() for how in ("none", "blocks"))
    assert none == blocks
