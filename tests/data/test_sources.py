from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt import world
from instructgpt.data.sources import Conversations, CorpusWindows, Mixture, WorldInstructions, WorldText
from instructgpt.data.tokens import Shard, Tokens
from instructgpt.errors import UserError
from instructgpt.text.chat import render_conversation
from instructgpt.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([world.document(i) for i in range(300)], 1000)


def conversations(count: int, seed: int = 0, shuffle: bool = True) -> Conversations:
    """Documents of 2, 3, 4, 2, ... tokens; the first tells which it is."""
    items = [Tokens.of_text(np.arange(i * 10, i * 10 + 2 + i % 3)) for i in range(count)]
    return Conversations(items, seed, shuffle)


def number(tokens: Tokens) -> int:
    return int(tokens.ids[0]) // 10


@given(st.integers(1, 30), st.integers(-3, 3))
def test_every_epoch_of_conversations_is_all_of_them(count, seed):
    source = conversations(count, seed)
    epochs = [[number(source[epoch * count + i]) for i in range(count)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len(source) == count


def test_conversations_are_returned_whole():
    source = conversations(5, shuffle=False)
    assert source[3].ids.tolist() == [30, 31] and source[5 + 2].ids.tolist() == [20, 21, 22, 23]
    assert source[2].is_target.tolist() == [False, True, True, True]
    assert source[0].ids.dtype == np.int32


def test_epochs_and_seeds_have_orders_of_their_own():
    source, other = conversations(50), conversations(50, seed=1)
    orders = [tuple(number(s[first + i]) for i in range(50)) for s in (source, other) for first in (0, 50)]
    assert len(set(orders)) == 4


def test_a_source_is_pure_in_its_index():
    source = conversations(7)
    forward = [number(source[i]) for i in range(70)]
    fresh = conversations(7)
    assert [number(fresh[i]) for i in reversed(range(70))] == forward[::-1]


def test_no_conversation_is_the_users_mistake():
    with pytest.raises(UserError, match="no example"):
        Conversations([])


def shard(lengths: list[int], first_id: int = 0) -> Shard:
    """Documents of consecutive ids: the token at a place of the shard has the id `first_id` + place."""
    offsets = np.cumsum([0, *lengths])
    return Shard(np.arange(first_id, first_id + offsets[-1], dtype=np.uint16), offsets)


document_lengths = st.lists(st.integers(1, 50), min_size=1, max_size=12).filter(lambda lengths: max(lengths) > 1)


@given(document_lengths, document_lengths, st.integers(1, 20), st.booleans(), st.integers(0, 5))
def test_an_epoch_of_windows_predicts_every_token_once(lengths, more_lengths, context, shuffle, seed):
    shards = [shard(lengths), shard(more_lengths, first_id=sum(lengths))]
    source = CorpusWindows(shards, context, seed, shuffle)
    first_tokens = np.cumsum([0, *lengths, *more_lengths]).tolist()
    expected = Counter(range(first_tokens[-1])) - Counter(first_tokens)
    sizes = []
    index = 0
    for _ in range(3):
        predicted: Counter[int] = Counter()
        begin = index
        while predicted.total() < expected.total():
            window = source[index]
            assert 2 <= len(window) <= context + 1
            assert (np.diff(window.ids) == 1).all()
            assert not (set(window.ids[1:].tolist()) & set(first_tokens)), "crosses into another document"
            assert window.is_target.tolist() == [False] + [True] * (len(window) - 1)
            predicted.update(window.ids[window.is_target].tolist())
            index += 1
        assert predicted == expected
        sizes.append(index - begin)
    assert sizes[0] == len(source)


def test_training_windows_are_cut_elsewhere_each_epoch_and_validation_is_not():
    corpus = shard([1000])
    moving, fixed = CorpusWindows([corpus], 16), CorpusWindows([corpus], 16, shuffle=False)
    starts = {epoch: set() for epoch in range(2)}
    first_epoch = len(moving)
    for i in range(first_epoch):
        starts[0].add(int(moving[i].ids[0]) % 16)
        starts[1].add(int(moving[first_epoch + i].ids[0]) % 16)
    assert starts[0] != starts[1]
    assert [int(fixed[i].ids[0]) for i in range(2 * len(fixed))] == 2 * list(range(0, 999, 16))


def test_windows_come_in_a_new_order_each_epoch():
    lengths = [2] * 40  # too short to be cut, so only the order can differ
    source = CorpusWindows([shard(lengths)], 8)
    epochs = [[int(source[epoch * 40 + i].ids[0]) for i in range(40)] for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]


def test_ids_beyond_16_bits_survive():
    source = CorpusWindows([Shard(np.array([70_000, 70_001], dtype=np.uint32), np.array([0, 2]))], 8)
    assert source[0].ids.tolist() == [70_000, 70_001] and source[0].ids.dtype == np.int32


def test_a_corpus_without_text_is_the_users_mistake():
    with pytest.raises(UserError, match="no text"):
        CorpusWindows([shard([1, 1])], 8)


class Marked:
    def __init__(self, mark: int):
        self.mark = mark

    def __getitem__(self, index: int) -> Tokens:
        return Tokens.of_text(np.array([self.mark, index]))


@given(st.lists(st.integers(5, 50), min_size=1, max_size=5), st.integers(0, 3))
def test_a_mixtures_shares_are_exact_and_every_source_is_read_in_order(weights, block):
    source = Mixture([Marked(i) for i in range(len(weights))], weights, seed=1)
    drawn = [source[block * 1000 + i].ids.tolist() for i in range(1000)]
    for mark, weight in enumerate(weights):
        indices = [index for m, index in drawn if m == mark]
        exact = 1000 * weight / sum(weights)
        assert abs(len(indices) - exact) < 1
        # Each block takes up where the one before it ended.
        assert indices == list(range(block * len(indices), (block + 1) * len(indices)))


def test_blocks_and_seeds_of_a_mixture_have_orders_of_their_own():
    def order(seed: int, block: int) -> tuple[int, ...]:
        source = Mixture([Marked(0), Marked(1)], [1, 1], seed)
        return tuple(int(source[block * 1000 + i].ids[0]) for i in range(1000))

    assert len({order(seed, block) for seed in range(2) for block in range(2)}) == 4


def test_a_small_share_is_drawn_too():
    source = Mixture([Marked(0), Marked(1)], [0.9997, 0.0003])
    marks = Counter(int(source[i].ids[0]) for i in range(33_334))
    assert marks[1] == 10


@pytest.mark.parametrize(
    "weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")], [1.0, 1e-9]]
)
def test_weights_that_are_no_shares_are_the_users_mistake(weights):
    with pytest.raises(UserError):
        Mixture([Marked(0), Marked(1)], weights)


def test_world_instructions_train_on_the_answer_alone(tokenizer):
    source = WorldInstructions("train", tokenizer, seed=3)
    example = world.example("train", 5, 3)
    assert source[5].ids.tolist() == render_conversation(example.conversation, tokenizer).ids
    answer = source[5].ids[source[5].is_target]
    assert answer[-1] == tokenizer.end
    assert tokenizer.decode(answer.tolist()).endswith(example.answer)


@pytest.mark.parametrize("held", [(), ("user hello",)])
def test_the_worlds_sources_can_be_handed_to_another_process(tokenizer, held):
    for source in (WorldText(tokenizer, 3), WorldInstructions("train", tokenizer, 3, context=64, held=held)):
        copy = pickle.loads(pickle.dumps(source))
        assert np.array_equal(copy[17].ids, source[17].ids)


def test_world_text_is_a_whole_document(tokenizer):
    tokens = WorldText(tokenizer, seed=3)[11]
    assert (tokens.ids[0], tokens.ids[-1]) == (tokenizer.bos, tokenizer.eos)
    assert tokenizer.decode(tokens.ids.tolist()) == world.document(11, 3)
    assert tokens.is_target.tolist() == [False] + [True] * (len(tokens) - 1)


def test_the_share_of_flawed_demonstrations_is_what_was_asked_for(tokenizer: Tokenizer) -> None:
    clean, flawed = WorldInstructions("train", tokenizer), WorldInstructions("train", tokenizer, 0, 0.3)
    is_other = [clean[i].ids.tolist() != flawed[i].ids.tolist() for i in range(600)]
    assert 0.24 < sum(is_other) / 600 < 0.36
    assert all(flawed[i].ids.tolist() == flawed[i].ids.tolist() for i in range(5))
