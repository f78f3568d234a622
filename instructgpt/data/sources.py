"""Where examples come from: sequences addressed by an index, each a pure function of its arguments.

A source has no cursor. A stream that knows the indices it has used can therefore be resumed exactly, and a source can
be read from any place. Sources are endless (`source[i]` for every i >= 0); one made of finite data starts another
epoch, in another order, after its `len()` items.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol, cast

import numpy as np

from instructgpt import world
from instructgpt.data.held_out import conversation_key, without
from instructgpt.data.tokens import Shard, Tokens
from instructgpt.data.windows import windows
from instructgpt.errors import UserError
from instructgpt.text.chat import Message
from instructgpt.text.tokenizer import Tokenizer

_BLOCK_SIZES = (1_000, 1_000_000)  # fewest and most draws over which a mixture's shares are exact
_RECENT = 3  # epochs or blocks whose order is remembered: a packer's pool reaches back over a border now and then


class ExampleSource(Protocol):
    """An endless sequence of documents, pure in the index."""

    def __getitem__(self, index: int, /) -> Tokens: ...


class WorldInstructions:
    """Conversations of the instruction world, a share of which may have flawed answers, as real demonstrations do.

    context: of a conversation that does not fit in it, one of its windows is drawn; 0 keeps all of every conversation.
    held: keys of conversations that are validated on, in place of which others are drawn (`held_out.conversation_key`).
    """

    def __init__(
        self,
        split: str,
        tokenizer: Tokenizer,
        seed: int = 0,
        flawed_share: float = 0.0,
        context: int = 0,
        held: Collection[str] = (),
    ):
        self._split, self._tokenizer, self._seed, self._flawed_share = split, tokenizer, seed, flawed_share
        self._limit = context + 1 if context else sys.maxsize
        self.conversation = without(self._conversation, conversation_key, held)

    def __getitem__(self, index: int) -> Tokens:
        found = self.windows(index)
        return found[_generator(self._seed, index, 1).integers(len(found))] if len(found) > 1 else found[0]

    def windows(self, index: int) -> list[Tokens]:
        """All of a conversation; see `windows.windows`."""
        return windows(self.conversation(index), self._tokenizer, self._limit)

    def _conversation(self, index: int) -> list[Message]:
        if self._flawed_share and _generator(self._seed, index).random() < self._flawed_share:
            conversation = world.flawed_demonstration(self._split, index, self._seed)
        else:
            conversation = world.example(self._split, index, self._seed).conversation
        return cast("list[Message]", conversation)  # the world's messages are plain dictionaries


class WorldText:
    """Plain text of the instruction world, for pretraining: `bos`, a document, `eos`."""

    def __init__(self, tokenizer: Tokenizer, seed: int = 0):
        self._tokenizer, self._seed = tokenizer, seed

    def __getitem__(self, index: int) -> Tokens:
        tokenizer = self._tokenizer
        ids = tokenizer.encode(world.document(index, self._seed))
        return Tokens.of_text(np.array([*tokenizer.document_start, *ids, tokenizer.eos], dtype=np.int32))


class Conversations:
    """Documents held in memory, as flat arrays. Every epoch is all of them in a new order.

    `shuffle=False` keeps the given order. Raises UserError when there is none.
    """

    def __init__(self, items: Iterable[Tokens], seed: int = 0, shuffle: bool = True):
        held = list(items)
        if not held:
            raise UserError("there is no example to use")
        self._ids = np.concatenate([item.ids for item in held])
        self._is_target = np.concatenate([item.is_target for item in held])
        self._offsets = np.cumsum([0, *map(len, held)])
        count = len(held)
        self._epochs = Epochs(lambda epoch: count, seed, shuffle)

    def __len__(self) -> int:
        """Examples in an epoch."""
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> Tokens:
        _, item = self._epochs.locate(index)
        stretch = slice(self._offsets[item], self._offsets[item + 1])
        return Tokens(self._ids[stretch], self._is_target[stretch])


class CorpusWindows:
    """The documents of token shards, in stretches of at most `context` targets (`context + 1` tokens).

    Stretches of a document overlap by one token, so that every token but a document's first is a target exactly once
    an epoch. The place where a long document is first cut is drawn anew each epoch: otherwise the tokens after a cut
    would be predicted from little context in every epoch. `shuffle=False` cuts at multiples of `context` and keeps the
    documents' order, for validation. Holds a few numbers a document and epoch, and never the text.
    Raises UserError when there is no text.
    """

    def __init__(self, shards: Sequence[Shard], context: int, seed: int = 0, shuffle: bool = True):
        self._shards, self._context, self._seed, self._shuffle = list(shards), context, seed, shuffle
        self._targets = np.concatenate([np.diff(shard.offsets) for shard in shards]) - 1  # (documents,)
        self._first_documents = np.cumsum([0, *(len(shard.offsets) - 1 for shard in shards)])  # of each shard
        if not (self._targets > 0).any():
            raise UserError("the corpus has no text to use")
        self._cuts = lru_cache(_RECENT)(self._draw_cuts)
        self._epochs = Epochs(lambda epoch: int(self._cuts(epoch).starts[-1]), seed, shuffle)

    def __len__(self) -> int:
        """Stretches in the first epoch; without shuffling, in every one."""
        return int(self._cuts(0).starts[-1])

    def _draw_cuts(self, epoch: int) -> _Cuts:
        first = np.full(len(self._targets), self._context)
        if self._shuffle:
            drawn = _generator(self._seed, epoch, 1).integers(1, self._context + 1, len(first))
            first = np.where(self._targets > self._context, drawn, first)
        stretches = 1 + -(-np.maximum(self._targets - first, 0) // self._context)  # rounded up
        stretches[self._targets < 1] = 0
        return _Cuts(first, np.concatenate([[0], np.cumsum(stretches)]))

    def __getitem__(self, index: int) -> Tokens:
        epoch, item = self._epochs.locate(index)
        first, starts = self._cuts(epoch)
        document = int(starts.searchsorted(item, side="right")) - 1
        end = int(first[document]) + (item - int(starts[document])) * self._context
        start = max(end - self._context, 0)
        end = min(end, int(self._targets[document]))
        place = int(self._first_documents.searchsorted(document, side="right")) - 1
        shard = self._shards[place]
        begin = int(shard.offsets[document - self._first_documents[place]])
        return Tokens.of_text(shard.ids[begin + start : begin + end + 1])


class _Cuts(NamedTuple):
    """How the documents are cut in one epoch."""

    first: np.ndarray
    """(documents,) targets in a document's first stretch, if it has so many."""
    starts: np.ndarray
    """(documents + 1,) number of stretches before each document."""


class Mixture:
    """Examples of several sources in fixed shares.

    Of each block of examples (1000, or more where a share is small), every source gives the same number, which is what
    its weight asks for; the order within a block is drawn. Shares are of examples, not of tokens.
    Raises UserError for weights that are no shares.
    """

    def __init__(self, sources: Sequence[ExampleSource], weights: Sequence[float], seed: int = 0):
        if len(sources) != len(weights) or not sources:
            raise UserError(f"{len(sources)} sources need as many weights; {len(weights)} were given")
        given = ", ".join(map(str, weights))
        if not all(0 < weight < float("inf") for weight in weights):
            raise UserError(f"weights {given}: each must be a positive number")
        shares = np.array(weights, dtype=np.float64) / sum(weights)
        self._block_size = int(np.clip(np.ceil(10 / shares.min()), *_BLOCK_SIZES))
        exact = shares * self._block_size
        self._counts = np.floor(exact).astype(np.int64)
        # Largest remainders: those that lost most by rounding down get the draws that are left.
        self._counts[np.argsort(self._counts - exact, kind="stable")[: self._block_size - self._counts.sum()]] += 1
        if not self._counts.all():
            raise UserError(f"weights {given}: the smallest is under a millionth of their sum and would never be drawn")
        self._sources, self._seed = list(sources), seed
        self._block = lru_cache(_RECENT)(self._draw_block)

    def _draw_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For each draw of a block, the source and the index in it."""
        order = _generator(self._seed, block).permutation(np.repeat(np.arange(len(self._counts)), self._counts))
        indices = np.empty_like(order)
        for source, count in enumerate(self._counts):
            indices[order == source] = block * count + np.arange(count)
        return order, indices

    def __getitem__(self, index: int) -> Tokens:
        block, draw = divmod(index, self._block_size)
        order, indices = self._block(block)
        return self._sources[order[draw]][int(indices[draw])]


class Place(NamedTuple):
    epoch: int
    item: int


class Epochs:
    """Finds the epoch, and the item within it, that an endless index stands for; epochs may differ in size."""

    def __init__(self, size: Callable[[int], int], seed: int, shuffle: bool):
        self._size, self._seed, self._shuffle = size, seed, shuffle
        self._starts = [0]
        self._order = lru_cache(_RECENT)(self._draw_order)

    def _draw_order(self, epoch: int) -> np.ndarray:
        return _generator(self._seed, epoch).permutation(self._size(epoch))

    def locate(self, index: int) -> Place:
        while index >= self._starts[-1]:
            self._starts.append(self._starts[-1] + self._size(len(self._starts) - 1))
        epoch = len(self._starts) - 2
        while index < self._starts[epoch]:
            epoch -= 1
        item = index - self._starts[epoch]
        return Place(epoch, int(self._order(epoch)[item]) if self._shuffle else item)


def _generator(*key: int) -> np.random.Generator:
    """A generator for this key alone; any integers will do."""
    return np.random.default_rng([k % 2**64 for k in key])
