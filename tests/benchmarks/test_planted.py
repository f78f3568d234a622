"""Each mistake spoils what it says, nothing else, and is gone when its context is left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import planted
from benchmarks.planted import LAYOUTS, MISTAKES
from instructgpt.config import ModelConfig
from instructgpt.data import comparisons, packing
from instructgpt.data.batch import Batch
from instructgpt.data.comparisons import Ranked
from instructgpt.data.tokens import Tokens
from instructgpt.evaluation import instructions
from instructgpt.model.heads import RewardModel
from instructgpt.model.transformer import Transformer
from instructgpt.objectives import policy
from instructgpt.objectives.lm import Loss
from instructgpt.objectives.preference import answer_logprobs
from instructgpt.stages import dpo, grpo, ppo, sft
from instructgpt.training import rollouts

END = 2
SHAPE = ModelConfig(vocab_size=32, context=12, layers=1, width=16, heads=2, dropout=0.0)
# A row of two conversations, prompt and answer with its end, and one of one: 4 + 3 and 5 inputs.
ROWS = [
    [Tokens(np.array([5, 6, 7, 8, END]), np.arange(5) >= 3), Tokens(np.array([9, 10, 11, END]), np.arange(4) >= 1)],
    [Tokens(np.array([12, 13, 14, 15, 16, END]), np.arange(6) >= 4)],
]
PLACES = [(packing, "collate"), (sft, "next_token_loss"), (instructions, "fit_prompt"), (instructions, "completions"),
          (comparisons, "_packed"), (comparisons, "_pairs"), (comparisons, "collate_comparisons"),
          (RewardModel, "forward"), (dpo, "answer_logprobs"), (dpo, "frozen_copy"), (dpo, "build_model"),
          (ppo, "examine"), (ppo, "generalized_advantages"), (ppo, "whiten"), (rollouts, "SamplingConfig"),
          (policy, "rewards_at_end"), (policy, "kl_k1"), (policy, "kl_k3"), (grpo, "group_advantages")]  # fmt: skip


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """plant(name): the mistake, in its layout, for the rest of the test. It is taken back before what a test patches
    besides, whatever the order of its arguments, or that would be put back for good."""
    with ExitStack() as stack:

        def enter(name: str) -> None:
            stack.enter_context(LAYOUTS[MISTAKES[name].layout].plant())
            stack.enter_context(MISTAKES[name].plant())

        yield enter


def batch() -> Batch:
    return packing.collate(ROWS, 8)


def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(SHAPE).eval()


def targets(batch: Batch) -> list[list[int]]:
    """The tokens that each row is to predict."""
    return [row[chosen].tolist() for row, chosen in zip(batch.targets, batch.is_target)]


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_replaces_something_and_leaves_everything_as_it_was(name: str):
    mistake = MISTAKES[name]
    before = [getattr(owner, attribute) for owner, attribute in PLACES]
    with LAYOUTS[mistake.layout].plant(), mistake.plant():
        inside = [getattr(owner, attribute) for owner, attribute in PLACES]
    assert [getattr(owner, attribute) for owner, attribute in PLACES] == before
    assert (inside != before) != bool(mistake.rates or mistake.teacher_forced)


def test_enough_mistakes_of_every_road():
    roads = [mistake.road for mistake in MISTAKES.values()]
    assert len(roads) >= 10 and set(roads) == {"sft", "use", "reward", "dpo", "ppo", "grpo"}
    assert all(mistake.layout in LAYOUTS for mistake in MISTAKES.values())


@pytest.mark.parametrize(
    ("name", "learnt"),
    [
        ("labels include the prompt", [[6, 7, 8, END, 10, 11, END], [13, 14, 15, 16, END]]),
        ("labels include padding", [[8, END, 0, 0, 0, 0], [16, END, 0, 0, 0]]),
        ("source and target not in one sequence", [[8, END, 10, 11, END], [16, END]]),
        ("no end token is learnt", [[8, 10, 11], [16]]),
        ("labels shifted twice", [[8, END, 11, END], [16, END]]),
        ("packed documents see each other", [[8, END, 10, 11, END], [16, END]]),
        ("positions do not restart", [[8, END, 10, 11, END], [16, END]]),
    ],
)
def test_what_is_learnt(name: str, learnt: list[list[int]], plant: Any):
    assert targets(batch()) == [[8, END, 10, 11, END], [16, END]]
    plant(name)
    assert targets(batch()) == learnt


def test_source_and_target_apart_start_together(plant: Any):
    plant("source and target not in one sequence")
    assert batch().ids[0].tolist() == [5, 6, 7, 0, 9, 0, 0, 0] and batch().ids[1].tolist() == [
        12,
        13,
        14,
        15,
        0,
        0,
        0,
        0,
    ]
    assert batch().is_target[0].nonzero().flatten().tolist() == [0, 1, 4, 5, 6]


def test_labels_shifted_twice_are_two_tokens_ahead(plant: Any):
    plant("labels shifted twice")
    found = batch()
    ahead = [(int(found.ids[0, t]), int(found.targets[0, t])) for t in found.is_target[0].nonzero().flatten()]
    assert ahead == [(6, 8), (7, END), (9, 11), (10, END)]


@pytest.mark.parametrize(
    ("name", "one"), [("packed documents see each other", True), ("positions do not restart", False)]
)
def test_rows_without_borders(name: str, one: bool, plant: Any):
    plant(name)
    assert batch().positions.tolist() == [list(range(8))] * 2
    assert batch().documents[0].tolist() == ([0] * 7 + [-1] if one else [0] * 4 + [1] * 3 + [-1])


def test_means_of_micro_batches_weigh_alike(plant: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sft, "next_token_loss", lambda *_: Loss(torch.tensor(6.0), torch.tensor(3.0)))
    plant("loss averaged over micro-batches' means")
    found = sft.next_token_loss(model(), batch())
    assert (float(found.total), float(found.weight)) == (2.0, 1.0)


def ranked() -> list[Ranked]:
    prompt = [5, 6, 7]
    answers = [[8, END], [9, 10, 11, END]]
    return [Ranked(tuple(Tokens(np.array(prompt + answer), np.arange(3 + len(answer)) >= 3) for answer in answers))]


def test_a_reward_is_read_where_it_should_not_be(plant: Any):
    right = comparisons.collate_comparisons(ranked(), 12)
    assert right.rows.ids.flatten()[right.last].tolist() == [END, END]
    plant("reward read before the answer")
    wrong = comparisons.collate_comparisons(ranked(), 12)
    assert wrong.rows.ids.flatten()[wrong.last].tolist() == [7, 7]


def test_a_reward_at_the_padding_is_that_of_the_rows_last_slot(plant: Any):
    plant("reward read at the padding")
    found, scorer = comparisons.collate_comparisons(ranked(), 12), RewardModel(model())
    torch.nn.init.normal_(scorer.head.weight)
    assert len(found.rows.ids) == 2  # one answer a row
    last = scorer.head(scorer.transformer.hidden(found.rows.ids)[:, -1]).squeeze(-1)
    assert torch.equal(scorer(found.rows.ids, found.last, found.rows.positions, found.rows.documents), last)


def test_the_wrong_one_wins(plant: Any):
    plant("DPO with chosen and rejected swapped")
    pairs = comparisons.collate_comparisons(ranked(), 12).pairs
    assert (pairs.better.tolist(), pairs.worse.tolist()) == ([1], [0])


def test_a_sum_over_the_prompt_adds_the_same_to_both_answers(plant: Any):
    found, here = comparisons.collate_comparisons(ranked(), 12), model()
    right = answer_logprobs(here, found)
    plant("DPO summed over the prompt too")
    added = dpo.answer_logprobs(here, found) - right
    assert added[0] < -1 and torch.allclose(added[0], added[1], atol=1e-5)


def test_without_a_reference_its_log_probabilities_are_zero(plant: Any):
    found, here = comparisons.collate_comparisons(ranked(), 12), model()
    right = dpo.answer_logprobs(here, found)
    plant("DPO without a reference")
    nobody: Any = dpo.frozen_copy(None, None)  # type: ignore[arg-type]
    assert dpo.answer_logprobs(nobody, found).tolist() == [0, 0]
    assert torch.equal(dpo.answer_logprobs(here, found), right)


def test_dropout_stays_on(plant: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dpo, "build_model", lambda *_: model())
    plant("DPO with dropout on")
    found: Transformer = dpo.build_model(None, None, None)  # type: ignore[arg-type]
    found.eval()
    assert found.training and found.dropout.p == 0.1


def masks() -> tuple[Tensor, Tensor]:
    """Scores of two answers, and their tokens: two and three."""
    return torch.tensor([1.0, 2.0]), torch.tensor([[True, True, False], [True, True, True]])


def test_rewards_and_advantages_of_policies(plant: Any):
    scores, is_answer = masks()
    for name in MISTAKES:
        if name.startswith("PPO"):
            plant(name)
    assert policy.rewards_at_end(scores, is_answer).tolist() == [[1, 0, 0], [2, 0, 0]]
    found = ppo.generalized_advantages(policy.rewards_at_end(scores, is_answer), torch.zeros(2, 3), is_answer)
    assert found.advantages.tolist() == [[0, 1, 0], [0, 2, 0]] and found.returns.tolist() == [[1, 0, 0], [2, 0, 0]]
    assert ppo.whiten(found.advantages, is_answer).tolist() == found.advantages.tolist()
    assert policy.kl_k1(torch.tensor(3.0), torch.tensor(1.0)) == -2
    assert rollouts.SamplingConfig(max_new_tokens=3, temperature=1.0).temperature == 0.7


def test_groups_across_prompts_and_no_baseline(plant: Any):
    scores = torch.tensor([0.0, 1, 0, 1])  # two prompts, two answers each
    assert grpo.group_advantages(scores, 2, False).tolist() == [-0.5, 0.5, -0.5, 0.5]
    plant("GRPO with groups mixed between prompts")
    assert grpo.group_advantages(scores, 2, False).tolist() == [0, 0, 0, 0]
    plant("GRPO without a baseline")
    assert grpo.group_advantages(scores, 2, False).tolist() == [0, 1, 0, 1]
    assert policy.kl_k3(torch.tensor(0.0), torch.tensor(1.0)) > 0
    plant("GRPO with the KL's sign wrong")
    assert policy.kl_k3(torch.tensor(0.0), torch.tensor(1.0)) < 0


def test_old_log_probabilities_are_rounded(plant: Any, monkeypatch: pytest.MonkeyPatch):
    here, is_answer = model(), torch.ones(2, 2, dtype=torch.bool)
    rows = packing.collate([[Tokens(np.array([5, 6, 7, END]), np.arange(4) >= 2)]] * 2, 8)
    right = rollouts.by_answer(rollouts.answer_tokens(here, rows).logprobs.detach(), is_answer)
    seen = rollouts.Examined(rows, is_answer, right, right, torch.zeros(4, 16))
    monkeypatch.setattr(ppo, "examine", lambda *_: seen)
    plant("PPO with the sampler's bfloat16 log-probabilities")
    with torch.no_grad():
        found = ppo.examine(here, here, [], 8)
    assert 0 < (found.logprobs - right).abs().max() < 0.1 and found.reference is right


def test_use(plant: Any):
    class Words:
        bos = 1

        def encode(self, text: str) -> list[int]:
            return [len(word) for word in text.split()]

    tokenizer: Any = Words()
    plant("asked without the chat template")
    asked = instructions.fit_prompt([{"role": "user", "content": "to be or not"}], tokenizer, 4)
    assert asked.ids == [1, 2, 2, 2]
    completions = planted.padding_seen(lambda model, tokenizer, prompts, **_: prompts)
    padded = completions(None, SimpleNamespace(pad=0), [[5, 6, 7], [8], [9] * 4], batch_size=2)
    assert padded == [[5, 6, 7], [0, 0, 8], [9] * 4]


def test_planted_names_are_what_the_product_calls():
    """A name that the product no longer has would be patched in vain; `patch.object` refuses it, and so does this."""
    assert planted.swapped(packing, "collate", lambda right: right)
    with pytest.raises(AttributeError):
        planted.swapped(packing, "collated", lambda right: right)()
