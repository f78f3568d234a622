"""The road of RLHF, on small models: every stage, the ledger, and going on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from instructgpt import world
from instructgpt.stages import main, rlhf
from instructgpt.stages.presets import recipe
from instructgpt.stages.rlhf import RLHFConfig, _curves, plan


def test_the_plan_of_jobs(tmp_path: Path) -> None:
    config = RLHFConfig(out=str(tmp_path), preset="tiny", seeds=2)
    jobs = {job.name: job for job in plan(config, tmp_path / "pretrain", 256)}
    later = [f"{stage}-{seed}" for stage in ("reward", "ppo", "grpo", "dpo") for seed in (0, 1)]
    assert list(jobs) == ["tokenizer", "pretrain", "sft", *later]
    assert jobs["sft"].needs == ("pretrain",) and jobs["dpo-1"].needs == ("sft",)
    assert jobs["ppo-1"].needs == ("reward-1",) and jobs["grpo-1"].needs == ("sft",)
    assert jobs["sft"].arguments[0].flawed_share == RLHFConfig().flawed_share > 0
    for name in later:
        (settings,) = jobs[name].arguments
        assert settings.init == str(tmp_path / "sft") and settings.seed == int(name[-1])
    assert jobs["ppo-1"].arguments[0].reward == (str(tmp_path / "reward-1"),)
    assert jobs["grpo-1"].arguments[0].reward == ("world",)
    both = plan(replace(config, ppo_reward="both"), tmp_path, 256)
    (settings,) = next(job.arguments for job in both if job.name == "ppo-0")
    assert settings.reward == (str(tmp_path / "reward-0"), "world") and len(settings.reward_weights) == 2


def test_with_a_base_model_nothing_is_pretrained(tmp_path: Path) -> None:
    config = RLHFConfig(out=str(tmp_path), preset="tiny", base="runs/base", seeds=1, max_steps=3)
    jobs = plan(config, Path("runs/base"), 64)
    assert [job.name for job in jobs] == ["sft", "reward-0", "ppo-0", "grpo-0", "dpo-0"]
    assert jobs[0].arguments[0].init == "runs/base"
    assert all(job.arguments[0].fit.max_steps == 3 for job in jobs)
    assert all(job.arguments[0].row_length == 64 for job in jobs[1:]), "no more than the base model's context"


def test_a_short_ledger_has_a_short_curve(tmp_path: Path) -> None:
    usual, short = (_curves(RLHFConfig(n=n, ppo_reward="both", grpo_reward="model"), tmp_path) for n in (12, 1))
    assert usual.prompts == 96 and short.prompts == len(world.FAMILIES) < 96
    assert usual.policies == (str(tmp_path / "grpo-0"),)


def test_the_whole_fits_in_its_time() -> None:
    """20 minutes on two cores: what runs alone has both, what runs once a seed has one."""
    tiny, config = recipe("tiny"), RLHFConfig()
    base = tiny.pretrain.expected_minutes * config.base_steps / tiny.pretrain.fit.max_steps
    each = sum(getattr(tiny, stage).expected_minutes for stage in ("reward", "dpo", "ppo", "grpo"))
    minutes = base + tiny.flawed_sft.expected_minutes + config.seeds * each / 2
    assert 15 <= minutes <= 18.5, "with a minute or so for processes and the ledger"


def test_the_base_model_is_shorter_than_the_presets(tmp_path: Path) -> None:
    config = RLHFConfig(out=str(tmp_path), preset="tiny", base_steps=59)
    (settings,) = plan(config, tmp_path / "pretrain", 256)[1].arguments
    usual = recipe("tiny").pretrain
    assert settings.fit.max_steps == 59 and settings.fit.max_minutes == 0
    assert settings.expected_minutes == pytest.approx(usual.expected_minutes * 59 / usual.fit.max_steps)


def test_wrong_input(runs: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "--out is missing" in refused("rlhf")
    assert "seeds is 0" in refused("rlhf", "--out", tmp_path / "o", "--seeds", 0)
    assert "eval.json is missing" in refused("rlhf", "--out", tmp_path / "o", "--base", tmp_path)
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "rlhf.json").write_text("{}")
    message = refused("rlhf", "--out", tmp_path / "o", "--base", runs / "pretrain")
    assert "--resume" in message and "--overwrite" in message


@pytest.mark.slow
def test_the_road(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """From no model at all; the stages run in processes of their own, which are handed their settings."""
    tiny = recipe("tiny")
    shape = replace(tiny.pretrain.model, width=32, heads=2, layers=1)
    small = replace(
        tiny,
        tokenizer=replace(tiny.tokenizer, vocab_size=900),
        pretrain=replace(tiny.pretrain, rows=2, val_rows=4, model=shape),
        ppo=replace(tiny.ppo, prompts=8, val_examples=4),
        grpo=replace(tiny.grpo, prompts=2, val_examples=4),
    )
    monkeypatch.setattr(rlhf, "recipe", lambda preset: small)
    out = tmp_path / "o"
    flags = ["rlhf", "--out", str(out), *"--seeds 2 --max-steps 4 --n 1 --device cpu --dtype float32".split()]
    assert main(flags) == 0
    ledger = json.loads((out / "ledger.json").read_text())
    assert [stage["stage"] for stage in ledger["stages"]] == ["sft", "dpo", "ppo", "grpo (world)"]
    assert [len(stage["runs"]) for stage in ledger["stages"]] == [1, 2, 2, 2]
    assert len(ledger["notes"]) == 2 and "ppo: " in (out / "logs" / "ppo-1.txt").read_text()
    assert "best of n" in json.loads((out / "overoptimisation.json").read_text())
    assert "best of n: " in capsys.readouterr().out
    written = (out / "dpo-0" / "model.safetensors").stat().st_mtime_ns
    (out / "dpo-1" / "eval.json").unlink()
    assert main([*flags, "--resume"]) == 0
    begun = {line.split("  ")[-1] for line in capsys.readouterr().out.splitlines() if line.endswith(" begins")}
    assert "dpo-1 begins" in begun and not {"dpo-0 begins", "pretrain begins"} & begun
    assert (out / "dpo-0" / "model.safetensors").stat().st_mtime_ns == written
