from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import batching
from benchmarks.batching import BatchingConfig, Job, engine_for, filled_in, jobs, rollouts, run, static, throughput
from benchmarks.steps import shape_named
from benchmarks.untrained import random_model
from instructgpt.config import ModelConfig
from instructgpt.errors import UserError
from instructgpt.flags import run_main
from instructgpt.generation.engine import Engine
from instructgpt.model.transformer import Transformer

QUICK = filled_in(BatchingConfig(device="cpu", quick=True, json=""))


def test_requests_are_of_unequal_length_and_fit():
    made = jobs(filled_in(BatchingConfig(device="cpu", shape="12m", requests=200)))
    assert len(made) == 200 and len({len(job.ids) for job in made}) > 50 and len({job.new_tokens for job in made}) > 50
    assert all(26 <= len(job.ids) <= 256 and 26 <= job.new_tokens <= 256 for job in made)
    assert made == jobs(filled_in(BatchingConfig(device="cpu", shape="12m", requests=200)))
    with pytest.raises(UserError, match="need 600 tokens"):
        filled_in(BatchingConfig(device="cpu", shape="12m", most=300))
    with pytest.raises(UserError, match="--parts speed is unknown"):
        filled_in(BatchingConfig(parts=("speed",)))


def test_a_watched_run_gives_each_request_what_it_asked_for():
    model, asked = random_model(shape_named("minute"), torch.device("cpu"), 0), jobs(QUICK)
    seen = run(engine_for(model, asked, 2), asked)
    assert [len(tokens) for tokens in seen.tokens] == [job.new_tokens for job in asked]
    assert len(seen.between) == sum(job.new_tokens - 1 for job in asked) and min(seen.first) > 0
    assert all(0 <= share < 1 for share in seen.waste) and seen.waste


def test_a_static_batch_is_padded_and_ends_with_its_longest(monkeypatch: pytest.MonkeyPatch):
    asked: list[list[tuple[int, int]]] = []

    def add(self: Engine, request) -> int:
        asked[-1].append((len(request.ids), request.sampling.max_new_tokens))
        return 0

    monkeypatch.setattr(Engine, "add", add)
    monkeypatch.setattr(batching, "engine_for", lambda *args: asked.append([]) or engine_for(*args))
    model = random_model(shape_named("minute"), torch.device("cpu"), 0)
    static(model, [Job([1] * 3, 5), Job([1] * 7, 2), Job([1] * 4, 6)], rows=2)
    assert asked == [[(7, 5), (7, 5)], [(4, 6)]]


def test_a_peer_that_has_no_such_model_is_left_out(capsys: pytest.CaptureFixture[str]):
    model = Transformer(
        ModelConfig(vocab_size=shape_named("minute").vocab_size, context=64, layers=1, heads=2, width=16)
    )
    found = throughput(QUICK, model.eval())
    assert set(found["results"]) == {"continuous", "static"}
    assert "transformers: left out, this model has another form than GPT-2's" in capsys.readouterr().out


def test_rollouts_of_two_trees_are_compared(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert rollouts(QUICK) is None
    trees: list[str] = []

    def rollout(tree: Path, _: BatchingConfig) -> dict:
        trees.append("now" if tree == batching.ROOT else "before")
        seconds = [2.0, 1.0] if trees[-1] == "now" else [4.0, 3.0]
        return {"ppo": {"seconds": seconds, "tokens": 9, "answers": ["a", "b" if trees[-1] == "now" else "c"]}}

    class Archive:
        returncode, stdout = 0, b""

    monkeypatch.setattr(batching, "_rollout", rollout)
    monkeypatch.setattr(batching.tarfile, "open", lambda **_: __import__("contextlib").nullcontext(_Tar()))
    monkeypatch.setattr(batching.subprocess, "run", lambda *_, **__: Archive)
    found = rollouts(filled_in(BatchingConfig(device="cpu", quick=True, init="run", before="abc", rounds=1)))
    assert trees == ["now", "before"]
    assert found == {
        "ppo": {"tokens": 9, "seconds": [1.0], "before": [3.0], "times_before": 3.0, "equal_answers": "1 of 2"}
    }


class _Tar:
    def extractall(self, *_: object, **__: object) -> None: ...


def test_a_commit_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]):
    config = BatchingConfig(device="cpu", quick=True, parts=("rollouts",), init="run", before="no-such-commit", json="")
    assert run_main(lambda: batching.measure(config)) == 2
    assert "--before no-such-commit: " in capsys.readouterr().err


@pytest.mark.slow
def test_a_rollout_is_timed_in_the_tree_that_is_imported(tmp_path: Path):
    from tests.commands.test_serve import make_run

    script = [sys.executable, "benchmarks/rollout_time.py", str(make_run(tmp_path / "run")), "1", "0.05"]
    found = json.loads(subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert {len(each["seconds"]) for each in found.values()} == {1} and found["grpo"]["tokens"] > 0
