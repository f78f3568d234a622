"""Byte-pair encoding."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from instructgpt.course.exercise import Check, Exercise, Mistake


def _case(word: str, *merges: str) -> dict[str, Any]:
    pairs = [tuple(merge.split()) for merge in merges]
    return {"pieces": list(word), "ranks": {pair: rank for rank, pair in enumerate(pairs)}}


def _wrong(choose: Callable[[list[str], Any], tuple[str, str] | None], backwards: bool = False) -> Callable[..., Any]:
    """A loop of merges that takes what `choose` says of pieces and ranks, until that is None."""

    def merged(pieces: Any, ranks: Any) -> list[str]:
        pieces = list(pieces)
        while (pair := choose(pieces, ranks)) is not None:
            at = len(pieces) - 2 if backwards else 0
            while 0 <= at < len(pieces) - 1:
                if (pieces[at], pieces[at + 1]) == pair:
                    pieces[at : at + 2] = [pair[0] + pair[1]]
                at += -1 if backwards else 1
        return pieces

    return merged


def _lowest(pieces: list[str], ranks: Any) -> tuple[str, str] | None:
    return min((pair for pair in pairwise(pieces) if pair in ranks), key=ranks.get, default=None)


def _of_the_same_letters(pieces: list[str], ranks: Any) -> tuple[str, str] | None:
    joined = {first + second: rank for (first, second), rank in ranks.items()}
    return min((p for p in pairwise(pieces) if p[0] + p[1] in joined), key=lambda p: joined[p[0] + p[1]], default=None)


def _once(order: Callable[[Any], Any]) -> Callable[..., Any]:
    """Each merge once, in the order that `order` brings the table into."""

    def merged(pieces: Any, ranks: Any) -> list[str]:
        for pair in order(ranks):
            pieces = _wrong(lambda pieces, ranks, pair=pair: pair if pair in pairwise(pieces) else None)(pieces, ranks)
        return list(pieces)

    return merged


def _longest(pieces: Any, ranks: Any) -> list[str]:
    known, rest, found = {first + second for first, second in ranks}, "".join(pieces), list[str]()
    while rest:
        end = next((end for end in range(len(rest), 1, -1) if rest[:end] in known), 1)
        found, rest = [*found, rest[:end]], rest[end:]
    return found


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
        Check(
            "the table of ranks is in no order",
            {"pieces": list("abc"), "ranks": {("a", "b"): 1, ("b", "c"): 0}},
            ["a", "bc"],
        ),
        Check("a merge is needed for one of a lower rank", _case("abc", "ab c", "a b"), ["abc"]),
        Check("the same, from the right", _case("abc", "a bc", "b c"), ["abc"]),
        Check("the lower rank stands later, and comes first in the alphabet", _case("cab", "a b", "c a"), ["c", "ab"]),
        Check(
            "both occurrences, though the first one makes a pair of a lower rank",
            _case("abab", "ab a", "a b"),
            ["ab", "ab"],
        ),
        Check("the same letters, cut elsewhere, are another pair", _case("abc", "b c", "ab c"), ["a", "bc"]),
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
            "one occurrence alone is merged before the next pair is chosen",
            "is_pair = pieces[at : at + 2] == [first, second]",
            "is_pair = pieces[at : at + 2] == [first, second] and len(joined) == at",
        ),
        Mistake("the rank is taken from the order of the table", "key=ranks.__getitem__", "key=list(ranks).index"),
        Mistake(
            "a rank of 0 is taken for none",
            "set(pairwise(pieces)) & ranks.keys()",
            "{pair for pair in pairwise(pieces) if ranks.get(pair)}",
        ),
        Mistake("this goes from right to left", function=_wrong(_lowest, backwards=True)),
        Mistake(
            "pairs are known by their letters alone, wherever these are cut: the two pieces count",
            function=_wrong(_of_the_same_letters),
        ),
        Mistake(
            "this goes through the merges once: what one of them makes may need an earlier one",
            function=_once(lambda ranks: sorted(ranks, key=ranks.get)),
        ),
        Mistake(
            "this goes through the merges once, and by the alphabet: sorted(ranks) does not look at the ranks",
            function=_once(sorted),
        ),
        Mistake(
            "this goes through the table once, in the order that it has: the ranks say what goes first",
            function=_once(list),
        ),
        Mistake("this takes the longest piece that is known, from the left, whatever the ranks", function=_longest),
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
