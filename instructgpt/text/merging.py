"""Byte-pair encoding of a word (Sennrich et al. 2016, section 3.2): what the packages do inside, to be read.

Training counts which two neighbours are the most frequent in a text, makes one piece of them, and counts again; the
merges, in the order in which they were found, are the tokenizer. A new word is then merged in that same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise


def merged(pieces: Sequence[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """The pieces of a word after all merges that apply: first, of all neighbours, the pair of the lowest rank.

    pieces: the word's characters. ranks: by pair, the place of its merge in training, from 0. Every occurrence of the
    chosen pair is merged, from left to right, before the next pair is chosen; pairs without a rank stay apart.
    """
    pieces = list(pieces)
    while True:
        pairs = set(pairwise(pieces)) & ranks.keys()
        if not pairs:
            return pieces
        first, second = min(pairs, key=ranks.__getitem__)
        joined: list[str] = []
        at = 0
        while at < len(pieces):
            is_pair = pieces[at : at + 2] == [first, second]
            joined.append(first + second if is_pair else pieces[at])
            at += 2 if is_pair else 1
        pieces = joined
