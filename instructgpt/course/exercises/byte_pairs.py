"""Byte-pair encoding."""

from __future__ import annotations

from typing import Any

from instructgpt.course.exercise import Check, Exercise, Mistake


def _case(word: str, *merges: str) -> dict[str, Any]:
    pairs = [tuple(merge.split()) for merge in merges]
    return {"pieces": list(word), "ranks": {pair: rank for rank, pair in enumerate(pairs)}}


EXERCISE = Exercise(
    place=10,
    title="Byte-pair merges",
    about="A tokenizer has learnt which neighbours are often together, and in which order it found that out. A "
    "word is cut "
    "into characters, and neighbours are joined in that same order until none is known.",
    target="instructgpt.text.merging.merged",
    checks=(
        Check("nothing to merge", _case("ab", "x y"), ["a", "b"]),
        Check("one merge", _case("bab", "a b"), ["b", "ab"]),
        Check("the result of a merge is merged on", _case("abc", "a b", "ab c"), ["abc"]),
        Check("the lower rank goes first, wherever it stands", _case("abc", "b c", "a b"), ["a", "bc"]),
        Check("every occurrence is merged", _case("abab", "a b"), ["ab", "ab"]),
        Check("three alike: from left to right", _case("aaa", "a a"), ["aa", "a"]),
        Check("all of a pair, before the next pair is chosen", _case("abcab", "a b", "ab c", "c ab"), ["abc", "ab"]),
        Check("an empty word", _case("", "a b"), []),
        Check("four alike, twice", _case("aaaa", "a a", "aa aa"), ["aaaa"]),
        Check("a merge of a lower rank becomes possible later", _case("xabc", "x ab", "b c", "a b"), ["x", "a", "bc"]),
    ),
    mistakes=(
        Mistake(
            "the pair that stands first is merged, not the one of the lowest rank",
            "min(pairs, key=ranks.__getitem__)",
            "min(pairs, key=list(zip(pieces, pieces[1:])).index)",
        ),
        Mistake("the pair of the highest rank is merged first", "min(pairs", "max(pairs"),
        Mistake(
            "only the first round is done: what merges make is not merged on",
            "        pieces = joined",
            "        return joined",
        ),
        Mistake(
            "only the first occurrence of a pair is merged, and then this ends",
            "            at += 2 if is_pair else 1\n        pieces = joined",
            "            at += 2 if is_pair else 1\n            if is_pair:\n"
            "                return joined + pieces[at:]\n        pieces = joined",
        ),
        Mistake(
            "a piece is used twice: behind a merged pair, go on two places", "at += 2 if is_pair else 1", "at += 1"
        ),
        Mistake(
            "the two pieces are joined the wrong way round", "first + second if is_pair", "second + first if is_pair"
        ),
    ),
    hints=(
        "What has to be found out in each round is one pair: of all neighbours in the word, the one that was "
        "learnt first.",
        "itertools.pairwise(pieces) are the neighbours. Choose the one with the smallest rank, and stop where "
        "none has one.",
        "Build a new list: where the pair stands append the joined piece and go on two places, elsewhere append what "
        "stands there and go on one. Then begin anew with the new list.",
    ),
)
