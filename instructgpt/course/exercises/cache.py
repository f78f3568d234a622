"""The key/value cache, in blocks."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from instructgpt.config import ModelConfig
from instructgpt.course.exercise import Check, Exercise, Mistake
from instructgpt.model.cache import Feed, PagedCache, Table

CONFIG = ModelConfig(vocab_size=8, context=8, layers=1, width=4, heads=1)


def _feed(given: dict[str, Any]) -> Feed:
    cache = PagedCache(CONFIG, blocks=5, block_size=given["block_size"])
    return Feed(cache, [Table(blocks) for blocks in given["tables"]], given["starts"], given["counts"])


def _slots(function: Callable[..., Any], given: dict[str, Any]) -> list[int]:
    """Where the new tokens of each sequence go, as a feed asks the function."""
    return _feed(given).slots.tolist()


def _held(function: Callable[..., Any], given: dict[str, Any]) -> list[float]:
    """What lies in the memory after the keys 1, 2, 3, … were written, one for each new token."""
    feed = _feed(given)
    new = torch.arange(1.0, len(feed.slots) + 1)[None, None, :, None].expand(1, 1, -1, 4)
    feed.write(0, new, new)
    return feed.cache.keys[0, :, 0, 0].tolist()


def _asked(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """The slots of positions of sequences, two arrays that are broadcast."""
    return function(_feed(given), given["rows"], given["positions"]).tolist()


def _device(function: Callable[..., Any], given: dict[str, Any]) -> str:
    """Where the result lies, for a cache that is nowhere."""
    feed: Any = _feed(given)
    feed.cache = SimpleNamespace(block_size=given["block_size"], device=torch.device("meta"))
    return str(function(feed, given["rows"], given["positions"]).device)


def _case(tables: list[list[int]], starts: list[int], counts: list[int], block_size: int = 4) -> dict[str, Any]:
    return {"tables": tables, "starts": starts, "counts": counts, "block_size": block_size}


TWO = {**_case([[2, 0], [1, 4]], [4, 4], [1, 1]), "rows": np.array([[0], [1]])}

EXERCISE = Exercise(
    place=430,
    title="The key/value cache, in blocks",
    about="Keys and values of earlier tokens do not change, so they are kept. Memory is cut into blocks, and a "
    "sequence "
    "has a table of its own, which need not be neighbours: what is asked is the slot of each token.",
    target="instructgpt.model.cache.Feed._slots",
    has=(
        ("self._padded: np.ndarray", "(sequences, blocks), each sequence's blocks by their numbers, filled up with 0"),
        ("self.cache.block_size: int", "slots of a block: block b has those from b · block_size on"),
        ("self.cache.device", "where the result belongs"),
    ),
    checks=(
        Check("two tokens in block 0", _case([[0]], [0], [2]), [0, 1], _slots),
        Check("two tokens in block 3, which begins at slot 12", _case([[3]], [0], [2]), [12, 13], _slots),
        Check("six tokens in blocks 2 and 0", _case([[2, 0]], [0], [6]), [8, 9, 10, 11, 0, 1], _slots),
        Check("one more token, at position 6", _case([[2, 0]], [6], [1]), [2], _slots),
        Check(
            "two sequences share block 3 and go on in blocks of their own",
            _case([[3, 1], [3, 2]], [4, 4], [1, 1]),
            [4, 8],
            _slots,
        ),
        Check("a long sequence and a short one, side by side", _case([[4, 1], [0]], [3, 1], [2, 1]), look=_slots),
        Check(
            "three positions of each of two sequences: (2, 1) and (3,) are broadcast",
            {**TWO, "positions": np.array([0, 3, 5])},
            [[8, 11, 1], [4, 7, 17]],
            _asked,
        ),
        Check(
            "the tokens before each: (2, 1) and (2, 3)",
            {**TWO, "positions": np.array([[5, 4, 3], [2, 1, 0]])},
            look=_asked,
        ),
        Check("where the result lies", {**TWO, "positions": np.array([0, 1])}, "meta", _device),
        Check("blocks of two: what lies in the memory", _case([[3, 0, 4], [1]], [1, 0], [4, 2], 2), look=_held),
    ),
    mistakes=(
        Mistake(
            "a sequence's blocks are taken to be neighbours: its table is to be asked for each of them",
            "self._padded[rows, positions // size] * size",
            "self._padded[rows, 0] * size + positions // size * size",
        ),
        Mistake(
            "the number of a block is taken for its first slot: it is to be multiplied by the block's size",
            "positions // size] * size",
            "positions // size]",
        ),
        Mistake(
            "the whole position is added to the block's first slot, not the place within the block",
            "+ positions % size",
            "+ positions",
        ),
        Mistake(
            "all tokens of a block go to its first slot: the place within the block is missing",
            " + positions % size",
            "",
        ),
        Mistake(
            "rows and positions are taken to be as long as each other: they may have to be broadcast",
            "self._padded[rows, positions // size] * size + positions % size",
            "np.array([self._padded[row, at // size] * size + at % size"
            " for row, at in zip(rows.ravel().tolist(), positions.ravel().tolist())])",
        ),
        Mistake(
            "the result is one flat row, whatever the shape of rows and positions",
            "positions // size] * size + positions % size)",
            "positions // size] * size + positions % size).flatten()",
        ),
        Mistake("the result is not on the cache's device", ".to(self.cache.device)", ""),
        Mistake(
            "block and place within it are exchanged: position // size is the block",
            "positions // size] * size + positions % size",
            "(positions % size) % self._padded.shape[1]] * size + positions // size",
        ),
        Mistake(
            "the blocks are taken to be as long as they are by default", "size = self.cache.block_size", "size = 16"
        ),
        Mistake(
            "the first position of a block is looked for in the one before",
            "positions // size]",
            "(positions - 1) // size]",
        ),
        Mistake(
            "positions are taken to begin at 0 with the new tokens: they go on behind what is cached",
            "size = self.cache.block_size",
            "size, positions = self.cache.block_size, positions - np.min(positions)",
        ),
        Mistake(
            "the positions are written to: they are the feed's",
            "size = self.cache.block_size",
            "size = self.cache.block_size\n    rows = rows + 0 * positions",
            (
                (
                    "self._padded[rows, positions // size] * size + positions % size",
                    "(self._padded[rows, positions // size] * size + np.remainder(positions, size, out=positions))",
                ),
            ),
        ),
        Mistake("all sequences use the table of the first", "self._padded[rows, ", "self._padded[0 * rows, "),
        Mistake(
            "the table is not used at all: position and slot are the same only for a sequence alone, from block 0 on",
            "self._padded[rows, positions // size] * size + positions % size",
            "0 * rows + positions",
        ),
    ),
    hints=(
        "With blocks of 4, position 6 is in the sequence's second block. How do you get there from the number "
        "6, and where "
        "in the block is it?",
        "self._padded[row, i] is the number of the i-th block of a sequence; self.cache.block_size tokens fit "
        "into each.",
        "Index `_padded` with both arrays at once, rows and positions // size. The slot is block · size + "
        "position % size; "
        "make a tensor of it, on self.cache.device.",
    ),
)
