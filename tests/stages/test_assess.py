"""`instructgpt ledger`: run directories to a table, whatever stages they are of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from instructgpt.cli import run_command
from instructgpt.flags import run_main
from instructgpt.stages import main
from instructgpt.stages.assess import tasks

SMALL = "--device cpu --dtype float32 --max-steps 2".split()


@pytest.fixture(scope="module")
def aligned(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sft run, and a reward and a dpo run for each of two seeds."""
    folder = tmp_path_factory.mktemp("aligned")

    def stage(name: str, out: str, init: Path, *flags: object) -> None:
        arguments = [name, "--data", "world", "--init", init, "--out", folder / out, *SMALL, *flags]
        assert main([str(word) for word in arguments]) == 0

    stage("sft", "sft", runs / "pretrain", "--rows", 2, "--val-examples", 4, "--flawed-share", 0.5)
    for seed in (0, 1):
        few = ("--prompts", 2, "--val-pairs", 6, "--seed", seed)
        stage("reward", f"reward-{seed}", folder / "sft", *few)
        stage("dpo", f"dpo-{seed}", folder / "sft", *few)
    return folder


def test_runs_of_one_stage_are_a_row_and_know_what_they_are_measured_with(aligned: Path) -> None:
    found = tasks(sorted(aligned.iterdir()))
    assert [(task.policy.stage, task.policy.seed) for task in found] == [("dpo", 0), ("dpo", 1), ("sft", 0)]
    assert [Path(task.reward).name for task in found] == ["reward-0", "reward-1", "reward-0"]
    assert {Path(task.sft).name for task in found} == {"sft"}
    assert found[0].policy.settings == found[1].policy.settings


def test_adapters_are_measured_beside_the_first_policy(aligned: Path, tmp_path: Path) -> None:
    """A run with an adapter is the stage that made it; a folder as PEFT writes it is none."""
    (tmp_path / "french").mkdir()
    (tmp_path / "french" / "adapter_config.json").write_text("{}")
    runs = [aligned / "reward-1", aligned / "sft", aligned / "dpo-1"]
    found = tasks(runs, [tmp_path / "french", aligned / "dpo-0"])
    assert [(task.policy.title, Path(task.base).name) for task in found] == [
        ("sft", ""), ("dpo", ""), ("adapter (french)", "sft"), ("dpo", "sft")
    ]  # fmt: skip
    assert {Path(task.reward).name for task in found} == {"reward-1"} and {Path(t.sft).name for t in found} == {"sft"}


def test_the_command(aligned: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("sft", "dpo-0", "dpo-1", "reward-0", "reward-1")
    flags = ["--n", "1", "--device", "cpu", "--json", tmp_path / "l.json", "--plot", tmp_path / "l.png"]
    directories = [runs / "pretrain", *(aligned / name for name in names)]
    assert run_main(lambda: run_command([str(w) for w in ["ledger", "--runs", *directories, *flags]])) == 0
    found = json.loads((tmp_path / "l.json").read_text())
    base, sft, dpo = found["stages"]
    assert [stage["stage"] for stage in found["stages"]] == ["pretrain", "sft", "dpo"]
    assert dpo["seeds"] == [0, 1] and len(dpo["true_reward_by_seed"]) == 2 and dpo["interval_over_seeds"]
    assert base["kl_to_sft"] is None and sft["kl_to_sft"] == 0.0 and dpo["kl_to_sft"] != 0.0
    assert all(stage["peak_memory"] > 0 and stage["text_bits_per_byte"] > 0 for stage in found["stages"])
    assert len(found["notes"]) == 2 and "held-out pairs right" in found["notes"][0]
    text = capsys.readouterr().out
    assert "true reward" in text and "dpo" in text


def test_a_ledger_without_policies(aligned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(lambda: run_command(["ledger", "--runs", str(aligned / "reward-0")])) == 2
    assert "needs a run with a policy" in capsys.readouterr().err


def test_a_reward_model_of_another_tokenizer(
    aligned: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from instructgpt.text.tokenizer import Tokenizer

    other = tmp_path / "reward-0"
    shutil.copytree(aligned / "reward-0", other)
    text = (f"other words {i} here\n" for i in range(2000))
    tokenizer = Tokenizer.train(text, 300)
    tokenizer.save(other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "tokenizer": tokenizer.fingerprint}))
    code = run_main(lambda: run_command(["ledger", "--runs", str(aligned / "sft"), str(other), "--device", "cpu"]))
    assert code == 2 and "another tokenizer" in capsys.readouterr().err
