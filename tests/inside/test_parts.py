from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from instructgpt.generation.engine import generate, prompt_ids
from instructgpt.inside.parts import (
    Part,
    every_head,
    head,
    left_out,
    neuron,
    taken_from,
    whole,
    without_direction,
    without_each,
)
from instructgpt.inside.trace import blocks, record, targets_after
from instructgpt.model.transformer import Transformer
from instructgpt.text.tokenizer import Tokenizer
from tests.inside.conftest import SMALL, random_model, text
from tests.random_models import talkative


def bias_of(linear: torch.nn.Linear) -> Tensor | float:
    return 0.0 if linear.bias is None else linear.bias


def test_without_all_heads_a_layer_is_its_mlp_alone(model: Transformer, ids: Tensor):
    before = record(model, ids)
    with left_out(model, [whole(model.config, 1, "attention")]):
        without = record(model, ids)
    block, x = blocks(model)[1], before.stream[1]
    x = x + bias_of(block.attention.output)
    torch.testing.assert_close(without.stream[2], x + block.mlp(block.mlp_norm(x)))
    with left_out(model, [head(model.config, 1, number) for number in range(model.config.heads)]):
        assert torch.equal(record(model, ids).stream[2], without.stream[2])


def test_without_its_mlp_a_layer_is_its_attention_alone(model: Transformer, ids: Tensor):
    before = record(model, ids)
    with left_out(model, [whole(model.config, 0, "mlp")]):
        after = record(model, ids).stream[1]
    block = blocks(model)[0]
    found = before.stream[0] + block.attention.output(before.heads[0]) + bias_of(block.mlp.down)
    torch.testing.assert_close(after, found)


def test_one_head_less_is_its_rows_of_the_output_matrix_less(model: Transformer, ids: Tensor):
    before, D = record(model, ids), model.config.head_dim
    with left_out(model, [head(model.config, 1, 2)]):
        block = blocks(model)[1]
        seen = block.attention.output(before.heads[1][None])[0]
    weight = block.attention.output.weight[:, 2 * D : 3 * D]
    torch.testing.assert_close(
        block.attention.output(before.heads[1]) - seen, before.heads[1][:, 2 * D : 3 * D] @ weight.T
    )


def test_each_part_alone_is_what_leaving_it_out_gives(model: Transformer, ids: Tensor):
    """Rows of a batch that begins at the part's layer, and a whole forward of a single row, must be one."""
    config, places = model.config, torch.tensor([4, 6, 7])
    parts = [*every_head(config), *(whole(config, layer, "mlp") for layer in (0, 1)), neuron(1, 3), neuron(1, 5)]
    found = without_each(model, record(model, ids), parts, places)
    assert [each.part for each in found] == parts
    for each in found:
        with left_out(model, [each.part]):
            logits = model(ids[None])[:, places]
        torch.testing.assert_close(each.logprobs, targets_after(logits, ids[places + 1])[0])
        assert torch.equal(each.greedy, logits[0].argmax(-1))


def test_many_parts_are_done_in_batches(monkeypatch: pytest.MonkeyPatch, ids: Tensor):
    model, places = random_model(SMALL), torch.tensor([3])
    parts, trace = [neuron(1, number) for number in range(20)], record(model, ids)
    expected = without_each(model, trace, parts, places)
    monkeypatch.setattr("instructgpt.inside.parts._TOKENS_AT_ONCE", 30)
    for one, other in zip(without_each(model, trace, parts, places), expected, strict=True):
        torch.testing.assert_close(one.logprobs, other.logprobs)


def test_a_part_taken_from_the_same_text_changes_nothing(model: Transformer, ids: Tensor):
    trace = record(model, ids)
    with taken_from(model, [head(model.config, 0, 1), whole(model.config, 1, "mlp")], trace):
        torch.testing.assert_close(record(model, ids).stream[-1], trace.stream[-1])


def test_all_parts_taken_from_another_text_are_what_was_added_there(model: Transformer, ids: Tensor):
    other = record(model, text(seed=1))
    config = model.config
    parts = [whole(config, layer, kind) for layer in range(config.layers) for kind in ("attention", "mlp")]
    with taken_from(model, parts, other):
        found = record(model, ids).stream
    torch.testing.assert_close(found[-1] - found[0], other.stream[-1] - other.stream[0])


def test_nothing_is_said_along_a_direction(model: Transformer, ids: Tensor):
    direction = torch.randn(model.config.width, dtype=torch.float64)
    before = record(model, ids).stream[1]
    with without_direction(model, 0, direction):
        after = record(model, ids).stream[1]
    torch.testing.assert_close(after @ direction, torch.zeros(len(ids), dtype=torch.float64))
    across = before - after  # what was taken away has no other direction
    torch.testing.assert_close(across.norm(dim=-1), (before @ direction / direction.norm()).abs())


def test_the_model_is_itself_again_afterwards_even_after_an_error(ids: Tensor):
    model = random_model(SMALL)
    before = model(ids[None])
    with pytest.raises(RuntimeError, match="stop"), left_out(model, [head(model.config, 0, 0), neuron(1, 1)]):
        assert not torch.equal(model(ids[None]), before)
        raise RuntimeError("stop")
    assert torch.equal(model(ids[None]), before)


def by_hand(model: Transformer, tokenizer: Tokenizer, prompt: str, most: int) -> str:
    """The greedy answer, a forward of the whole text for each token."""
    ids, length = (begun := prompt_ids(prompt, tokenizer)), len(begun)
    while len(ids) < length + most and ids[-1] != tokenizer.end:
        ids = [*ids, int(model(torch.tensor([ids]))[0, -1].argmax())]
    return tokenizer.decode(ids[length:]).strip()


@pytest.mark.parametrize("part", [head(SMALL.resolved(), 0, 1), whole(SMALL.resolved(), 1, "mlp")])
def test_generation_does_without_it_too(part: Part, tokenizer: Tokenizer):
    """The engine has a cache, and takes several tokens at a time; float32, as the commands do."""
    model = talkative(
        replace(SMALL, vocab_size=tokenizer.vocab_size, context=64, tie_embeddings=False), dtype=torch.float32
    )
    prompt = "the cat saw"
    (usual,) = generate(model, tokenizer, [prompt], max_new_tokens=12)
    with left_out(model, [part]):
        found = generate(model, tokenizer, [prompt], max_new_tokens=12)[0].strip()
        greedy = by_hand(model, tokenizer, prompt, 12)
    assert found == greedy != usual
    assert generate(model, tokenizer, [prompt], max_new_tokens=12) == [usual]
