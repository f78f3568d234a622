"""PPO as a user runs it: what it leaves behind, that it learns, and every wrong input in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from instructgpt.flags import run_main
from instructgpt.stages import main
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.checkpoint import RunDirectory, load, load_tensors
from instructgpt.training.metrics import read_metrics

Refused = Callable[..., str]
SMALL = "--prompts 8 --answers 1 --minibatches 2 --epochs 2 --max-new-tokens 6 --val-examples 8 --device cpu".split()
SMALL += "--dtype float32 --warmup-steps 1 --log-every 1 --learning-rate 1e-3".split()


def stage(*argv: object) -> int:
    return run_main(lambda: main([str(word) for word in argv]))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A file of prompts that fit the small context, and answers nobody looks at."""
    file = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"instruction": f"cat {i}?", "output": f"{i}"}) for i in range(30)]
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture
def reward_file(tmp_path: Path) -> Path:
    file = tmp_path / "rewards.py"
    file.write_text(
        "def shorter(prompts, answers):\n    return [-len(a) / 10 for a in answers]\n"
        "def right(prompts, answers, references):\n    return [float(a == r) for a, r in zip(answers, references)]\n"
        "def raises(prompts, answers):\n"
        "    return [1 / (not prompt[-1]['content'].endswith('7?')) for prompt in prompts]\n"
        "def nan(prompts, answers):\n    return [float('nan')] * len(answers)\n"
        "def few(prompts, answers):\n    return [0.0]\n"
        "def none(prompts, answers):\n    return None\n"
        "value = 3\n"
    )
    return file


def arguments(runs: Path, prompts: Path, out: Path, reward: object, *more: object) -> list[object]:
    source = ("--data", prompts, "--init", runs / "pretrain", "--out", out, "--reward-function", reward)
    return ["ppo", *source, *SMALL, "--max-steps", 8, *more]


def test_a_run_leaves_a_model_and_tells_every_metric_of_every_step(
    runs: Path, prompts: Path, reward_file: Path, tmp_path: Path
) -> None:
    assert stage(*arguments(runs, prompts, tmp_path / "o", f"{reward_file}:shorter")) == 0
    model, _ = load(tmp_path / "o", "cpu")
    before, _ = load(runs / "pretrain", "cpu")
    assert not torch.equal(model.embedding.weight, before.embedding.weight)
    assert {"value.linear.weight"}.isdisjoint(load_tensors(tmp_path / "o" / "model.safetensors")[0])
    steps = [record for record in read_metrics(tmp_path / "o" / "metrics.jsonl") if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 9))
    names = "reward kl entropy clip_fraction ratio explained_variance answer_length ended gradient_norm kl_coefficient"
    for record in steps:
        assert set(names.split()) <= record.keys()
        assert "true_reward" not in record, "nobody knows it of prompts in a file"
    report = json.loads((tmp_path / "o" / "eval.json").read_text())
    assert {"val_reward", "val_kl", "val_ended"} <= report.keys()


def test_it_raises_a_reward_that_is_easy_to_raise(runs: Path, prompts: Path, reward_file: Path, tmp_path: Path) -> None:
    """An untrained model fills all six tokens; a penalty for that is answered by ending sooner, or saying less."""
    more = ("--max-steps", 160, "--prompts", 32, "--kl-coefficient", 0.0, "--learning-rate", 3e-3, "--epochs", 2)
    assert stage(*arguments(runs, prompts, tmp_path / "o", f"{reward_file}:shorter", *more)) == 0
    rewards = [r["reward"] for r in read_metrics(tmp_path / "o" / "metrics.jsonl") if "loss" in r]
    assert sum(rewards[-8:]) / 8 > sum(rewards[:8]) / 8 + 0.5, (rewards[:8], rewards[-8:])


def test_the_world_gives_a_true_reward_and_text_is_mixed_in(world_runs: Path, tmp_path: Path) -> None:
    source = ("--data", "world", "--reward", "world", "--init", world_runs / "pretrain", "--out", tmp_path / "o")
    more = ("--ptx", "world", "--ptx-rows", 1, "--kl-target", 0.5, "--max-steps", 8)
    assert stage("ppo", *source, *SMALL, *more) == 0
    steps = [record for record in read_metrics(tmp_path / "o" / "metrics.jsonl") if "loss" in record]
    assert all(0 <= record["true_reward"] <= 1 and record["pretraining_loss"] > 0 for record in steps)
    assert steps[0]["kl_coefficient"] != steps[-1]["kl_coefficient"], "driven to the target"
    last = [r for r in read_metrics(tmp_path / "o" / "metrics.jsonl") if "val_true_reward" in r]
    assert last and last[-1]["val_loss"] == -last[-1]["val_reward"]


# ---- wrong input


@pytest.fixture
def refuse(refused: Refused, runs: Path, prompts: Path, reward_file: Path, tmp_path: Path) -> Callable[..., str]:
    def run(reward: str, *more: object) -> str:
        return refused(*arguments(runs, prompts, tmp_path / "o", f"{reward_file}:{reward}", *more))

    return run


def test_a_reward_function_that_raises_is_told_with_the_prompt(refuse: Callable[..., str]) -> None:
    message = refuse("raises", "--prompts", 32)
    assert "rewards.py:raises raised ZeroDivisionError" in message and "7?'" in message


def test_a_reward_function_that_gives_nan_is_told_with_the_prompt(refuse: Callable[..., str]) -> None:
    assert "gave nan, which is no finite number" in (message := refuse("nan")) and "'cat " in message


def test_a_reward_function_that_gives_too_few_values(refuse: Callable[..., str]) -> None:
    assert "gave 1 values for 8 answers" in (message := refuse("few")) and "'cat " in message


def test_a_reward_function_that_gives_no_list(refuse: Callable[..., str]) -> None:
    assert "gave a NoneType; it must give a list of numbers" in refuse("none")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("missing", "has no function missing"), ("value", "has no function value"), ("", "write package.module:function")],
)
def test_a_reward_function_that_is_none(refuse: Callable[..., str], name: str, complaint: str) -> None:
    assert complaint in refuse(name)


@pytest.mark.parametrize(
    ("function", "complaint"),
    [("no.py:f", "there is no file no.py"), ("nowhere.at_all:f", "raised ModuleNotFoundError"), ("f", "write package")],
)
def test_a_reward_function_nowhere_to_be_found(
    refused: Refused, runs: Path, prompts: Path, tmp_path: Path, function: str, complaint: str
) -> None:
    assert complaint in refused(*arguments(runs, prompts, tmp_path / "o", function))


def test_minibatches_that_do_not_divide(refuse: Callable[..., str]) -> None:
    assert "8 prompts x 1 answers = 8 do not divide into --minibatches 3; try 2" in refuse(
        "shorter", "--minibatches", 3
    )


def test_updates_that_would_mix_two_rollouts(refuse: Callable[..., str]) -> None:
    assert "--micro-batches 3 does not divide the 4 minibatches" in refuse("shorter", "--micro-batches", 3)


def test_weights_of_rewards_that_are_not_there(refuse: Callable[..., str]) -> None:
    assert "--reward-weights has 2 values for 1 rewards" in refuse("shorter", "--reward-weights", 1, 2)


def test_the_worlds_checker_for_prompts_of_a_file(refuse: Callable[..., str]) -> None:
    assert "--reward world knows only prompts of the world" in refuse("shorter", "--reward", "world")


def test_no_reward_at_all(refused: Refused, runs: Path, tmp_path: Path) -> None:
    source = ("--data", "world", "--init", runs / "pretrain", "--out", tmp_path / "o")
    assert "--reward is missing" in refused("ppo", *source)


def test_a_policy_where_a_reward_model_should_be(refuse: Callable[..., str], runs: Path) -> None:
    assert "not a reward model" in refuse("shorter", "--reward", runs / "pretrain")


def test_a_reward_model_of_another_tokenizer(
    refused: Refused, runs: Path, prompts: Path, reward_run: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in reward_run.iterdir():
        if file.is_file():
            (other / file.name).write_bytes(file.read_bytes())
    (tmp_path / "t.txt").write_text("other words here\n" * 500)
    tokenizer = Tokenizer.train((tmp_path / "t.txt").open(), 290)
    tokenizer.save(other)
    config = json.loads((other / "config.json").read_text())
    config["tokenizer"] = tokenizer.fingerprint
    (other / "config.json").write_text(json.dumps(config))
    source = ("--data", prompts, "--init", runs / "pretrain", "--out", tmp_path / "o", "--reward", other)
    assert "reads with another tokenizer" in refused("ppo", *source, *SMALL)


def test_prompts_too_long_for_the_context(refused: Refused, runs: Path, reward_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps({"instruction": "cat " * 200, "output": "x"}) + "\n")
    message = refused(*arguments(runs, file, tmp_path / "o", f"{reward_file}:shorter"))
    assert "every prompt has more than 58 tokens" in message


def test_weighted_rewards_add_up(
    runs: Path, prompts: Path, reward_file: Path, reward_run: Path, tmp_path: Path
) -> None:
    functions = ("--reward-function", f"{reward_file}:shorter", f"{reward_file}:right", "--reward", reward_run)
    source = ("--data", prompts, "--init", runs / "pretrain", "--out", tmp_path / "o", *functions)
    more = ("--reward-weights", 2, 0.5, 1, "--max-steps", 4, "--unfinished-penalty", 0)
    assert stage("ppo", *source, *SMALL, *more) == 0
    saved = RunDirectory(tmp_path / "o").read_config()["settings"]
    assert saved["reward_weights"] == [2.0, 0.5, 1.0] and saved["reward"] == [str(reward_run)]


@pytest.mark.parametrize("value", [0.1, 0.9, -3.3])
def test_one_score_for_all_teaches_nothing_and_blows_nothing_up(value: float, runs: Path, tmp_path: Path) -> None:
    """The deviation of equal floats is 1.5e-8 and not 0: divided by it, rewards become as large as 1e7."""
    (tmp_path / "f.py").write_text(f"def score(prompts, answers):\n    return [{value}] * len(answers)\n")
    data = tmp_path / "d.jsonl"
    data.write_text("".join(f'{{"instruction": "cat {i}?", "output": "red"}}\n' for i in range(20)))
    arguments = ["ppo", "--data", data, "--init", runs / "pretrain", "--out", tmp_path / "o", "--device", "cpu"]
    flags = "--prompts 8 --minibatches 2 --epochs 2 --max-steps 8 --max-new-tokens 4 --val-examples 2 --dtype float32"
    more = ["--reward-function", f"{tmp_path / 'f.py'}:score", "--unfinished-penalty", 0, "--row-length", 64]
    assert run_main(lambda: main([str(word) for word in [*arguments, *flags.split(), *more]])) == 0
    losses = [r["loss"] for r in read_metrics(tmp_path / "o" / "metrics.jsonl") if "loss" in r]
    assert losses and max(map(abs, losses)) < 10
