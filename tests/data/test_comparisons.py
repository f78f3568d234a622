"""Compared answers as batches: packed, isolated, numbered, resumable."""

from __future__ import annotations

import json
from math import comb
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instructgpt import world
from instructgpt.data.account import Account
from instructgpt.data.comparisons import (
    ComparisonStream,
    Ranked,
    Rankings,
    WorldPreferences,
    collate_comparisons,
    comparison_batches,
    fit,
    tokenized,
    tokenized_all,
)
from instructgpt.data.preferences import Ranking, read_rankings
from instructgpt.data.tokens import Tokens
from instructgpt.errors import UserError
from instructgpt.text.chat import Message, render_prompt
from instructgpt.text.tokenizer import Tokenizer

CONTEXT = 40


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([world.document(i) for i in range(100)], 700)


def ranked(*lengths: int, seed: int = 0) -> Ranked:
    generator = np.random.default_rng([seed, *lengths])
    return Ranked(
        tuple(Tokens(generator.integers(1, 99, n).astype(np.int32), np.arange(n) >= min(2, n - 1)) for n in lengths)
    )


rankings = st.lists(st.lists(st.integers(2, CONTEXT), min_size=1, max_size=5), min_size=1, max_size=6)


@given(lengths=rankings)
def test_every_answer_stands_once_whole_and_alone(lengths: list[list[int]]) -> None:
    items = [ranked(*each, seed=i) for i, each in enumerate(lengths)]
    batch = collate_comparisons(items, CONTEXT)
    answers = [tokens for item in items for tokens in item.answers]
    ids, numbers, targets = (t.flatten() for t in (batch.rows.ids, batch.answers, batch.rows.targets))
    for number, tokens in enumerate(answers):
        places = (numbers == number).nonzero().flatten()
        assert ids[places].tolist() == tokens.ids.tolist()
        assert places.tolist() == list(range(int(places[0]), int(places[0]) + len(tokens))), "in one row, in order"
        assert places[0] // CONTEXT == places[-1] // CONTEXT
        assert batch.last[number] == places[-1], "where the reward is read"
        assert batch.rows.positions.flatten()[places].tolist() == list(range(len(tokens)))
        is_target = batch.rows.is_target.flatten()[places]
        assert is_target.tolist() == [*tokens.is_target[1:], False], "the last token predicts nothing"
        assert targets[places][is_target].tolist() == tokens.ids[1:][tokens.is_target[1:]].tolist()
    assert batch.tokens == sum(map(len, answers))
    assert len(batch.rows.ids) <= len(answers)


@given(lengths=rankings)
def test_pairs_are_all_comparisons_of_a_prompt_which_weighs_one(lengths: list[list[int]]) -> None:
    batch = collate_comparisons([ranked(*each, seed=i) for i, each in enumerate(lengths)], CONTEXT)
    counts = [len(each) for each in lengths]
    assert len(batch.pairs.better) == sum(comb(count, 2) for count in counts)
    assert float(batch.pairs.weight.sum()) == pytest.approx(sum(count > 1 for count in counts), abs=1e-5)
    assert (batch.pairs.better < batch.pairs.worse).all(), "the best come first"
    prompt_of = torch.tensor([prompt for prompt, count in enumerate(counts) for _ in range(count)])
    assert torch.equal(prompt_of[batch.pairs.better], prompt_of[batch.pairs.worse])


def test_what_is_too_long_is_an_error() -> None:
    with pytest.raises(ValueError, match="more than 40 inputs"):
        collate_comparisons([ranked(CONTEXT + 1, 3)], CONTEXT)


def test_a_stream_goes_on_where_it_stood(tokenizer: Tokenizer) -> None:
    source = WorldPreferences("train", tokenizer, 200)
    stream, again = (ComparisonStream(source, 200, 5) for _ in range(2))
    next(stream)
    state = json.loads(json.dumps(stream.state()))
    expected = [next(stream).rows.ids for _ in range(2)]
    again.restore(state)
    assert all(torch.equal(next(again).rows.ids, ids) for ids in expected)


def test_rankings_give_every_item_once_an_epoch() -> None:
    items = [ranked(3, 4, seed=i) for i in range(7)]
    source = Rankings(items)
    for epoch in range(2):
        assert {id(source[7 * epoch + i]) for i in range(7)} == set(map(id, items))
    with pytest.raises(UserError, match="no comparison"):
        Rankings([])


def test_one_pass_has_every_item() -> None:
    batches = list(comparison_batches([ranked(3, 4, seed=i) for i in range(7)], CONTEXT, 3))
    assert [len(batch.pairs.better) for batch in batches] == [3, 3, 1]


def test_a_worlds_pair_is_the_prompt_with_either_answer_and_its_end(tokenizer: Tokenizer) -> None:
    pair = world.preference("train", 3)
    chosen, rejected = WorldPreferences("train", tokenizer, 400)[3].answers
    for tokens, answer in ((chosen, pair.chosen), (rejected, pair.rejected)):
        said = tokens.ids[tokens.is_target].tolist()
        assert tokenizer.decode(said[:-1]) == answer and said[-1] == tokenizer.end
    prompt = chosen.ids[~chosen.is_target]
    assert np.array_equal(prompt, rejected.ids[~rejected.is_target])
    assert prompt[-1] == tokenizer.control_ids["assistant"]


@given(question=st.integers(1, 60), answers=st.lists(st.integers(1, 60), min_size=2, max_size=2, unique=True))
def test_cutting_keeps_prompts_alike_and_answers_begun(tokenizer: Tokenizer, question: int, answers: list[int]) -> None:
    texts = ["a " * n for n in answers]
    whole = tokenized([{"role": "user", "content": "b " * question}], texts, tokenizer, 1000)
    cut = tokenized([{"role": "user", "content": "b " * question}], texts, tokenizer, CONTEXT)
    first, second = (tokens.ids[~tokens.is_target].tolist() for tokens in cut.answers)
    assert first == second and first[0] == tokenizer.bos and first[-1] == tokenizer.control_ids["assistant"]
    for before, after in zip(whole.answers, cut.answers):
        assert len(after) <= CONTEXT and after.is_target.any()
        kept = after.ids[after.is_target]
        assert kept.tolist() == before.ids[before.is_target][: len(kept)].tolist()
        if len(before) <= CONTEXT and len(whole.answers[0]) <= CONTEXT and len(whole.answers[1]) <= CONTEXT:
            assert after.ids.tolist() == before.ids.tolist()


def test_a_long_prompt_loses_its_earliest_turns_and_keeps_the_system_message(tokenizer: Tokenizer) -> None:
    turns = [("system", "Be brief."), ("user", "b " * 30), ("assistant", "a"), ("user", "cat?")]
    messages: list[Message] = [{"role": role, "content": content} for role, content in turns]
    ranked, prompt, cut_answers = fit(messages, ["yes", "no"], tokenizer, CONTEXT)
    expected = render_prompt([messages[0], messages[-1]], tokenizer)
    assert (prompt.ids, prompt.lost_turns, prompt.lost_tokens, cut_answers) == (expected, 2, 0, 0)
    assert [tokens.ids[: len(expected)].tolist() for tokens in ranked.answers] == [expected] * 2
    told = tokenized_all([Ranking(messages, ("yes", "no"))], tokenizer, CONTEXT)[1]
    assert told == "of 1 comparisons, to fit in 40 tokens: 1 lost their earliest turns"


def test_answers_that_are_equal_once_cut_are_left_out_and_counted(tokenizer: Tokenizer) -> None:
    prompt = [{"role": "user", "content": "b"}]
    long = "a " * 100
    records = [
        Ranking(prompt, (f"{long}x", f"{long}y")),  # pyright: ignore[reportArgumentType]
        Ranking(prompt, ("x", f"{long}y")),  # pyright: ignore[reportArgumentType]
        Ranking(prompt, ("x", "y")),  # pyright: ignore[reportArgumentType]
    ]
    kept, told = tokenized_all(records, tokenizer, CONTEXT)
    assert len(kept) == 2
    cost = "1 answer(s) lost their tail, 1 were left out, because what is left of their answers is equal"
    assert told == f"of 3 comparisons, to fit in 40 tokens: {cost}"
    assert tokenized_all(records, tokenizer, CONTEXT, "drop")[1].endswith("40 tokens: 2 were left out")
    assert tokenized_all(records[2:], tokenizer, CONTEXT)[1] == ""


def test_rankings_are_read_beside_pairs(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    records = [
        {"instruction": "q", "ranking": ["best", "good", {"role": "assistant", "content": "bad"}]},
        {"instruction": "q", "chosen": "good", "rejected": "bad"},
        {"instruction": "q", "ranking": ["one"]},
        {"instruction": "q", "ranking": ["same", "other", "same"]},
        {"instruction": "q", "ranking": ["a", ""]},
        {"instruction": "q", "ranking": "a"},
        {"instruction": "", "ranking": ["a", "b"]},
        {"instruction": "q", "output": "a"},
    ]
    file.write_text("\n".join(map(json.dumps, records)))
    account = Account()
    found = list(read_rankings([file], account=account))
    assert [ranking.answers for ranking in found] == [("best", "good", "bad"), ("good", "bad")]
    assert found[0].messages == [{"role": "user", "content": "q"}]
    assert account.dropped == {
        "a ranking of fewer than two answers": 1,
        "two equal answers in a ranking": 1,
        "empty answer": 1,
        "text where a list of answers should be, in 'ranking'": 1,
        "empty prompt": 1,
        "none of the known formats": 1,
    }
