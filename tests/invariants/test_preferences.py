"""What must hold of rewards and DPO from tokens to gradients, whatever else is in the batch."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from instructgpt.config import ModelConfig
from instructgpt.data.comparisons import ComparisonBatch, Ranked, collate_comparisons
from instructgpt.data.tokens import Tokens
from instructgpt.model.backend import naive
from instructgpt.model.heads import RewardModel
from instructgpt.model.transformer import Transformer
from instructgpt.objectives.lm import Loss
from instructgpt.objectives.preference import answer_logprobs, dpo_loss, reward_loss

VOCAB, CONTEXT = 13, 24


def transformer(position: str = "rope") -> Transformer:
    torch.manual_seed(0)
    shape = ModelConfig(vocab_size=VOCAB, context=CONTEXT, layers=2, width=16, heads=2, position=position)  # pyright: ignore[reportArgumentType]
    return Transformer(shape, naive()).double()


def reward_model(position: str = "rope") -> RewardModel:
    model = RewardModel(transformer(position)).double()
    nn.init.normal_(model.head.weight)
    return model


def rankings(lengths: list[list[int]], seed: int = 0) -> list[Ranked]:
    generator = np.random.default_rng(seed)
    return [
        Ranked(
            tuple(Tokens(generator.integers(0, VOCAB, n).astype(np.int32), np.arange(n) >= min(2, n - 1)) for n in each)
        )
        for each in lengths
    ]


def rewards(model: RewardModel, batch: ComparisonBatch) -> Tensor:
    hidden = model.transformer.hidden(batch.rows.ids, batch.rows.positions, batch.rows.documents)
    return model.head(hidden.flatten(0, 1)[batch.last]).squeeze(-1)  # as the model does, but in float64


groups = st.lists(st.lists(st.integers(2, CONTEXT), min_size=2, max_size=4), min_size=1, max_size=4)


@pytest.mark.parametrize("position", ["rope", "learned"])
@given(lengths=groups)
def test_a_reward_is_that_of_the_answer_alone(position: str, lengths: list[list[int]]) -> None:
    """Packed into rows, padded on the right, or by itself: the reward is read at the answer's own last token."""
    model, items = reward_model(position), rankings(lengths)
    texts = [tokens.ids for item in items for tokens in item.answers]
    packed = model(
        *(lambda b: (b.rows.ids, b.last, b.rows.positions, b.rows.documents))(collate_comparisons(items, 24))
    )
    padded = model.score([ids.tolist() for ids in texts])
    for ids, one, two in zip(texts, packed, padded):
        hidden = model.transformer.hidden(torch.from_numpy(ids).long()[None])
        alone = model.head(hidden[0, -1]).item()
        assert one.item() == pytest.approx(alone, rel=1e-5, abs=1e-6)
        assert two.item() == pytest.approx(alone, rel=1e-5, abs=1e-6)


@given(lengths=groups)
def test_padding_on_the_left_changes_no_reward(lengths: list[list[int]]) -> None:
    """Where padding stands in front, as in generation, it is a document of its own that nobody sees."""
    model, items = reward_model(), rankings(lengths)
    texts = [tokens.ids for item in items for tokens in item.answers]
    ids, documents = (
        torch.zeros(len(texts), CONTEXT, dtype=torch.int64),
        torch.zeros(len(texts), CONTEXT, dtype=torch.int64),
    )
    for row, text in enumerate(texts):
        ids[row, CONTEXT - len(text) :] = torch.from_numpy(text)
        documents[row, CONTEXT - len(text) :] = 1
    last = torch.arange(len(texts)) * CONTEXT + CONTEXT - 1
    left = model(ids, last, documents=documents)
    torch.testing.assert_close(left, model.score([text.tolist() for text in texts]), rtol=1e-5, atol=1e-6)


@given(lengths=groups, beta=st.floats(0.01, 5))
def test_dpo_starts_at_ln_2(lengths: list[list[int]], beta: float) -> None:
    policy = transformer()
    reference = copy.deepcopy(policy)
    batch = collate_comparisons(rankings(lengths), CONTEXT)
    loss = dpo_loss(answer_logprobs(policy, batch), answer_logprobs(reference, batch), batch.pairs, beta)
    assert loss.total.item() / loss.weight.item() == pytest.approx(math.log(2), abs=1e-6)
    assert loss.metrics["margin"].item() == 0 == loss.metrics["chosen_shift"].item()


def test_a_reward_model_starts_at_ln_2() -> None:
    batch = collate_comparisons(rankings([[5, 9], [4, 7, 3]]), CONTEXT)
    loss = reward_loss(RewardModel(transformer().float())(batch.rows.ids, batch.last), batch.pairs)
    assert loss.total.item() / loss.weight.item() == pytest.approx(math.log(2))


def policy_loss(model: nn.Module, reference: Transformer, batch: ComparisonBatch) -> Loss:
    if isinstance(model, RewardModel):
        return reward_loss(rewards(model, batch), batch.pairs)
    assert isinstance(model, Transformer)
    with torch.no_grad():
        kept = answer_logprobs(reference, batch)
    return dpo_loss(answer_logprobs(model, batch), kept, batch.pairs, 0.5)


@pytest.mark.parametrize("make", [transformer, reward_model])
def test_gradients_are_those_of_finite_differences(make) -> None:
    """Through the whole model, in float64: a few entries of every parameter."""
    model, reference = make(), transformer()
    batch = collate_comparisons(rankings([[6, 9], [4, 7, 3]], seed=1), CONTEXT)
    before = [p.clone() for p in reference.parameters()]
    policy_loss(model, reference, batch).total.backward()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name == "head.bias":  # the loss does not depend on it
            assert parameter.grad is not None and parameter.grad.abs().max() < 1e-12
            continue
        flat = parameter.data.view(-1)
        for place in torch.randint(0, flat.numel(), (2,), generator=generator).tolist():
            value, values = flat[place].item(), []
            for step in (1e-5, -1e-5):
                flat[place] = value + step
                with torch.no_grad():
                    values.append(policy_loss(model, reference, batch).total.item())
            flat[place] = value
            assert parameter.grad is not None
            found = parameter.grad.view(-1)[place].item()
            assert found == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-7), name
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, reference.parameters()))


@given(lengths=st.lists(st.lists(st.integers(2, CONTEXT), min_size=2, max_size=3), min_size=2, max_size=4))
def test_micro_batches_add_up_to_the_large_batch(lengths: list[list[int]]) -> None:
    items, reference = rankings(lengths), transformer()
    large, small = reward_model(), reward_model()
    whole = policy_loss(large, reference, collate_comparisons(items, CONTEXT))
    whole.total.backward()
    parts = [policy_loss(small, reference, collate_comparisons([item], CONTEXT)) for item in items]
    for part in parts:
        part.total.backward()
    assert sum(part.weight.item() for part in parts) == pytest.approx(whole.weight.item(), rel=1e-6)
    for (name, one), two in zip(large.named_parameters(), small.parameters()):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-7, atol=1e-9, msg=name)
