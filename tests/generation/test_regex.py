from __future__ import annotations

import re
from functools import lru_cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.errors import UserError
from instructgpt.generation import regex
from instructgpt.generation.grammar import Automaton
from instructgpt.generation.regex import ALL, parse_regex, united, utf8, without


@lru_cache
def automaton_of(pattern: str, is_search: bool) -> Automaton:
    return Automaton(parse_regex(pattern, is_search=is_search))


def matches(pattern: str, text: str, is_search: bool = False) -> bool:
    automaton = automaton_of(pattern, is_search)
    return automaton.accepts(automaton.read(automaton.start, text.encode()))


GOOD = [
    r"a|bc|", r"(a|b)*c+", r"[a-c]{2,3}x?", r"[^ab]b", r"\d{3}-\d{4}", r"(?:ab){2}", r"(?P<n>a)b", r"(?<n>a)b", r"a*?b",
    r"\.\*\\", r"[\]\-a]", r"[-a]b", r"[a-]", r"\x41\u0042", r"猫{2}|[一-丁]", r"[\w.+-]+@\w+", r"^a$|^b$", r"\n\t",
    r"a{2}", r"a{2,}", r"()", r"[.]", r".x", r"[^\d]a", r"[\s]", r"\S\D\W", r"😀?b", r"a{0}b", r"]}",
]  # fmt: skip
PARTS = ["a", "b", "c", "x", "1", "-", ".", " ", "猫", "一", "😀", "@", "\n", "A", "B", "\\", "*", "]", "}", "é", "٣"]


@pytest.mark.parametrize("pattern", GOOD)
@given(text=st.lists(st.sampled_from(PARTS), max_size=6).map("".join))
def test_what_it_reads_is_what_python_matches(pattern: str, text: str):
    is_match = bool(re.fullmatch(pattern.replace("(?<n>", "(?P<n>"), text))
    # Classes are narrower than Python's where JavaScript's are.
    assert matches(pattern, text) == is_match if text.isascii() else not matches(pattern, text) or is_match


def test_texts_that_must_match():
    for pattern, text in (
        (r"\d{3}-\d{4}", "555-1234"), (r"猫{2}|[一-丁]", "猫猫"), (r"[\w.+-]+@\w+", "a.b@c"), (r"\u{1F600}", "😀"),
        (r"[^a]", "😀"), (r".", "é"), (r"\S\D\W", "猫é-"), (r"\x41\u0042", "AB"), (r"[^\W\d]", "q"),
    ):  # fmt: skip
        assert matches(pattern, text), pattern


@pytest.mark.parametrize("text", ["٣", "é", "\u00a0", "\ufeff", "\u2028"])
def test_where_dialects_differ_neither_the_class_nor_its_complement_has_it(text: str):
    for letter in "dws":
        both = [bool(re.fullmatch(f"\\{letter}", text)), text in "\ufeff" and letter == "s"]
        assert not matches(rf"\{letter}", text)
        assert not matches(rf"[^\{letter.upper()}]", text)
        if any(both):
            assert not matches(rf"\{letter.upper()}", text) and not matches(rf"[^\{letter}]", text)
    assert not matches(".", "\u2028") and not matches(".", "\n")


def test_a_search_finds_it_anywhere_but_for_anchors():
    for pattern, found, missed in (
        ("ab", ["ab", "xabx", "abab", "猫ab"], ["ba", ""]), ("^ab", ["abx"], ["xab"]), ("ab$", ["xab"], ["abx"]),
        ("^ab$", ["ab"], ["xab", "abx"]), ("^a|b$", ["ax", "xb"], ["xa"]), ("", ["", "x"], []),
    ):  # fmt: skip
        assert all(matches(pattern, text, is_search=True) for text in found), pattern
        assert not any(matches(pattern, text, is_search=True) for text in missed), pattern


WRONG = {
    "(a": "'(a' at character 1 is a group that is not closed",
    "a)": "')' at character 2 closes a group",
    "[a": "'[a' at character 1 is a class that is not closed",
    "[]": "'[]' at character 1 is an empty class",
    "*a": "'*a' at character 1 repeats nothing",
    "a**": "repeats a repetition",
    "a*+": "possessive",
    "a{2,1}": "'{2,1}' at character 2 counts from more to less",
    "a{x}": "is no count",
    "{": "is no count",
    "a{1000000}": "counts further than 100,000",
    "[z-a]": "is no range",
    r"[a-\d]": "is no range",
    "(?=a)": "look-around",
    "(?!a)b": "look-around",
    "(?i)a": "a flag",
    "(?<=a)b": "look-around",
    r"(a)\1": "is an escape that is not supported",
    r"\bword\b": "is an escape that is not supported",
    r"\p{L}": "is an escape that is not supported",
    "a^b": "anchor",
    "(a$)": "anchor",
    "a\\": "is an escape that is not supported",
    "(a|": "'(a|' at character 1 is a group that is not closed",
    r"\u{110000}": "is no character",
    r"\ud800": "half a character",
    "[\ud800]": "half a character",
    "(" * 200 + ")" * 200: "within more than 100 others",
}


@pytest.mark.parametrize("pattern", WRONG)
def test_what_is_wrong_or_not_supported_is_told_with_its_place(pattern: str):
    with pytest.raises(UserError) as error:
        Automaton(parse_regex(pattern))
    assert WRONG[pattern] in str(error.value) and "\n" not in str(error.value)


@given(st.text(st.sampled_from("ab01(){}[]|*+?^$\\.,-dwDWpuk猫"), max_size=12))
def test_any_text_is_read_as_python_does_or_refused(pattern: str):
    try:
        automaton = Automaton(parse_regex(pattern))
    except UserError as error:
        assert "\n" not in str(error)
        return
    try:
        compiled = re.compile(pattern)
    except re.error:
        return  # JavaScript's, or nobody's: \_
    for text in ("", "a", "b", "ab", "0", "aab", "01", "猫"):
        if automaton.accepts(automaton.read(automaton.start, text.encode())):
            assert compiled.fullmatch(text), text


sets = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 6)).map(lambda r: (r[0], r[0] + r[1])), max_size=5).map(
    united
)


@given(sets, sets)
def test_ranges_are_sets(a: regex.Ranges, b: regex.Ranges):
    def members(ranges: regex.Ranges) -> set[int]:
        return {i for low, high in ranges for i in range(low, high + 1)}

    assert members(without(a, b)) == members(a) - members(b)
    assert members(united([*a, *b])) == members(a) | members(b)


@given(
    st.characters(exclude_categories=["Cs"]),
    st.characters(exclude_categories=["Cs"]),
    st.characters(exclude_categories=["Cs"]),
)
def test_a_range_of_characters_in_utf8(low: str, high: str, other: str):
    low, high = min(low, high), max(low, high)
    kept = without(((ord(low), ord(high)),), ((0xD800, 0xDFFF),))
    automaton = Automaton(utf8(kept))
    for each in (low, high, other, "\u07ff", "\u0800", "\uffff"):
        assert automaton.accepts(automaton.read(automaton.start, each.encode())) == (low <= each <= high)
    assert ALL[0][0] == 0
