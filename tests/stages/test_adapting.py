"""Adapters in stages and run directories: what is trained, saved, found again, resumed and refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from instructgpt.cli import run_command
from instructgpt.flags import run_main
from instructgpt.model.adapters import adapters_of, base_of
from instructgpt.model.transformer import Transformer
from instructgpt.stages import dpo, grpo, main, policy, ppo
from instructgpt.stages.adapting import AdapterFlags
from instructgpt.training.checkpoint import RunDirectory, load, load_reward_model, load_settled, load_tensors
from instructgpt.training.metrics import read_metrics

CPU = "--device cpu --dtype float32 --log-every 1 --warmup-steps 0 --schedule constant".split()
LORA = "--lora-rank 2 --lora-on attention,mlp --lora-alpha 4 --learning-rate 0.01 --optimizer adamw".split()
STAGES: dict[str, list[str]] = {
    "sft": ["--rows", "2", "--val-share", "0.2"],
    "reward": ["--prompts", "4"],
    "dpo": ["--prompts", "4"],
    "ppo": "--prompts 4 --minibatches 2 --epochs 2 --max-new-tokens 4 --val-examples 4".split(),
    "grpo": "--prompts 2 --answers 4 --minibatches 2 --epochs 2 --max-new-tokens 4 --val-examples 4".split(),
}
PARTS = {"query", "key", "value", "output", "gate", "up", "down"}
IDS = torch.randint(7, 300, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def files(runs: Path) -> dict[str, Path]:
    """What each stage reads, and a function that rewards, by chance but always in the same way."""
    folder = runs / "adapting"
    folder.mkdir()
    questions = [{"instruction": f"How many, {i}?", "output": f"{i % 7} birds"} for i in range(30)]
    pairs = [{"prompt": f"cat {i}?", "chosen": "red birds", "rejected": "no"} for i in range(30)]
    for name, records in (("questions", questions), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    (folder / "reward.py").write_text(
        "def score(prompts, answers):\n    return [sum(map(ord, a)) % 3 for a in answers]\n"
    )
    return {"folder": folder, "questions": folder / "questions.jsonl", "pairs": folder / "pairs.jsonl"}


@pytest.fixture
def tune(runs: Path, files: dict[str, Path], tmp_path: Path) -> Callable[..., int]:
    """Runs a stage from the base into tmp_path/OUT; its exit code."""

    def run(stage: str, out: str, *flags: object, init: Path = runs / "pretrain") -> int:
        data = files["pairs" if stage in ("reward", "dpo") else "questions"]
        reward = f"{files['folder'] / 'reward.py'}:score"
        scored = ["--reward-function", reward] if stage in ("ppo", "grpo") else []
        given = ["--data", data, "--init", init, "--out", tmp_path / out, *CPU, *STAGES[stage], *scored, *flags]
        return run_main(lambda: main([stage, *map(str, given)]))

    return run


def equal(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("stage", "bits"),
    [(stage, "float") for stage in STAGES] + [pytest.param(stage, "int4", marks=pytest.mark.slow) for stage in STAGES],
)
def test_every_stage_trains_an_adapter_alone(
    stage: str, bits: str, tune: Callable[..., int], runs: Path, tmp_path: Path
) -> None:
    before = (runs / "pretrain" / "model.safetensors").read_bytes()
    assert tune(stage, "o", "--max-steps", 4, *LORA, "--base-format", bits) == 0
    run = RunDirectory(tmp_path / "o")
    assert not run.model_file.exists() and (runs / "pretrain" / "model.safetensors").read_bytes() == before
    record = run.read_config()["adapter"]
    assert record == {
        "rank": 2, "alpha": 4.0, "on": ["attention", "mlp"], "rslora": False, "dora": False, "base_format": bits,
        "base": Path(os.path.relpath(runs / "pretrain", run.path)).as_posix(),
        "base_sha256": RunDirectory(runs / "pretrain").digest(),
    }  # fmt: skip
    own, _ = load_tensors(run.adapter_file)
    assert {name.split(".")[3] for name in own if name.startswith("blocks")} == PARTS
    assert any(tensor.any() for name, tensor in own.items() if name.endswith("B")), "it has learnt something"
    with safe_open(str(run.state_file), "pt") as state:
        kept = {name for name in state.keys() if name.startswith("optimizer/")}  # noqa: SIM118
    assert all("adapters.default" in name or "head." in name or "value." in name for name in kept) and kept
    result = run.read_eval()
    assert result["trained_parameters"] < 0.25 * result["parameters"]
    if stage == "reward":
        model, _ = load_reward_model(run.path, "cpu")
        head = {f"head.{name}": tensor for name, tensor in model.head.state_dict().items()}
        assert equal(head, {name: tensor for name, tensor in own.items() if name.startswith("head.")})
        transformer = model.transformer
    else:
        transformer, _ = load(run.path, "cpu")
    base, _ = load(runs / "pretrain", "cpu")
    if bits == "float":
        assert torch.equal(base_of(transformer)(IDS), base(IDS))
    assert not torch.equal(transformer(IDS), base_of(transformer)(IDS))


@pytest.mark.parametrize(
    "stage", ["sft", *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("reward", "ppo", "grpo"))]
)
def test_a_resumed_run_equals_the_undisturbed_one(stage: str, tune: Callable[..., int], tmp_path: Path) -> None:
    flags = (*LORA, "--dora", "--ema", 0.5, "--save-every", 4)
    assert tune(stage, "whole", "--max-steps", 8, *flags) == 0
    assert tune(stage, "parts", "--max-steps", 4, *flags) == 0
    assert tune(stage, "parts", "--max-steps", 8, "--resume", *flags) == 0
    whole, parts = ((tmp_path / name / "adapter.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


@pytest.mark.parametrize("stage", ["dpo", "grpo", pytest.param("ppo", marks=pytest.mark.slow)])
def test_policy_and_reference_are_one_model(
    stage: str, tune: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes of all parameters of both: of one base and an adapter, where they were of two models."""
    module = dpo if stage == "dpo" else policy
    original, pairs = module.frozen_copy, list[tuple[Transformer, Transformer]]()

    def seen(model: Transformer) -> Transformer:
        pairs.append((model, original(model)))
        return pairs[-1][1]

    monkeypatch.setattr(module, "frozen_copy", seen)
    for name, flags in (("adapter", LORA), ("whole", [])):
        assert tune(stage, name, "--max-steps", 1, *flags) == 0
    held = []
    for pair in pairs:
        storages = {p.untyped_storage().data_ptr(): p.nbytes for model in pair for p in model.parameters()}
        held.append(sum(storages.values()))
    one = sum(p.nbytes for p in pairs[0][1].parameters())
    adapter = sum(tensor.nbytes for tensor in load_tensors(tmp_path / "adapter" / "adapter.safetensors")[0].values())
    assert held == [one + adapter, 2 * one]


SLOW = pytest.mark.slow
WAYS = [
    pytest.param("ppo", ["--base-format", "int4"]),
    pytest.param("grpo", ["--dora"]),
    *(
        pytest.param(stage, way.split(), marks=SLOW)
        for stage in ("ppo", "grpo")
        for way in ("", "--base-format int8", "--checkpointing blocks", "--base-format int4 --dora")
    ),
]


@pytest.mark.parametrize(("stage", "flags"), WAYS)
def test_the_first_ratio_is_exactly_1(
    stage: str, flags: list[str], tune: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name = {"ppo": (ppo, "ppo_loss"), "grpo": (grpo, "grpo_loss")}[stage]
    original, firsts = getattr(module, name), list[bool]()

    def kept(logprobs: Any, *others: Any) -> Any:
        old = others[2] if stage == "ppo" else others[1]
        firsts.append(bool(torch.equal(logprobs.detach(), old)))
        return original(logprobs, *others)

    monkeypatch.setattr(module, name, kept)
    assert tune(stage, "o", "--max-steps", 2, *LORA, *flags) == 0
    assert firsts[0], "log-probabilities of the first step are those of the rollout, to the bit"
    records = read_metrics(tmp_path / "o" / "metrics.jsonl")
    assert records[0]["kl"] == 0, "and the reference is the policy without its adapter, which has learnt nothing yet"


def test_dpo_starts_at_ln_2_and_simpo_needs_no_reference(tune: Callable[..., int], tmp_path: Path) -> None:
    assert tune("dpo", "o", "--max-steps", 2, "--chosen-weight", 0, *LORA) == 0
    first = read_metrics(tmp_path / "o" / "metrics.jsonl")[0]
    assert first["margin"] == first["chosen_shift"] == 0
    assert tune("dpo", "s", "--max-steps", 2, "--loss", "simpo", *LORA) == 0


# ---- run directories


def test_both_may_be_moved_together_and_the_base_alone_is_named(
    tune: Callable[..., int], runs: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    shutil.copytree(runs / "pretrain", here / "base")
    assert tune("sft", "here/tuned", "--max-steps", 2, *LORA, init=here / "base") == 0
    assert RunDirectory(here / "tuned").read_config()["adapter"]["base"] == "../base"
    said = load(here / "tuned", "cpu")[0](IDS)
    here.rename(tmp_path / "there")
    moved = tmp_path / "there"
    assert torch.equal(load(moved / "tuned", "cpu")[0](IDS), said)
    (moved / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(Exception, match=r"belongs beside .*base, which is not there.*--model THERE --adapter"):
        load(moved / "tuned", "cpu")
    assert torch.equal(load(tmp_path / "elsewhere", "cpu", adapter=moved / "tuned")[0](IDS), said)


def test_another_base_is_refused(tune: Callable[..., int], runs: Path, tmp_path: Path) -> None:
    assert tune("sft", "a", "--max-steps", 2) == 0
    assert tune("sft", "lora", "--max-steps", 2, *LORA) == 0
    with pytest.raises(Exception, match=r"lora: its adapter belongs beside other weights than those in .*a$"):
        load(tmp_path / "a", "cpu", adapter=tmp_path / "lora")
    with pytest.raises(Exception, match=r"holds a model of its own and no adapter"):
        load(runs / "pretrain", "cpu", adapter=tmp_path / "a")


def test_one_adapter_on_another(tune: Callable[..., int], tmp_path: Path) -> None:
    """What starts from a run with an adapter starts from base and adapter as one; the hash is of both."""
    assert tune("sft", "first", "--max-steps", 3, *LORA) == 0
    first, _ = load_settled(tmp_path / "first", "cpu")
    assert not adapters_of(first) and all(p.requires_grad for p in first.parameters())
    assert tune("dpo", "second", "--max-steps", 2, *LORA, init=tmp_path / "first") == 0
    second, _ = load(tmp_path / "second", "cpu")
    assert torch.equal(base_of(second)(IDS), first(IDS)) and not torch.equal(second(IDS), first(IDS))
    assert tune("sft", "whole", "--max-steps", 2, init=tmp_path / "second") == 0
    whole, _ = load(tmp_path / "whole", "cpu")
    assert not adapters_of(whole) and RunDirectory(tmp_path / "whole").model_file.exists()
    assert tune("sft", "first", "--max-steps", 4, *LORA, "--overwrite") == 0  # now another base
    with pytest.raises(Exception, match="belongs beside other weights"):
        load(tmp_path / "second", "cpu")


def test_few_bits_of_a_base_that_starts_something_new(tune: Callable[..., int], tmp_path: Path) -> None:
    assert tune("sft", "q", "--max-steps", 2, *LORA, "--base-format", "int8") == 0
    model, _ = load(tmp_path / "q", "cpu")
    plain, _ = load_settled(tmp_path / "q", "cpu")
    assert (plain(IDS) - model(IDS)).norm() < 1e-6 * model(IDS).norm()
    with pytest.raises(Exception, match="in few bits already"):
        load(tmp_path / "q", "cpu", quantized="int4")


def test_overwriting_leaves_nothing_of_the_other_kind(tune: Callable[..., int], tmp_path: Path) -> None:
    assert tune("sft", "o", "--max-steps", 2, *LORA) == 0
    assert tune("sft", "o", "--max-steps", 2, "--overwrite") == 0
    assert not (tmp_path / "o" / "adapter.safetensors").exists() and not adapters_of(load(tmp_path / "o", "cpu")[0])
    assert tune("sft", "o", "--max-steps", 2, "--overwrite", *LORA) == 0
    assert not (tmp_path / "o" / "model.safetensors").exists()


@pytest.mark.parametrize("harm", ["altered", "cut", "gone", "another rank", "no rank", "no base"])
def test_damaged_adapters_are_refused(harm: str, tune: Callable[..., int], tmp_path: Path) -> None:
    assert tune("sft", "o", "--max-steps", 2, *LORA) == 0
    run = RunDirectory(tmp_path / "o")
    data, config = run.adapter_file.read_bytes(), run.read_config()
    if harm == "altered":
        run.adapter_file.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    elif harm == "cut":
        run.adapter_file.write_bytes(data[:-40])
    elif harm == "gone":
        run.adapter_file.unlink()
    elif harm == "another rank":
        config["adapter"]["rank"] = 3
    elif harm == "no rank":
        del config["adapter"]["rank"]
    else:
        config["adapter"]["base"] = 7
    run.config_file.write_text(json.dumps(config))
    told = {
        "altered": "do not match its checksum", "cut": "cut off", "gone": "adapter.safetensors is missing",
        "another rank": "does not fit config.json: blocks.0.attention.key.A has shape",
        "no rank": "does not describe an adapter",
        "no base": "does not describe an adapter",
    }  # fmt: skip
    with pytest.raises(Exception, match=told[harm]) as raised:
        load(run.path, "cpu")
    assert type(raised.value).__name__ == "UserError" and "\n" not in str(raised.value)


# ---- flags


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--lora-rank", "0"], "lora_rank is 0; it must be at least 1"),
        (["--lora-rank", "-1"], "lora_rank is -1"),
        (["--lora-rank", "two"], "is not a whole number"),
        (["--lora-rank", "2", "--lora-alpha", "0"], "lora_alpha is 0.0"),
        (["--lora-rank", "2", "--lora-on", "atention,mlp"], "--lora-on atention: .*did you mean 'attention'"),
        (["--lora-rank", "2", "--lora-on", "mlp", "dwon"], "--lora-on dwon: .*did you mean 'down'"),
        (["--lora-rank", "2", "--lora-on", "blocks.1"], "did you mean 'blocks.0'"),
        (["--lora-rank", "2", "--lora-on", ","], "--lora-on : no linear layer"),
        (["--dora"], "--dora says something of an adapter, and none is trained: give --lora-rank too"),
        (["--base-format", "int8"], "--base-format says something of an adapter"),
        (["--lora-on", "mlp"], "--lora-on says something"),
        (["--lora-alpha", "3"], "--lora-alpha says something"),
        (["--rslora"], "--rslora says something"),
        (["--lora-rank", "2", "--base-format", "int5"], "--base-format int5 is unknown; did you mean 'int"),
        (["--lora-rnk", "2"], "did you mean '--lora-rank'"),
    ],
)
def test_flags_that_make_no_sense(
    flags: list[str], told: str, tune: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert tune("sft", "o", "--max-steps", 1, *flags) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(error)
    assert not (tmp_path / "o" / "config.json").exists()


def test_four_bits_of_a_width_without_a_group(
    runs: Path, files: dict[str, Path], tmp_path: Path, tune: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    shape = "--context 64 --layers 1 --width 24 --heads 2 --rows 2 --max-steps 1 --val-rows 4".split()
    arguments = [
        "--text",
        runs / "text.txt",
        "--tokenizer",
        runs / "tokenizer",
        "--out",
        tmp_path / "narrow",
        *shape,
        *CPU,
    ]
    assert run_main(lambda: main(["pretrain", *map(str, arguments)])) == 0
    capsys.readouterr()
    assert tune("sft", "o", "--max-steps", 1, *LORA, "--base-format", "int4", init=tmp_path / "narrow") == 2
    assert (
        "--base-format int4 has a scale for 64 or 32 weights, and qkv is 24 wide: use int8" in capsys.readouterr().err
    )
    assert tune("sft", "o", "--max-steps", 1, *LORA, "--base-format", "int8", init=tmp_path / "narrow") == 0


def test_other_settings_of_an_adapter_do_not_resume(
    tune: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune("sft", "o", "--max-steps", 2, *LORA) == 0
    assert tune("sft", "o", "--max-steps", 3, *LORA, "--dora", "--resume") == 2
    assert "was started with --dora False, not True" in capsys.readouterr().err


def test_words_with_commas_or_spaces() -> None:
    for on in (("query,mlp",), ("query", "mlp"), ("query, mlp",)):
        lora = AdapterFlags(lora_rank=3, lora_on=on).lora
        assert lora is not None and lora.on == ("query", "mlp") and lora.alpha == 32
    assert AdapterFlags().lora is None


def test_commands_put_an_adapter_beside_a_model(
    tune: Callable[..., int], runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`generate` and `eval`: a run with its base, base and adapter by name, a folder as PEFT writes it."""
    shape = "--context 64 --layers 1 --width 32 --heads 2 --rows 2 --max-steps 1 --val-rows 4 --qk-window 1".split()
    where = ("--text", runs / "text.txt", "--tokenizer", runs / "tokenizer", "--out", tmp_path / "base", *shape, *CPU)
    assert run_main(lambda: main(["pretrain", *map(str, where), "--no-qk-norm"])) == 0
    assert tune("sft", "tuned", "--max-steps", 20, *LORA, "--learning-rate", 0.1, init=tmp_path / "base") == 0
    run, base = RunDirectory(tmp_path / "tuned"), RunDirectory(tmp_path / "base")

    def done(*words: object) -> int:
        return run_main(lambda: run_command([str(word) for word in words]))

    assert done("export", "--model", run.path, "--to", tmp_path / "peft", "--format", "peft", "--base", "there") == 0
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["base_model_name_or_path"] == "there"
    assert done("export", "--model", run.path, "--to", tmp_path / "folder") == 0
    assert done("import", "--from", tmp_path / "folder", "--out", tmp_path / "back") == 0
    merged, back = load_settled(run.path, "cpu")[0], load(tmp_path / "back", "cpu")[0]
    assert torch.equal(merged(IDS), back(IDS)), "what leaves has the adapter in its weights"
    assert done("export", "--model", base.path, "--to", tmp_path / "no", "--format", "peft") == 2
    assert "no adapter: take --format hf or gguf" in capsys.readouterr().err

    def said(*flags: object) -> str:
        capsys.readouterr()
        assert done("generate", "--prompt", "How many, 3?", "--max-new-tokens", 8, "--device", "cpu", *flags) == 0
        return capsys.readouterr().out

    tuned = said("--model", run.path)
    assert tuned != said("--model", base.path)
    assert said("--model", base.path, "--adapter", run.path) == tuned
    assert said("--model", base.path, "--adapter", tmp_path / "peft") == tuned
    assert said("--model", base.path, "--adapter", run.path, "--quantize", "int8")
    assert done("generate", "--prompt", "x", "--model", runs / "pretrain", "--adapter", tmp_path / "peft") == 2
    assert "beside other weights" in capsys.readouterr().err
