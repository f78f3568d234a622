from __future__ import annotations

import pytest
import torch

from instructgpt.config import ModelConfig
from instructgpt.errors import UserError
from instructgpt.generation.engine import generate, prompt_ids
from instructgpt.inside.parts import left_out
from instructgpt.inside.survey import MOST_TOKENS, survey
from instructgpt.model.transformer import Transformer
from instructgpt.text.tokenizer import Tokenizer
from tests.random_models import talkative

PROMPT, PAIR = "the cat number 3 saw birds", "the cat number 7 saw birds"


@pytest.fixture(scope="module")
def speaker(tokenizer: Tokenizer) -> Transformer:
    shape = ModelConfig(tokenizer.vocab_size, context=96, layers=2, width=32, heads=4, kv_heads=2, qk_window=2)
    return talkative(shape, ends={}, dtype=torch.float32)


@pytest.fixture(scope="module")
def found(speaker: Transformer, tokenizer: Tokenizer):
    return survey(speaker, tokenizer, PROMPT, PAIR, answer_tokens=5)


def test_the_answer_is_the_one_that_is_generated(found, speaker: Transformer, tokenizer: Tokenizer):
    assert found.answer == generate(speaker, tokenizer, [PROMPT], max_new_tokens=5)[0]
    ids = found.trace.ids.tolist()
    assert ids[: found.prompt] == prompt_ids(PROMPT, tokenizer) and len(ids) == found.prompt + 5
    logits = speaker(torch.tensor([ids]))[0, found.prompt - 1 : -1].log_softmax(-1)
    torch.testing.assert_close(found.logprobs, logits.max(-1).values)


def test_answers_without_parts_are_those_that_are_generated_without_them(found, speaker, tokenizer: Tokenizer):
    parts = [*found.heads, *found.attentions, *found.mlps, *found.neurons]
    assert len(found.heads) == 8 and len(found.mlps) == 2 and len(found.neurons) >= 8
    told = [each for each in parts if each.answer is not None]  # too many change for all of them
    assert len(told) > 20
    for each in told:
        with left_out(speaker, [each.without.part]):
            answer = generate(speaker, tokenizer, [PROMPT], max_new_tokens=5)[0]
        assert each.answer == answer
    assert len({each.answer for each in told}) > 2


def test_the_pair_parts_where_the_answers_do(found, speaker: Transformer, tokenizer: Tokenizer):
    pair = found.pair
    assert pair.answer == generate(speaker, tokenizer, [PAIR], max_new_tokens=5)[0] != found.answer
    assert pair.own_token != pair.other_token and len(pair.directions) == 2
    shared = len(pair.ids) - found.prompt
    assert found.trace.ids.tolist()[found.prompt + shared] == pair.own_token
    differ = next(n for n, (a, b) in enumerate(zip(pair.ids, prompt_ids(PROMPT, tokenizer))) if a != b)
    assert pair.stream.shape == (2, len(pair.ids)) and not pair.stream[:, :differ].any()


def test_only_so_many_answers_are_generated_anew(speaker, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("instructgpt.inside.survey._MOST_ANSWERS", 1)
    few = survey(speaker, tokenizer, PROMPT, answer_tokens=5)
    answers = [each.answer for each in few.heads]
    assert None in answers and len({*answers} - {None, few.answer}) == 1


@pytest.mark.parametrize(
    ("prompt", "pair", "complaint"),
    [
        ("", None, "--prompt is empty"),
        (" \n", None, "--prompt is empty"),
        ("cat " * 200, None, "the model's context holds 96 with the answer: shorten it"),
        (PROMPT, "the cat", r"--pair has \d+ tokens and --prompt \d+: patching needs as many of each"),
        (PROMPT, "\t", "--pair is empty"),
        (PROMPT, PROMPT, "--pair is the same as --prompt"),
    ],
)
def test_what_cannot_be_looked_at(prompt, pair, complaint: str, speaker: Transformer, tokenizer: Tokenizer):
    with pytest.raises(UserError, match=complaint):
        survey(speaker, tokenizer, prompt, pair, answer_tokens=2)


def test_a_pair_needs_another_answer(speaker: Transformer, tokenizer: Tokenizer):
    same = talkative(speaker.config, dtype=torch.float32)
    with torch.no_grad():  # attention that says nothing: each token is answered alike
        for block in same.blocks:
            block.attention.output.weight.zero_()  # pyright: ignore
    with pytest.raises(UserError, match="the same answer"):
        survey(same, tokenizer, PROMPT, PAIR, answer_tokens=2)


def test_a_long_text_is_more_than_can_be_shown(tokenizer: Tokenizer):
    long = talkative(ModelConfig(tokenizer.vocab_size, context=4096, layers=1, width=16, heads=2), dtype=torch.float32)
    with pytest.raises(UserError, match=f"look shows at most {MOST_TOKENS} with the answer"):
        survey(long, tokenizer, "cat " * 300)
