from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.data.batch import Batch
from instructgpt.data.packing import PackedStream, batches_of, collate
from instructgpt.data.tokens import Tokens


def document(prompt: int, answer: int, first_id: int = 1) -> Tokens:
    """Consecutive ids, so that every token can be told from all others; the last `answer` are targets."""
    ids = np.arange(first_id, first_id + prompt + answer, dtype=np.int32)
    return Tokens(ids, np.arange(len(ids)) >= prompt)


def documents_of(lengths: list[tuple[int, int]]) -> list[Tokens]:
    starts = np.cumsum([1, *(sum(pair) for pair in lengths)])
    return [document(prompt, answer, int(start)) for (prompt, answer), start in zip(lengths, starts)]


def unpack(batch: Batch) -> list[Tokens]:
    """The documents of a batch, put together again from inputs and targets."""
    found = []
    for row in range(len(batch.ids)):
        for number in range(int(batch.documents[row].max()) + 1):
            of_document = batch.documents[row] == number
            ids = torch.cat([batch.ids[row, of_document], batch.targets[row, of_document][-1:]])
            assert torch.equal(ids[1:], batch.targets[row, of_document])
            assert batch.positions[row, of_document].tolist() == list(range(len(ids) - 1))
            found.append(Tokens(ids.numpy(), np.r_[False, batch.is_target[row, of_document].numpy()]))
    return found


def as_pairs(documents: list[Tokens]) -> list[tuple[list[int], list[bool]]]:
    return sorted((document.ids.tolist(), document.is_target.tolist()) for document in documents)


lengths = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 8)), min_size=1, max_size=40)


@given(lengths, st.integers(19, 60), st.integers(1, 5), st.integers(1, 20))
def test_one_pass_holds_every_document_once_and_nothing_else(lengths, context, rows, pool):
    documents = documents_of(lengths)
    batches = list(batches_of(documents, context, rows, pool))
    assert all(batch.ids.shape == (rows, context) for batch in batches)
    assert as_pairs([found for batch in batches for found in unpack(batch)]) == as_pairs(documents)
    assert sum(batch.tokens for batch in batches) == sum(len(document) - 1 for document in documents)
    assert not any((batch.is_target & (batch.documents < 0)).any() for batch in batches)


def test_collate_lays_documents_out_by_hand():
    batch = collate([[document(2, 2, 10), document(1, 1, 20)], []], context=5)
    assert batch.ids.tolist() == [[10, 11, 12, 20, 0], [0] * 5]
    assert batch.targets.tolist() == [[11, 12, 13, 21, 0], [0] * 5]
    assert batch.is_target.tolist() == [[False, True, True, True, False], [False] * 5]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 0], [0] * 5]
    assert batch.documents.tolist() == [[0, 0, 0, 1, -1], [-1] * 5]
    assert batch.ids.dtype == batch.targets.dtype == torch.int64 and batch.is_target.dtype == torch.bool


def test_collate_refuses_a_row_that_overflows():
    with pytest.raises(ValueError, match="more than 3"):
        collate([[document(2, 3)]], context=3)


def test_a_text_longer_than_a_row_loses_its_tail():
    (batch,) = batches_of([Tokens.of_text(np.arange(10))], 4, 1)
    assert (batch.ids.tolist(), batch.targets.tolist()) == ([[0, 1, 2, 3]], [[1, 2, 3, 4]])


def test_a_row_is_opened_by_the_oldest_and_filled_by_the_longest_that_fits():
    # Inputs: 4, 3, 6, 2, 6, 2 in rows of 10.
    documents = documents_of([(4, 1), (3, 1), (6, 1), (2, 1), (6, 1), (2, 1)])
    batches = list(batches_of(documents, context=10, rows=1, pool=10))
    rows = [[int(found.ids[0]) for found in unpack(batch)] for batch in batches]
    first_ids = [int(each.ids[0]) for each in documents]
    assert rows == [[first_ids[i] for i in row] for row in ([0, 2], [1, 4], [3, 5])]


class Endless:
    """Documents of varied lengths whose ids tell their index."""

    def __getitem__(self, index: int) -> Tokens:
        length = 2 + index * 7919 % 30
        return Tokens(np.full(length, index, dtype=np.int32), np.arange(length) > 0)


def indices_of(batch: Batch) -> list[int]:
    return [int(found.ids[0]) for found in unpack(batch)]


@given(st.integers(1, 4), st.integers(1, 40), st.integers(0, 12), st.integers(1, 6))
def test_a_resumed_stream_continues_identically(rows, pool, before, after):
    stream = PackedStream(Endless(), 40, rows, pool)
    for _ in range(before):
        next(stream)
    state = json.loads(json.dumps(stream.state()))
    expected = [next(stream) for _ in range(after)]
    resumed = PackedStream(Endless(), 40, rows, pool)
    resumed.restore(state)
    for batch in expected:
        again = next(resumed)
        assert all(torch.equal(getattr(batch, name), getattr(again, name)) for name in vars(batch))
    assert resumed.state() == stream.state()


def test_a_stream_uses_every_index_once_and_leaves_none_waiting():
    stream = PackedStream(Endless(), context=40, rows=2, pool=16)
    used = [index for _ in range(200) for index in indices_of(next(stream))]
    waiting = stream.state()["pool"]
    assert sorted(used + waiting) == list(range(stream.state()["next_index"]))
    assert len(waiting) < 16
    row_of = {index: place for place, index in enumerate(used)}
    assert all(place - index < 16 * 20 for index, place in row_of.items())


def test_rows_are_nearly_full():
    batches = [next(stream) for stream in [PackedStream(Endless(), 128, 8)] for _ in range(20)]
    assert sum(batch.tokens for batch in batches) / sum(batch.ids.numel() for batch in batches) > 0.97


def test_a_document_without_a_pair_of_tokens_is_refused():
    with pytest.raises(ValueError, match="document 0 has 1 tokens"):
        next(batches_of([Tokens.of_text(np.array([1]))], 8, 1))


@pytest.mark.parametrize("wrong", [dict(context=0, rows=1), dict(context=1, rows=0), dict(context=1, rows=1, pool=0)])
def test_sizes_must_be_positive(wrong):
    with pytest.raises(ValueError, match="positive"):
        PackedStream(Endless(), **wrong)
