"""The reward stage: learns, leaves a run that loads, refuses what it cannot use."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from instructgpt.stages import main
from instructgpt.training.checkpoint import load, load_reward_model
from instructgpt.training.metrics import read_metrics

SMALL = "--prompts 4 --val-pairs 12 --device cpu --dtype float32 --eval-every 1".split()


def pairs(path: Path, count: int = 60) -> Path:
    """The better answer says yes, at either side of the prompt's number."""
    lines = [
        json.dumps({"instruction": f"say {i % 13} yes {i}", "chosen": "yes", "rejected": "red birds"})
        for i in range(count)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def trained(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    data, out = pairs(folder / "d.jsonl"), folder / "o"
    arguments = ["reward", "--data", data, "--init", runs / "pretrain", "--out", out, *SMALL, "--max-steps", 40]
    assert main([str(word) for word in [*arguments, "--learning-rate", 0.01]]) == 0
    return out


def test_it_learns_what_is_better_and_starts_at_ln_2(trained: Path) -> None:
    records = [r for r in read_metrics(trained / "metrics.jsonl") if "val_loss" in r]
    assert records[-1]["val_loss"] < 0.3 < records[0]["val_loss"] < 0.75
    found = json.loads((trained / "eval.json").read_text())
    assert found["pairs"]["accuracy"] == 1.0 and found["pairs"]["n"] == 6, "one in ten of 60 is held out"
    assert list(found["pairs"]["kinds"]) == ["d.jsonl"] and found["peak_memory"] > 10_000_000
    pytest.importorskip("matplotlib")
    assert (trained / "calibration.png").exists()


def test_a_run_directory_says_what_it_holds(trained: Path, runs: Path, refused: Callable[..., str]) -> None:
    assert json.loads((trained / "config.json").read_text())["head"] == "reward"
    assert json.loads((runs / "pretrain" / "config.json").read_text())["head"] == "language"
    message = refused("sft", "--data", "world", "--init", trained, "--out", trained.parent / "x")
    assert "holds a reward model, which scores answers and writes none" in message
    with pytest.raises(Exception, match="not a reward model; name a reward run"):
        load_reward_model(runs / "pretrain", "cpu")


def test_it_scores_and_held_out_chosen_answers_have_zero_on_average(trained: Path) -> None:
    model, tokenizer = load_reward_model(trained, "cpu")

    def ids(answer: str, i: int) -> list[int]:
        question = tokenizer.encode(f"say {i % 13} yes {i}")
        return [
            tokenizer.bos, tokenizer.control_ids["user"], *question, tokenizer.end, tokenizer.control_ids["assistant"],
            *tokenizer.encode(answer), tokenizer.end,
        ]  # fmt: skip

    held_out = range(9, 60, 10)
    chosen = model.score([ids("yes", i) for i in held_out])
    assert chosen.mean().item() == pytest.approx(0, abs=1e-4)
    assert (model.score([ids("red birds", i) for i in held_out]) < chosen).all()
    # However many are scored at once, and however long the others are.
    alone = torch.cat([model.score([ids("yes", i)]) for i in held_out])
    mixed = model.score([sequence for i in held_out for sequence in (ids("yes", i), ids("red birds " * 5, i))])[::2]
    torch.testing.assert_close(alone, chosen, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mixed, chosen, atol=1e-5, rtol=1e-4)


def test_rankings_and_the_world_together(runs: Path, tmp_path: Path) -> None:
    data = tmp_path / "r.jsonl"
    record = {"instruction": "how many?", "ranking": ["red birds", "red", "cat"]}
    data.write_text("\n".join(json.dumps({**record, "instruction": f"how many, {i}?"}) for i in range(20)))
    flags = ["--data", data, "world", "--init", runs / "pretrain", "--out", tmp_path / "o", *SMALL, "--max-steps", 2]
    assert main(["reward", *map(str, flags)]) == 0
    found = json.loads((tmp_path / "o" / "eval.json").read_text())["pairs"]
    assert found["kinds"]["r.jsonl"]["n"] == 2 * 3 and found["kinds"]["rambling"]["n"] == 2
    assert found["n"] == 6 + 12


BAD = {
    "chosen equals rejected": {"instruction": "a", "chosen": "b", "rejected": "b"},
    "different prompts in the two halves": {
        "chosen": "\n\nHuman: a\n\nAssistant: b",
        "rejected": "\n\nHuman: c\n\nAssistant: d",
    },
    "empty answer": {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant:"},
}


@pytest.mark.parametrize("reason", BAD)
def test_unusable_pairs_are_counted_or_refused(
    reason: str, runs: Path, tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = pairs(tmp_path / "d.jsonl", 20)
    flags = ["--init", runs / "pretrain", "--out", tmp_path / "o", *SMALL, "--max-steps", 1]
    with data.open("a") as file:
        file.write(json.dumps(BAD[reason]) + "\n")
    assert f"d.jsonl:21: {reason}" in refused("reward", "--data", data, *flags, "--strict")
    assert main(["reward", *map(str, ["--data", data, *flags])]) == 0
    assert f"dropped 1: {reason}" in capsys.readouterr().out
    (tmp_path / "only.jsonl").write_text(json.dumps(BAD[reason]) + "\n")
    assert f"only.jsonl:1: {reason}" in refused("reward", "--data", tmp_path / "only.jsonl", *flags)


def test_turns_of_one_role_in_a_row_are_joined_and_noted(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "d.jsonl"
    double = {
        "chosen": "\n\nHuman: a\n\nHuman: q{}\n\nAssistant: b",
        "rejected": "\n\nHuman: a\n\nHuman: q{}\n\nAssistant: c",
    }
    lines = [json.dumps({k: v.format(i) for k, v in double.items()}) for i in range(10)]
    data.write_text("\n".join(lines))
    flags = ["--data", data, "--init", runs / "pretrain", "--out", tmp_path / "o", *SMALL, "--max-steps", 1]
    assert main(["reward", *map(str, flags)]) == 0
    assert "noted 20: turns of one role in a row, joined" in capsys.readouterr().out


def test_one_prompt_cannot_be_split(runs: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"instruction": "a", "chosen": "b", "rejected": "c"}) + "\n")
    flags = ["--data", data, "--init", runs / "pretrain", "--out", tmp_path / "o", *SMALL, "--max-steps", 1]
    assert "--val-share 0" in refused("reward", *flags)
    assert main(["reward", *map(str, flags), "--val-share", "0"]) == 0


def test_pairs_of_one_prompt_stay_on_one_side(runs: Path, tmp_path: Path) -> None:
    from instructgpt.stages.comparisons import comparisons
    from instructgpt.stages.reward import RewardConfig

    data = tmp_path / "d.jsonl"
    data.write_text(
        "\n".join(json.dumps({"instruction": f"q {i // 4}", "chosen": f"yes {i}", "rejected": "no"}) for i in range(80))
    )
    _, tokenizer = load(runs / "pretrain", "cpu")
    source, held_out = comparisons(RewardConfig(data=(str(data),)), tokenizer, 64)

    def prompt(item) -> bytes:
        return item.answers[0].ids[~item.answers[0].is_target].tobytes()

    trained = {prompt(source[i]) for i in range(72)}
    assert len(held_out.rankings) == 8 and not trained & {prompt(item) for item in held_out.rankings}


def test_a_ranking_of_ranked_answers_needs_a_model(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "--init is missing" in refused("reward", "--data", "world", "--out", tmp_path / "o")
    assert "--data is missing" in refused("reward", "--init", "x", "--out", tmp_path / "o")
