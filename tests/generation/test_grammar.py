from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.errors import UserError
from instructgpt.generation.grammar import (
    EMPTY,
    NEVER,
    Automaton,
    Choice,
    Expression,
    Repeat,
    Rule,
    Sequence,
    choice,
    literal,
    one_of,
    optional,
    sequence,
    span,
)

A, B = literal("a"), literal("b")
# Expressions over a and b, each with the regular expression that Python knows for it.
expressions: st.SearchStrategy[tuple[Expression, str]] = st.recursive(
    st.sampled_from([(A, "a"), (B, "b"), (EMPTY, ""), (span(97, 98), "[ab]"), (literal("ab"), "ab"), (NEVER, "(?!)")]),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(
            lambda parts: (Sequence(tuple(e for e, _ in parts)), "".join(f"(?:{r})" for _, r in parts))
        ),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda parts: (Choice(tuple(e for e, _ in parts)), "|".join(f"(?:{r})" for _, r in parts))
        ),
        st.tuples(inner, st.integers(0, 2), st.integers(0, 2) | st.none()).map(
            lambda made: (
                Repeat(made[0][0], made[1], None if made[2] is None else made[1] + made[2]),
                f"(?:{made[0][1]}){{{made[1]},{'' if made[2] is None else made[1] + made[2]}}}",
            )
        ),
    ),
    max_leaves=8,
)


def reads(automaton: Automaton, text: str | bytes) -> bool:
    return automaton.accepts(automaton.read(automaton.start, text.encode() if isinstance(text, str) else text))


@given(expressions, st.lists(st.text("ab", max_size=7), min_size=1, max_size=5))
def test_it_reads_what_a_regular_expression_matches(made: tuple[Expression, str], texts: list[str]):
    try:
        automaton = Automaton(made[0])
    except UserError:
        assert not any(re.fullmatch(made[1], text) for text in texts)
        return
    for text in texts:
        assert reads(automaton, text) == bool(re.fullmatch(made[1], text))


@given(expressions, st.text("ab", max_size=6))
def test_where_it_goes_on_an_end_can_be_reached(made: tuple[Expression, str], text: str):
    try:
        automaton = Automaton(made[0])
    except UserError:
        return
    state = automaton.read(automaton.start, text.encode())
    if state < 0:
        assert not any(re.fullmatch(made[1], text + rest) for rest in ("", "a", "b", "ab", "ba"))
        return
    reached, waiting = {state}, [state]
    while waiting and not any(map(automaton.accepts, reached)):
        state = waiting.pop()
        for after in set(automaton.known([state])[state].tolist()) - {-1} - reached:
            reached.add(after)
            waiting.append(after)
    assert any(map(automaton.accepts, reached))


def test_a_rule_may_be_part_of_itself():
    nested = Rule()
    nested.body = choice(EMPTY, sequence(literal("("), nested, literal(")"), nested))
    automaton = Automaton(nested)
    assert [reads(automaton, text) for text in ("", "()", "(()())()", "(", "())", ")(")] == [True] * 3 + [False] * 3
    assert reads(automaton, "(" * 300 + ")" * 300)


def test_what_nothing_meets_and_what_never_ends_is_told():
    endless, mutual, other = Rule(), Rule(), Rule()
    endless.body = sequence(A, endless)
    mutual.body, other.body = sequence(A, other), choice(sequence(B, mutual), NEVER)
    for expression in (NEVER, sequence(A, NEVER), Repeat(NEVER, 1, 2), endless, mutual, Rule()):
        with pytest.raises(UserError, match="nothing meets it, or what would never ends"):
            Automaton(expression)
    assert reads(Automaton(choice(A, endless)), "a")
    half = Automaton(choice(sequence(A, A, B, NEVER), B, sequence(A, A, Repeat(NEVER, 1, 1))))
    assert half.read(half.start, b"a") == -1  # the way that has no end is not begun
    assert reads(Automaton(Repeat(NEVER, 0, None)), "")


def test_counts_are_not_unrolled():
    automaton = Automaton(Repeat(A, 3, 100_000))
    assert not reads(automaton, "aa") and reads(automaton, "aaa")
    assert len(automaton) < 100


@pytest.mark.parametrize("many", [Repeat(optional(A), 5000, 5000), Repeat(Repeat(A, 0, 99), 0, 99)])
def test_what_takes_too_many_stacks_is_refused(many: Expression):
    with pytest.raises(UserError, match="too many ways"):
        Automaton(sequence(many, B))


def test_bytes_that_cannot_be_spelt_are_not_asked_for():
    alphabet = 1 << ord("a")
    assert reads(Automaton(choice(A, B), alphabet), "a") and not reads(Automaton(choice(A, B), alphabet), "b")
    with pytest.raises(UserError):
        Automaton(sequence(A, B), alphabet)


def test_a_space_in_front_is_skipped_once():
    automaton = Automaton(choice(A, literal(" b")), skips_space=True)
    # Of " b" the space would be dropped; of "  b" one stays.
    assert [reads(automaton, text) for text in ("a", " a", "  b", " b", "b", "  a")] == [True] * 3 + [False] * 3


@given(st.sets(st.binary(max_size=4), min_size=1, max_size=12), st.binary(max_size=5))
def test_one_of_several_texts_is_one_of_them(texts: set[bytes], other: bytes):
    automaton = Automaton(one_of(texts))
    assert all(reads(automaton, text) for text in texts)
    assert reads(automaton, other) == (other in texts)
