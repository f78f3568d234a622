"""The key/value cache, in blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


def _case(tables: list[list[int]], starts: list[int], counts: list[int], block_size: int = 4) -> dict[str, Any]:
    return {"tables": tables, "starts": starts, "counts": counts, "block_size": block_size}


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
