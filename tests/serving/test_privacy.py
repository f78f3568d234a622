"""Masking: what must go, what must stay, in two languages, and that no text makes it slow.

`must_be_masked.txt` has a kind and a text a line, what must go in ⟦⟧; `must_stay.txt` a harmless text a line.
`python -m benchmarks.masking` prints the figures.
"""

from __future__ import annotations

import re
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.serving.personal_data import KINDS
from instructgpt.serving.privacy import Holder, found, mask

HERE = Path(__file__).parent


def lines(name: str) -> list[str]:
    return (HERE / name).read_text(encoding="utf-8").splitlines()


PERSONAL = [line.replace("\\n", "\n").split("\t") for line in lines("must_be_masked.txt")]
HARMLESS = lines("must_stay.txt")
TEXTS = [re.sub("[⟦⟧]", "", text) for _, text in PERSONAL] + HARMLESS


def test_there_are_enough_cases_and_every_kind_has_some():
    assert len({text for _, text in PERSONAL}) >= 200 and len(set(HARMLESS)) >= 200
    assert {kind for kind, _ in PERSONAL} == {kind.name for kind in KINDS}
    chinese = re.compile("[\u4e00-\u9fff]")
    assert sum(bool(chinese.search(text)) for _, text in PERSONAL) >= 50
    assert sum(bool(chinese.search(text)) for text in HARMLESS) >= 30


@pytest.mark.parametrize(("kind", "marked"), PERSONAL)
def test_personal_data_goes_and_nothing_beside_it(kind: str, marked: str):
    assert mask(re.sub("[⟦⟧]", "", marked)) == re.sub("⟦[^⟧]*⟧", f"[{kind}]", marked)


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_stays(text: str):
    assert mask(text) == text


PIECES = st.lists(
    st.sampled_from([*TEXTS, " ", "\n", "，", "-", "+", "(", ":", "@", "=", "12", "0", "[EMAIL]", "password: ", "电话"])
    | st.text(alphabet="0123456789 -.:+()@abcXé身份证手机\n", max_size=12),
    max_size=6,
)


@given(PIECES)
def test_masking_again_changes_nothing(pieces: list[str]):
    once = mask("".join(pieces))
    assert mask(once) == once


@given(st.text())
def test_of_any_text_only_what_is_found_is_masked(text: str):
    """What stands before, between and after the places comes through as it was."""
    expected, done = "", 0
    for start, end, kind in sorted(found(text)):
        expected += text[done:start] + f"[{kind}]"
        done = end
    assert mask(text) == expected + text[done:]


def test_text_that_is_half_a_character_can_be_masked():
    assert mask("\ud800 ann@example.org \udfff") == "\ud800 [EMAIL] \udfff"


@given(PIECES)
def test_places_do_not_overlap(pieces: list[str]):
    places = sorted(found("".join(pieces)))
    assert all(first[1] <= after[0] for first, after in pairwise(places))


HOSTILE = (
    "a", "1", "1 ", "1-", "a.", "a@", "@a.", "+1", "+", "(", "0 1", ":", "a:", "1:", "1.", "-", "eyJ", "eyJaaaaaaaaa.",
    "-----BEGIN PRIVATE KEY-----", "sk-", "sk-a1", "bearer ", "password: ", "password is", "key=", "key=a1", "://",
    "://a:", "GB29 ", "DE89", "电话", "手机 1", "身份证", "passport no.", "4111 ", "4111111111111111 ", "13812345678 ",
    "[EMAIL]", "é", "中@", "1 (at) ", "::1", "2001:", "a (at) b", "order ", " ", "\n", "1\n", "=", "A1", "x-",
)  # fmt: skip


@pytest.mark.parametrize("unit", HOSTILE)
def test_time_is_linear_in_hostile_text(unit: str):
    """Four times as much may take at most nine times as long; quadratic would be sixteen. The least of a few tries."""

    def seconds(length: int) -> float:
        text = unit * (length // len(unit))
        times = []
        for _ in range(3):
            begun = time.thread_time()
            mask(text)
            times.append(time.thread_time() - begun)
        return min(times)

    assert seconds(8_000) <= 9 * seconds(2_000) + 2e-3


@given(PIECES, st.integers(1, 9))
def test_a_text_in_pieces_is_masked_as_the_whole(pieces: list[str], size: int):
    text = "".join(pieces)
    holder = Holder()
    given_out = [holder.feed(text[start : start + size]) for start in range(0, len(text), size)]
    assert "".join([*given_out, holder.finish()]) == mask(text)


@pytest.mark.parametrize(("kind", "marked"), PERSONAL)
def test_each_character_alone_is_masked_as_the_whole(kind: str, marked: str):
    text = re.sub("[⟦⟧]", "", marked)
    holder = Holder()
    assert "".join([*map(holder.feed, text), holder.finish()]) == mask(text)


def test_a_holder_keeps_back_no_more_than_it_must():
    holder = Holder()
    assert holder.feed("It rains in Spain, ") == "It rains in "
    assert holder.feed("mainly") == "Spain, "
    assert holder.feed(" on the plain 4111 1111 ") == "mainly on the plain "
    assert holder.feed("1111 1111 and no") == ""
    assert holder.feed("where else") == "[CARD] and nowhere "
