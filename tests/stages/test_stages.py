"""Each stage on small data: what it leaves behind, and that the stages fit together."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from instructgpt.config import MODEL_PRESETS
from instructgpt.flags import run_main
from instructgpt.stages import STAGES, main
from instructgpt.stages.presets import recipe
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.checkpoint import load
from instructgpt.training.metrics import read_metrics

SMALL_SFT = "--rows 2 --val-examples 8 --device cpu --dtype float32".split()


def stage(*argv: object) -> int:
    return run_main(lambda: main([str(word) for word in argv]))


def test_tokenizer_stage_trains_on_the_first_part_only(tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("aaaa bbbb cccc dddd\n" * 900 + "zzzzzzzz yyyyyyyy\n" * 100)
    assert stage("tokenizer", "--text", text, "--vocab-size", 280, "--out", tmp_path / "o") == 0
    tokenizer = Tokenizer.load(tmp_path / "o")
    assert len(tokenizer.encode("aaaa bbbb")) < 9 / 2
    assert len(tokenizer.encode("zzzzzzzz")) == 8, "z stands in the held-out tenth alone, so it has only its byte"
    report = json.loads((tmp_path / "o" / "eval.json").read_text())
    assert report["vocab_size"] == 280 and 0.9 < report["bytes_per_token"] < 1.3


def test_a_run_directory_holds_what_it_should(runs: Path) -> None:
    names = {path.name for path in (runs / "pretrain").iterdir()}
    assert names >= {"config.json", "tokenizer.model", "model.safetensors", "metrics.jsonl", "eval.json", "state"}
    report = json.loads((runs / "pretrain" / "eval.json").read_text())
    assert report["steps"] == 2 and report["val_bits_per_byte"] > 0
    records = read_metrics(runs / "pretrain" / "metrics.jsonl")
    assert records[-2]["tokens"] == 2 * 2 * 64, "two steps of two full rows"


def test_sft_on_a_file_lowers_the_loss_on_its_answers_and_keeps_some_apart(runs: Path, tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    lines = [json.dumps({"instruction": f"How many, {i}?", "output": "red birds"}) for i in range(100)]
    data.write_text("\n".join([*lines, lines[0]]) + "\n")
    arguments = ("--data", data, "--init", runs / "pretrain", "--out", tmp_path / "o", "--val-share", 0.1)
    assert stage("sft", *arguments, *SMALL_SFT, "--max-steps", 120, "--eval-every", 60) == 0
    losses = [r["val_loss"] for r in read_metrics(tmp_path / "o" / "metrics.jsonl") if "val_loss" in r]
    assert losses[-1] < 0.5 * losses[0] or losses[-1] < 0.05
    held_out = [json.loads(line)["messages"] for line in (tmp_path / "o" / "val.jsonl").open()]
    assert [m[0]["content"] for m in held_out] == [f"How many, {i}?" for i in range(9, 100, 10)]
    model, tokenizer = load(tmp_path / "o", "cpu")
    assert tokenizer == load(runs / "pretrain", "cpu")[1] and model.config.layers == 1


def test_the_pipeline_on_files_and_its_resumption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = recipe("tiny")
    from dataclasses import replace

    from instructgpt.stages import pipeline

    small = replace(
        tiny,
        tokenizer=replace(tiny.tokenizer, vocab_size=100),
        pretrain=replace(tiny.pretrain, rows=2, model=replace(tiny.pretrain.model, width=32, heads=2, layers=1)),
    )
    monkeypatch.setattr(pipeline, "recipe", lambda preset: small)
    (tmp_path / "text.txt").write_text("".join(f"the cat number {i} sees {i % 7} birds\n" for i in range(2000)))
    lines = [json.dumps({"instruction": f"How many, {i}?", "output": f"{i} birds"}) for i in range(60)]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    files = ("--text", "world", tmp_path / "text.txt", "--data", "world", tmp_path / "d.jsonl")
    arguments = ("pipeline", "--out", tmp_path / "o", "--max-steps", 2, "--examples", 1, "--dtype", "float32", *files)
    assert stage(*arguments) == 0
    printed = capsys.readouterr().out
    assert "files: exact match" in printed and "files: text bits/byte" in printed
    report = json.loads((tmp_path / "o" / "eval.json").read_text())
    for model in ("base", "tuned"):
        assert set(report[model]["scores"]) == {"test", "test_phrasing", "test_noise", "test_composition", "files"}
        assert report[model]["steps"] == 2 and report[model]["answer_loss"] > 0
        held_out = (tmp_path / "o" / "sft" / "val.jsonl").read_text().splitlines()
        assert report[model]["scores"]["files"]["examples"] == len(held_out) == 3, "what was not trained on"
        assert report[model]["file_answer_loss"]["loss"] > 0 and report[model]["file_text"]["bits_per_byte"] > 0
    samples = (tmp_path / "o" / "samples.md").read_text()
    assert samples.index("# tuned") < samples.index("## held out of d.jsonl") < samples.index("# base")
    assert (tmp_path / "o" / "curves.png").exists()
    before = (tmp_path / "o" / "sft" / "model.safetensors").read_bytes()
    assert stage(*arguments) == 2, "a second run needs --resume or --overwrite"
    assert stage(*arguments, "--resume") == 0
    assert (tmp_path / "o" / "sft" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("preset", MODEL_PRESETS)
def test_every_preset_has_a_recipe_that_ends(preset: str) -> None:
    stages = recipe(preset)
    assert stages.pretrain.fit.max_steps and stages.sft.fit.max_steps
    assert stages.pretrain.model == MODEL_PRESETS[preset]
    for stage in (getattr(stages, field.name) for field in fields(stages)):
        if hasattr(stage, "fit"):
            assert stage.fit.max_steps > 0, "the same updates on every machine, however busy"
            assert stage.fit.max_minutes == 0, "a limit in minutes would give another model each time"


@pytest.mark.parametrize("name", STAGES)
def test_help_shows_every_flag_with_its_meaning(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main([name, "--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    flag, meaning = {"plan": ("--memory", "What there is")}.get(name, ("--out", "directory to write"))
    assert flag in text and meaning in text


def test_changing_a_presets_width_changes_what_follows_from_it(runs: Path, tmp_path: Path) -> None:
    arguments = ("--text", runs / "text.txt", "--tokenizer", runs / "tokenizer", "--out", tmp_path / "o", "--rows", 1)
    shape = ("--width", 24, "--heads", 3, "--layers", 1, "--context", 16, "--max-steps", 1, "--dtype", "float32")
    assert stage("pretrain", *arguments, *shape) == 0
    model, _ = load(tmp_path / "o", "cpu")
    assert (model.config.kv_heads, model.config.head_dim, model.config.mlp_width) == (3, 8, 64)


def test_master_weights_stage_leaves_a_run_that_loads(runs: Path, tmp_path: Path) -> None:
    arguments = ("--data", "world", "--init", runs / "pretrain", "--out", tmp_path / "o", "--max-steps", 1)
    assert stage("sft", *arguments, *SMALL_SFT[:-2], "--dtype", "bfloat16-master") == 0
    model, _ = load(tmp_path / "o", "cpu")
    assert all(torch.isfinite(p).all() for p in model.parameters())
