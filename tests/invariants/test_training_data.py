"""What a model is trained on: the invariants that hold from a conversation or a text to the packed batch."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instructgpt import world
from instructgpt.data.batch import Batch
from instructgpt.data.corpus import Corpus, write_corpus
from instructgpt.data.packing import PackedStream, batches_of
from instructgpt.data.prefetch import Prefetched
from instructgpt.data.sources import Conversations, CorpusWindows, ExampleSource, Mixture, WorldInstructions, WorldText
from instructgpt.data.tokens import Tokens
from instructgpt.text.chat import Message, render_conversation
from instructgpt.text.tokenizer import Tokenizer

CONTEXT = 96


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([world.document(i) for i in range(300)], 1000)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text.txt").write_text("\n<|end|>\n".join(world.document(i) for i in range(400)), encoding="utf-8")
    write_corpus([folder / "text.txt"], tokenizer, folder, separator="<|end|>")
    return folder


def all_sources(tokenizer: Tokenizer, corpus: Path) -> dict[str, ExampleSource]:
    instructions = WorldInstructions("train", tokenizer)
    sources: dict[str, ExampleSource] = {
        "instructions": instructions,
        "text": WorldText(tokenizer),
        "conversations": Conversations([instructions[i] for i in range(50)]),
        "windows": CorpusWindows([Corpus.open(corpus, "train")], 24),
    }
    return {**sources, "mixture": Mixture(list(sources.values()), [1, 2, 3, 4])}


turns = st.lists(
    st.tuples(st.text("the cat 猫 1<|end|>\n", max_size=30), st.text("un chat </s>", max_size=30)),
    min_size=1,
    max_size=4,
)


@given(turns, st.booleans())
def test_prompts_are_never_trained_on_and_answers_with_their_end_always_are(tokenizer, turns, has_system):
    messages: list[Message] = [{"role": "system", "content": "Be brief."}] if has_system else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    (batch,) = batches_of([Tokens.of(render_conversation(messages, tokenizer))], 600, 1)
    trained = batch.targets[batch.is_target].tolist()
    assert trained == [i for _, answer in turns for i in [*tokenizer.encode(answer), tokenizer.end]]
    # Each trained stretch begins right behind the token that gives the assistant the word.
    begins = batch.is_target & ~torch.cat([torch.zeros(1, 1, dtype=torch.bool), batch.is_target[:, :-1]], dim=1)
    assert set(batch.ids[begins].tolist()) == {tokenizer.control_ids["assistant"]}


def test_a_text_is_trained_on_from_its_first_token_to_its_end(tokenizer):
    source = WorldText(tokenizer)
    (batch,) = batches_of([source[0]], 600, 1)
    trained = batch.targets[batch.is_target].tolist()
    assert trained == [*tokenizer.encode(world.document(0)), tokenizer.eos]


@pytest.mark.parametrize("epochs", [1, 3])
def test_every_token_of_every_example_appears_exactly_once_an_epoch(tokenizer, epochs):
    instructions = WorldInstructions("train", tokenizer)
    examples = [instructions[i] for i in range(60)]
    source = Conversations(examples)
    batches = batches_of((source[i] for i in range(epochs * len(source))), 400, 4)
    seen = Counter(pair for batch in batches for pair in pairs_of(batch))
    assert seen == Counter(pair for example in examples for pair in epochs * pairs(example))


def test_every_token_of_a_corpus_is_predicted_exactly_once_an_epoch(tokenizer, corpus):
    shard = Corpus.open(corpus, "train")
    source = CorpusWindows([shard], 24)
    for first in (0, len(source)):  # the first epoch, and the second, which begins where the first ends
        predicted: Counter[int] = Counter()
        index = first
        while predicted.total() < len(shard.ids) - (len(shard.offsets) - 1):
            predicted.update(source[index].ids[1:].tolist())
            index += 1
        assert predicted == Counter(shard.ids.tolist()) - Counter({tokenizer.bos: len(shard.offsets) - 1})


def test_training_and_validation_windows_are_disjoint(corpus):
    # As bytes: the world's dialogues have returns in them, which Python's text mode would make line ends.
    text = (corpus / "text.txt").read_bytes().replace(b"\n<|end|>\n", b"")
    splits = {split: Corpus.open(corpus, split) for split in ("train", "val")}
    # Together they are the file, so that nothing can be in both.
    assert sum(split.text_bytes for split in splits.values()) == len(text)
    documents = [document for split in splits.values() for document in documents_of(split)]
    assert len(documents) == 400 and len(set(documents)) > 390


def pairs(tokens: Tokens) -> list[tuple[int, int, bool, int]]:
    """(input, target, is it trained on, position) for each token of a document that has one before it."""
    ids = tokens.ids.tolist()
    return list(zip(ids[:-1], ids[1:], tokens.is_target[1:].tolist(), range(len(ids) - 1)))


def pairs_of(batch: Batch) -> list[tuple[int, int, bool, int]]:
    real = batch.documents >= 0
    columns = (batch.ids, batch.targets, batch.is_target, batch.positions)
    return list(zip(*(column[real].tolist() for column in columns)))


def documents_of(corpus: Corpus) -> list[tuple[int, ...]]:
    return [tuple(corpus.ids[a:b].tolist()) for a, b in itertools.pairwise(corpus.offsets)]


@pytest.mark.parametrize("name", ["instructions", "text", "conversations", "windows", "mixture"])
def test_a_resumed_stream_continues_identically(tokenizer, corpus, name):
    stream = PackedStream(all_sources(tokenizer, corpus)[name], CONTEXT, 2, pool=32)
    for _ in range(7):
        next(stream)
    state = json.loads(json.dumps(stream.state()))
    resumed = PackedStream(all_sources(tokenizer, corpus)[name], CONTEXT, 2, pool=32)
    resumed.restore(state)
    for _ in range(20):
        batch, again = next(stream), next(resumed)
        assert all(torch.equal(getattr(batch, field), getattr(again, field)) for field in vars(batch))


def test_a_prefetched_stream_is_the_stream_and_resumes_as_it(tokenizer, corpus):
    def stream() -> PackedStream:
        return PackedStream(all_sources(tokenizer, corpus)["mixture"], CONTEXT, 2, pool=32)

    plain, ahead = stream(), Prefetched(stream())
    for _ in range(5):
        assert torch.equal(next(plain).ids, next(ahead).ids)
    assert ahead.state() == plain.state()
    resumed = Prefetched(stream())
    resumed.restore(json.loads(json.dumps(ahead.state())))
    for _ in range(5):
        assert torch.equal(next(plain).ids, next(resumed).ids)
    ahead.close()
    resumed.close()


def test_a_mixtures_shares_reach_the_batches(tokenizer):
    marked = [Conversations([Tokens.of_text(np.array([mark] * 9))]) for mark in (1, 2, 3)]
    stream = PackedStream(Mixture(marked, [0.5, 0.3, 0.2]), 8, 10, pool=1)
    drawn = Counter(int(i) for _ in range(300) for i in next(stream).ids[:, 0])
    assert drawn == {1: 1500, 2: 900, 3: 600}
