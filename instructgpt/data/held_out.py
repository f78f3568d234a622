"""Which records are validated on: the same ones whatever the seed, and none that is trained on by another way.

Records are told apart by what is asked and answered first, without case, spacing and system message. So a record that
is held out is not trained on either through another file, in another format, as the beginning of a longer conversation,
or through the embedded world.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

MOST_HELD = 500
"""Records that are validated on: more would take longer and tell little."""
_ELSEWHERE = 1 << 40  # how far away in the endless world another example is drawn instead


def conversation_key(messages: Sequence[Mapping[str, Any]]) -> str:
    """A conversation's first question and the answer to it."""
    first = next((i for i, message in enumerate(messages, start=1) if message["role"] == "assistant"), len(messages))
    return prompt_key(messages[:first])


def prompt_key(messages: Sequence[Mapping[str, Any]]) -> str:
    """All that is said, but for the system message."""
    return "\n".join(
        f"{message['role']} {' '.join(message['content'].split()).casefold()}"
        for message in messages
        if message["role"] != "system"
    )


def held_out_keys(keys: Iterable[str], share: float, most: int = MOST_HELD) -> set[str]:
    """Of the distinct keys every n-th, at most `most` of them, evenly spread; none of a single one."""
    distinct = list(dict.fromkeys(keys))
    if not share or len(distinct) < 2:
        return set()
    every = max(2, round(min(1 / share, len(distinct))), -(-len(distinct) // most))
    return set(distinct[every - 1 :: every])


def without(make: Callable[[int], T], key: Callable[[T], str], held: Collection[str]) -> Callable[[int], T]:
    """An endless sequence in which something else stands where `make` gives what is held out; pure in the index.

    It can be pickled where `make` and `key` can.
    """
    return partial(_draw, make, key, held) if held else make


def _draw(make: Callable[[int], T], key: Callable[[T], str], held: Collection[str], index: int) -> T:
    found = make(index)
    while key(found) in held:
        index += _ELSEWHERE
        found = make(index)
    return found
