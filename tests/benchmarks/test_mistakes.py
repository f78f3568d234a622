from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import mistakes
from benchmarks.mistakes import MistakesConfig, Run, chosen, measure, runs, stage_config, table
from benchmarks.planted import LAYOUTS, MISTAKES
from instructgpt import world
from instructgpt.config import ModelConfig
from instructgpt.errors import UserError
from instructgpt.model.transformer import Transformer
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.checkpoint import RunDirectory


@pytest.fixture
def config(tmp_path: Path) -> MistakesConfig:
    return MistakesConfig(out=str(tmp_path / "runs"), json=str(tmp_path / "mistakes.json"), device="cpu", seeds=2, n=1)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Scores that need no model: right versions have 0.5 and more for each seed, mistakes half of that."""
    said: list[str] = []

    def score(run: Run, *_: Any) -> float:
        said.append(f"{run.stage}: {run.name} {run.seed}")
        return (0.5 + 0.1 * run.seed) * (0.5 if run.mistake else 1.0)

    monkeypatch.setattr(mistakes, "score", score)
    monkeypatch.setattr(mistakes, "Judge", lambda config: None)
    monkeypatch.setattr(mistakes, "start", lambda config: "start")
    return said


def test_only_names_mistakes_and_roads():
    assert set(chosen(["dpo"])) == {name for name in MISTAKES if name.startswith("DPO")}
    assert next(iter(chosen(["no warm-up", "use"]))) == "no warm-up" and len(chosen(["no warm-up", "use"])) == 4
    assert chosen([]) == MISTAKES
    with pytest.raises(UserError, match="'dop' is no mistake"):
        chosen(["dop"])


def test_the_right_version_of_each_layout_runs_once_a_seed_before_what_is_compared_with_it():
    found = [f"{run.name} {run.seed}" for run in runs(chosen(["sft", "use"]), 2)]
    for seed in range(2):
        for name, mistake in chosen(["sft", "use"]).items():
            assert found.index(f"{mistake.layout} {seed}") < found.index(f"{name} {seed}")
    assert len(found) == len(set(found)) == 2 * (len(chosen(["sft", "use"])) + len(LAYOUTS))


def test_settings_are_the_recipes_but_for_what_is_wrong():
    config = MistakesConfig(base="base", sft="tuned", out="o", device="cpu", scale=0.5)
    name = "learning rate ten times too high"
    right = stage_config(Run("right", LAYOUTS["right"], 1, None, "sft"), config)
    wrong = stage_config(Run(name, LAYOUTS["right"], 1, MISTAKES[name], "sft"), config)
    assert (right.init, right.seed, right.fit.max_steps, right.out) == ("base", 1, 120, "o/sft-right-1")
    assert wrong.fit.learning_rate == pytest.approx(10 * right.fit.learning_rate) and wrong.out == "o/sft"
    name = "no warm-up"
    assert stage_config(Run(name, LAYOUTS["right"], 0, MISTAKES[name], "sft"), config).fit.warmup_steps == 0
    layout = LAYOUTS["right, in micro-batches"]
    assert stage_config(Run("", layout, 0, None, "sft"), config).fit.micro_batches == 6
    grpo = stage_config(Run("right", LAYOUTS["right"], 0, None, "grpo"), config)
    assert grpo.init == "tuned" and grpo.reward == ("world",) and grpo.row_length == 128


def test_what_is_measured_is_kept_and_not_measured_again(
    config: MistakesConfig, scored: list[str], capsys: pytest.CaptureFixture[str]
):
    first = MistakesConfig(**{**vars(config), "only": ("grpo",), "seeds": 1})
    assert measure(first) == 0
    assert len(scored) == 4
    scored.clear()
    assert measure(MistakesConfig(**{**vars(config), "only": ("grpo",)})) == 0
    assert scored and all(each.endswith("1") for each in scored) and len(scored) == 4
    document = json.loads(Path(config.json).read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == document
    row = next(row for row in document["mistakes"] if row["mistake"] == "GRPO without a baseline")
    assert row["right"] == 0.55 and row["with_mistake"] == 0.275 and row["cost"] == 0.275 and row["seeds"] == 2
    assert row["interval"][0] < 0.275 < row["interval"][1]
    scored.clear()
    measure(MistakesConfig(**{**vars(config), "only": ("grpo",), "scale": 0.5}))
    assert len(scored) == 8  # other settings, other figures


def test_a_mistake_of_use_is_compared_with_what_sft_tuned_right():
    found = {"sft": {"right": [0.5, 0.7], "teacher-forced argmax called accuracy": [0.9]}}
    (row,) = table(found, MISTAKES)
    assert row["right"] == 0.5 and row["cost"] == pytest.approx(-0.4) and row["interval"] is None


@pytest.mark.slow
def test_all_of_it_runs(tmp_path: Path):
    """Every mistake, on a model that knows nothing, which in one or two updates learns nothing: none fails."""
    tokenizer = Tokenizer.train((world.document(i, 0) for i in range(3000)), vocab_size=2560, character_coverage=0.9999)
    shape = ModelConfig(vocab_size=tokenizer.vocab_size, context=256, layers=1, width=16, heads=2)
    run = RunDirectory.open(tmp_path / "base")
    run.write_config("pretrain", shape, tokenizer, {})
    run.save_model(Transformer(shape))
    config = MistakesConfig(
        base=str(run.path), out=str(tmp_path / "runs"), json=str(tmp_path / "m.json"), device="cpu",
        seeds=1, n=1, best_of=2, scale=0.01,
    )  # fmt: skip
    assert measure(config) == 0
    assert len(json.loads(Path(config.json).read_text())["mistakes"]) == len(MISTAKES)
