from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from instructgpt.data.batch import Batch
from instructgpt.data.packing import batches_of
from instructgpt.data.tokens import Tokens
from instructgpt.errors import UserError
from instructgpt.evaluation import loss as loss_module
from instructgpt.evaluation.loss import LossReport, evaluate_loss
from instructgpt.model.transformer import Transformer
from instructgpt.text.chat import render_conversation
from instructgpt.text.tokenizer import Tokenizer


def conversations(tokenizer: Tokenizer) -> list[Tokens]:
    pairs = [("the cat", "猫"), ("number 7 saw", "49 red birds"), ("old house near the red birds", "the old house 鸟")]
    return [
        Tokens.of(render_conversation([{"role": "user", "content": q}, {"role": "assistant", "content": a}], tokenizer))
        for q, a in pairs
    ]


def batches(tokenizer: Tokenizer, rows: int = 2) -> Iterator[Batch]:
    return batches_of(conversations(tokenizer), 64, rows)


def test_the_loss_is_the_mean_over_answer_tokens_document_by_document(model: Transformer, tokenizer: Tokenizer):
    total, hits, count = 0.0, 0, 0
    for tokens in conversations(tokenizer):
        ids = torch.from_numpy(tokens.ids.astype(np.int64))
        logprobs = model(ids[None, :-1]).log_softmax(-1)[0]
        for t in range(1, len(ids)):
            if tokens.is_target[t]:
                total -= logprobs[t - 1, ids[t]].item()
                hits += int(logprobs[t - 1].argmax() == ids[t])
                count += 1
    answers = ("猫", "49 red birds", "the old house 鸟")
    report = evaluate_loss(model, tokenizer, batches(tokenizer))
    assert report.loss == pytest.approx(total / count, rel=1e-6)
    assert report.token_accuracy == pytest.approx(hits / count)
    assert report.tokens == count
    assert report.bytes == sum(len(answer.encode()) for answer in answers)  # the end tokens stand for none
    assert report.perplexity == pytest.approx(math.exp(total / count))
    assert report.bits_per_byte == pytest.approx(total / math.log(2) / report.bytes)


def test_the_split_into_batches_and_pieces_does_not_matter(model, tokenizer, monkeypatch):
    expected = evaluate_loss(model, tokenizer, batches(tokenizer))
    monkeypatch.setattr(loss_module, "_LOGITS_AT_ONCE", 3 * tokenizer.vocab_size)
    for rows in (1, 2, 5):
        report = evaluate_loss(model, tokenizer, batches(tokenizer, rows))
        assert report.loss == pytest.approx(expected.loss, rel=1e-6)
        assert (report.tokens, report.bytes, report.token_accuracy) == (
            expected.tokens, expected.bytes, expected.token_accuracy,
        )  # fmt: skip


def test_a_model_that_knows_nothing_pays_the_logarithm_of_its_vocabulary(model, tokenizer):
    with torch.no_grad():
        model.embedding.weight.zero_()  # tied: every logit is 0
    report = evaluate_loss(model, tokenizer, batches(tokenizer))
    assert report.perplexity == pytest.approx(tokenizer.vocab_size)
    assert report.bits_per_byte == pytest.approx(report.tokens * math.log2(tokenizer.vocab_size) / report.bytes)


def test_the_model_is_left_in_training_mode(model, tokenizer):
    evaluate_loss(model.train(), tokenizer, batches(tokenizer))
    assert model.training and model.blocks[0].training


def test_nothing_to_predict_is_an_error_not_a_nan(model, tokenizer):
    prompt = Tokens(np.arange(8, 20, dtype=np.int32), np.zeros(12, dtype=np.bool_))
    for nothing in ([], batches_of([prompt], 64, 1)):
        with pytest.raises(UserError, match="nothing to evaluate"):
            evaluate_loss(model, tokenizer, nothing)


def test_json_and_extremes():
    report = LossReport(loss=800.0, token_accuracy=0.0, tokens=10, bytes=0)
    assert report.perplexity == report.bits_per_byte == math.inf
    assert LossReport(math.log(2), 0.5, 16, 8).to_json() == pytest.approx(
        {"loss": math.log(2), "token_accuracy": 0.5, "tokens": 16, "bytes": 8, "perplexity": 2.0, "bits_per_byte": 2.0}
    )
