"""The DPO stage: starts at ln 2, learns, leaves its reference alone, and resumes exactly."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from instructgpt.stages import dpo, main
from instructgpt.training.checkpoint import load
from instructgpt.training.metrics import read_metrics

SMALL = "--prompts 4 --val-pairs 12 --device cpu --dtype float32 --log-every 1 --warmup-steps 0".split()


def run(runs: Path, out: Path, *flags: object) -> list[dict]:
    arguments = ["--data", "world", "--init", runs / "pretrain", "--out", out, *SMALL, *flags]
    assert main(["dpo", *map(str, arguments)]) == 0
    return read_metrics(out / "metrics.jsonl")


def test_it_starts_at_ln_2_and_learns(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = run(runs, tmp_path / "o", "--max-steps", 30, "--learning-rate", 0.003, "--chosen-weight", 0)
    first, last = records[0], records[-2]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6) and first["accuracy"] == 0.5
    assert first["margin"] == first["chosen_shift"] == first["rejected_shift"] == 0
    assert last["loss"] < 0.6 and last["margin"] > 0.1
    for name in ("accuracy", "margin", "chosen_logprob", "rejected_logprob", "chosen_shift", "rejected_shift"):
        assert all(name in record for record in records[:-1]) and f"val_{name}" in records[-1]
    falls = records[-1]["val_chosen_shift"] < 0
    assert ("both may fall" in capsys.readouterr().out) == falls


@pytest.mark.parametrize("loss", ["ipo", "simpo", "orpo"])
def test_the_other_losses_learn(loss: str, runs: Path, tmp_path: Path) -> None:
    flags = ("--max-steps", 30, "--learning-rate", 0.003, "--loss", loss, "--beta", 0.1, "--chosen-weight", 0)
    records = run(runs, tmp_path / "o", *flags)
    assert records[-2]["loss"] < records[0]["loss"] and records[-2]["margin"] > records[0]["margin"]
    assert ("chosen_shift" in records[0]) == (loss == "ipo"), "without a reference there is no shift"


def test_the_chosen_answers_are_held_up(runs: Path, tmp_path: Path) -> None:
    flags = ("--max-steps", 30, "--learning-rate", 0.003, "--beta", 0.5)
    plain = run(runs, tmp_path / "plain", *flags, "--chosen-weight", 0)[-1]
    held = run(runs, tmp_path / "held", *flags, "--chosen-weight", 1)[-1]
    assert held["val_chosen_shift"] > plain["val_chosen_shift"] + 1


def test_dropout_does_not_tell_the_models_apart(runs: Path, tmp_path: Path) -> None:
    init = tmp_path / "init"
    shutil.copytree(runs / "pretrain", init)
    config = json.loads((init / "config.json").read_text())
    config["model"]["dropout"] = 0.5
    (init / "config.json").write_text(json.dumps(config))
    arguments = ["--data", "world", "--init", init, "--out", tmp_path / "o", *SMALL, "--max-steps", 1]
    arguments += ["--chosen-weight", 0]
    assert main(["dpo", *map(str, arguments)]) == 0
    assert read_metrics(tmp_path / "o" / "metrics.jsonl")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_the_reference_does_not_change_by_a_bit(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    references = []

    def kept(*arguments):
        references.append(frozen_copy(*arguments))
        return references[-1]

    frozen_copy = dpo.frozen_copy
    monkeypatch.setattr(dpo, "frozen_copy", kept)
    run(runs, tmp_path / "o", "--max-steps", 3)
    (reference,), (before, _), (policy, _) = references, load(runs / "pretrain", "cpu"), load(tmp_path / "o", "cpu")
    assert all(torch.equal(a, b) for a, b in zip(reference.parameters(), before.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(policy.parameters(), before.parameters(), strict=True))


def test_a_resumed_run_equals_the_undisturbed_one(runs: Path, tmp_path: Path) -> None:
    flags = ("--schedule", "constant")
    run(runs, tmp_path / "whole", "--max-steps", 4, *flags)
    run(runs, tmp_path / "parts", "--max-steps", 2, *flags)
    run(runs, tmp_path / "parts", "--max-steps", 4, "--resume", *flags)
    (whole, _), (parts, _) = (load(tmp_path / name, "cpu") for name in ("whole", "parts"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


@pytest.mark.parametrize(
    ("flags", "told"),
    [(("--beta", 0), "beta is 0.0; it must be above 0"), (("--label-noise", 0.5), "label_noise is 0.5")],
)
def test_settings_that_make_no_sense(
    flags: tuple[object, ...], told: str, runs: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    arguments = ("--data", "world", "--init", runs / "pretrain", "--out", tmp_path / "o", *SMALL, "--max-steps", 1)
    assert told in refused("dpo", *arguments, *flags)


def test_a_row_longer_than_the_context(runs: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    arguments = ("--data", "world", "--init", runs / "pretrain", "--out", tmp_path / "o", *SMALL, "--max-steps", 1)
    assert "longer than the context" in refused("dpo", *arguments, "--row-length", 65)
