"""What must hold of reinforcement learning whatever the model, the prompts and the batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.config import ModelConfig
from instructgpt.data.queries import Query
from instructgpt.flags import run_main
from instructgpt.generation.engine import Completion, generate_ids
from instructgpt.generation.sampling import SamplingConfig
from instructgpt.model.transformer import Transformer
from instructgpt.objectives.policy import generalized_advantages, rewards_at_end, rewards_with_kl
from instructgpt.stages import grpo, main, ppo
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.checkpoint import load_tensors
from instructgpt.training.metrics import read_metrics
from instructgpt.training.rollouts import (
    Answered,
    answer_mask,
    answer_tokens,
    by_answer,
    frozen_copy,
    pack,
    sample_answers,
)
from tests.random_models import talkative

CONTEXT = 40


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    """float64: what is compared is equal but for rounding. It ends its answers now and then."""
    config = ModelConfig(tokenizer.vocab_size, context=CONTEXT, layers=2, width=32, heads=4, tie_embeddings=False)
    return talkative(config, seed=1, ends={tokenizer.end: 2})


prompts_of_ids = st.lists(st.lists(st.integers(7, 339), min_size=1, max_size=20), min_size=1, max_size=5)


def queries(prompts: list[list[int]]) -> list[Query]:
    return [Query([{"role": "user", "content": "x"}], ids, "") for ids in prompts]


@given(prompts=prompts_of_ids, n=st.integers(1, 3), row_length=st.integers(CONTEXT, 100), seed=st.integers(0, 99))
def test_the_reward_is_on_the_very_token_that_ends_the_answer(model, tokenizer, prompts, n, row_length, seed) -> None:
    answered = sample_answers(model, tokenizer, queries(prompts), n, max_new_tokens=8, seed=seed)
    batch, is_answer = pack(answered, row_length), answer_mask(answered)
    scores = torch.arange(1.0, 1 + len(answered))
    rewards = rewards_at_end(scores, is_answer)
    table = by_answer(batch.targets[batch.is_target], is_answer)  # (A, L) the answers' tokens
    for (_, answer), row, rewarded, score in zip(answered, table, rewards, scores):
        length = len(answer.ids)
        assert row[:length].tolist() == answer.ids
        assert rewarded.nonzero()[:, 0].tolist() == [length - 1] and rewarded[length - 1] == score
        if answer.finish == "end":
            assert row[length - 1] in (tokenizer.end, tokenizer.eos)


@given(prompts=prompts_of_ids, seed=st.integers(0, 99))
def test_log_probabilities_are_those_of_each_answer_alone(model, tokenizer, prompts, seed) -> None:
    answered = sample_answers(model, tokenizer, queries(prompts), 2, max_new_tokens=8, seed=seed)
    with torch.no_grad():
        together = answer_tokens(model, pack(answered, CONTEXT)).logprobs
        alone = torch.cat([answer_tokens(model, pack([each], CONTEXT)).logprobs for each in answered])
        for each, logprobs in zip(answered, together.split([len(a.answer.ids) for a in answered])):
            ids = torch.tensor([[*each.query.ids, *each.answer.ids]])
            plain = model(ids[:, :-1])[0, len(each.query.ids) - 1 :].log_softmax(-1)  # (answer, V)
            torch.testing.assert_close(logprobs, plain.gather(1, ids[0, len(each.query.ids) :, None])[:, 0])
    torch.testing.assert_close(together, alone)


@given(prompts=prompts_of_ids, seed=st.integers(0, 99))
def test_answers_are_plain_samples_at_temperature_one(model, tokenizer, prompts, seed) -> None:
    answered = sample_answers(model, tokenizer, queries(prompts), 2, max_new_tokens=8, seed=seed)
    config = SamplingConfig(max_new_tokens=8, temperature=1.0)
    expected = [
        c for i, p in enumerate(prompts) for c in generate_ids(model, tokenizer, [p], config, 2, [seed + 2 * i])
    ]
    assert [each.answer for each in answered] == expected


def test_advantages_are_zero_off_the_answer(model, tokenizer) -> None:
    answered = sample_answers(model, tokenizer, queries([[8, 9], [20] * 9, [30]]), 3, max_new_tokens=9, seed=4)
    is_answer = answer_mask(answered)
    assert not is_answer.all(), "answers of unequal length"
    noise = torch.randn(3, *is_answer.shape)
    rewards = rewards_with_kl(torch.ones(len(answered)), noise[0], noise[1], is_answer, 0.1)
    advantages, returns = generalized_advantages(rewards, noise[2], is_answer)
    assert (rewards[~is_answer] == 0).all() and (advantages[~is_answer] == 0).all() and (returns[~is_answer] == 0).all()
    # What stands in the padding does not matter.
    again = generalized_advantages(rewards, noise[2] + 100 * ~is_answer, is_answer)
    torch.testing.assert_close(again.advantages, advantages)


def test_a_frozen_copy_shares_what_is_not_trained_and_copies_the_rest(tokenizer) -> None:
    model = Transformer(ModelConfig(tokenizer.vocab_size, context=8, layers=1, width=32, heads=4))
    model.embedding.requires_grad_(False)
    copy = frozen_copy(model)
    assert copy.embedding.weight is model.embedding.weight
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    before = {name: parameter.clone() for name, parameter in copy.named_parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in trained:
                parameter += 1
    assert all(torch.equal(before[name], parameter) for name, parameter in copy.named_parameters())


# ---- whole runs of the stages


@dataclass
class Watched:
    """What a stage's actors were, kept for the test to look at."""

    actors: Any = None
    before: dict[str, torch.Tensor] | None = None


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer and an untrained model, with dropout: which must be off in everything that is measured here."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "t.txt").write_text("".join(f"the cat number {i} sees {i % 7} red birds\n" for i in range(2000)))
    lines = (json.dumps({"instruction": f"cat {i}?", "output": f"{i}"}) + "\n" for i in range(30))
    (folder / "prompts.jsonl").write_text("".join(lines))
    (folder / "rewards.py").write_text("def shorter(prompts, answers):\n    return [-len(a) / 10 for a in answers]\n")
    text = ("--text", folder / "t.txt")
    assert run("tokenizer", *text, "--vocab-size", 300, "--out", folder / "tokenizer") == 0
    shape = (
        "--context 64 --layers 2 --width 32 --heads 2 --rows 2 --max-steps 2 --val-rows 4 --dropout 0.2 --device cpu"
    )
    assert run("pretrain", *text, "--tokenizer", folder / "tokenizer", "--out", folder / "model", *shape.split()) == 0
    return folder


def run(*argv: object) -> int:
    return run_main(lambda: main([str(word) for word in argv]))


def policy_run(stage: str, base: Path, out: Path, *more: object) -> int:
    answers = {"ppo": "--answers 1", "grpo": "--answers 4"}[stage]
    settings = f"{answers} --prompts 8 --minibatches 2 --epochs 2 --max-new-tokens 8 --val-examples 4 --device cpu"
    source = ("--data", base / "prompts.jsonl", "--init", base / "model", "--out", out)
    reward = ("--reward-function", f"{base / 'rewards.py'}:shorter", "--save-every", 4, "--log-every", 1)
    return run(stage, *source, *reward, *settings.split(), "--learning-rate", 1e-3, *more)


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_first_ratio_is_exactly_one_and_the_first_kl_zero(
    stage: str, dtype: str, base: Path, tmp_path: Path
) -> None:
    """And so is the first of every later rollout: its old log-probabilities are not stale."""
    assert policy_run(stage, base, tmp_path / "o", "--max-steps", 9, "--dtype", dtype) == 0
    steps = [record for record in read_metrics(tmp_path / "o" / "metrics.jsonl") if "loss" in record]
    for record in (steps[0], steps[4], steps[8]):
        assert (record["ratio"], record["clip_fraction"], record["kl_to_old"]) == (1.0, 0.0, 0.0)
    assert steps[0]["kl"] == 0.0 and steps[4]["kl"] != 0.0
    assert steps[1]["ratio"] != 1.0 and steps[3]["kl_to_old"] > 0


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_frozen_models_do_not_change_by_a_bit(
    stage: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched()
    module = {"ppo": ppo, "grpo": grpo}[stage]
    start: Callable[..., Any] = module.start

    def watch(*arguments: Any) -> Any:
        watched.actors = start(*arguments)
        watched.before = {name: tensor.clone() for name, tensor in watched.actors.reference.state_dict().items()}
        return watched.actors

    monkeypatch.setattr(module, "start", watch)
    assert policy_run(stage, base, tmp_path / "o", "--max-steps", 8) == 0
    assert watched.before
    after = watched.actors.reference.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in watched.before.items())
    assert all(parameter.grad is None for parameter in watched.actors.reference.parameters())
    assert not torch.equal(watched.actors.policy.embedding.weight, watched.before["embedding.weight"])


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_a_resumed_run_equals_the_undisturbed_one_at_rollout_boundaries(stage: str, base: Path, tmp_path: Path) -> None:
    more = ("--dtype", "float32", "--schedule", "constant")
    if stage == "ppo":
        more += ("--kl-target", 0.1, "--ptx", base / "t.txt", "--ptx-rows", 1)
    assert policy_run(stage, base, tmp_path / "whole", "--max-steps", 12, *more) == 0
    assert policy_run(stage, base, tmp_path / "halves", "--max-steps", 8, *more) == 0
    assert policy_run(stage, base, tmp_path / "halves", "--max-steps", 12, *more, "--resume") == 0
    whole, _ = load_tensors(tmp_path / "whole" / "model.safetensors")
    halves, _ = load_tensors(tmp_path / "halves" / "model.safetensors")
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    records = [
        {k: v for k, v in record.items() if "second" not in k}
        for folder in ("whole", "halves")
        for record in read_metrics(tmp_path / folder / "metrics.jsonl")
        if "loss" in record and record["step"] > 8
    ]
    assert len(records) == 8 and records[:4] == records[4:]


def test_answers_that_never_end_are_told_apart_and_penalised(tokenizer) -> None:
    from instructgpt.stages.policy import Actors, PolicyStageConfig

    ended, cut = Completion([9, tokenizer.end], "a", "end"), Completion([9, 9], "aa", "length")
    answered = [Answered(query, answer) for query, answer in zip(queries([[8], [8]]), (ended, cut))]
    assert [each.ended for each in answered] == [True, False]
    actors = Actors(*[None] * 3, lambda queries, answers: [0.5] * len(answers), *[None] * 3)  # pyright: ignore
    config = PolicyStageConfig(unfinished_penalty=2.0)
    assert actors.score(config, answered).tolist() == [0.5, -1.5]
    assert actors.score(replace(config, unfinished_penalty=0.0), answered).tolist() == [0.5, 0.5]
