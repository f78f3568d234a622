from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructgpt.text.byte_bpe import ByteBPE
from instructgpt.text.merging import merged

MERGES = ["a b", "b c", "ab c", "c c", "a a", "aa aa", "abc abc", "ab ab"]
PIECES = [*"abc", "ab", "bc", "abc", "cc", "aa", "aaaa", "abcabc", "abab"]
RANKS = {(first, second): rank for rank, (first, second) in enumerate(merge.split() for merge in MERGES)}


@pytest.mark.parametrize(
    ("word", "pieces"),
    [
        ("", []),
        ("a", ["a"]),
        ("bab", ["b", "ab"]),
        ("aaa", ["aa", "a"]),
        ("bcab", ["bc", "ab"]),
        ("abcabc", ["abcabc"]),
    ],
)
def test_by_hand(word: str, pieces: list[str]) -> None:
    assert merged(word, RANKS) == pieces


@pytest.fixture(scope="module")
def package() -> ByteBPE:
    pytest.importorskip("tokenizers")
    return ByteBPE.from_pieces(PIECES, MERGES, {}, "gpt-2")


@settings(max_examples=100)
@given(word=st.text("abc", max_size=20))
def test_it_is_what_the_package_does(package: ByteBPE, word: str) -> None:
    assert merged(word, RANKS) == [PIECES[i] for i in package.encode(word)]
