"""Languages over bytes: expressions, and the automaton that reads them.

An expression is made of bytes, sequences, choices and repetitions, and of rules that may name themselves: what regular
expressions and JSON need, and no more. The automaton has a stack of expressions yet to come for each way in which what
was read can go on; the set of these stacks is its state. States and their transitions are made when they are first
asked for (a lazy subset construction), so neither a count of 10,000 nor endless nesting is ever unrolled.

What cannot be completed is left out beforehand: from every state the automaton hands out, an end can be reached.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from instructgpt.errors import UserError


class Expression:
    """Compared by identity: one that is used in several places is one object."""


@dataclass(frozen=True, eq=False)
class Bytes(Expression):
    """One byte of a set."""

    mask: int
    """Bit b is set where byte b is in it."""


@dataclass(frozen=True, eq=False)
class Sequence(Expression):
    parts: tuple[Expression, ...]


@dataclass(frozen=True, eq=False)
class Choice(Expression):
    options: tuple[Expression, ...]


@dataclass(frozen=True, eq=False)
class Repeat(Expression):
    part: Expression
    least: int
    most: int | None
    """None: any number."""


@dataclass(eq=False)
class Rule(Expression):
    """An expression that can occur within itself, behind a byte; its body is set once it is known."""

    body: Expression | None = None


EMPTY = Sequence(())
NEVER = Choice(())


def span(low: int, high: int) -> Bytes:
    """One byte from `low` to `high`."""
    return Bytes((1 << (high + 1)) - (1 << low))


def literal(text: str | bytes) -> Expression:
    data = text.encode() if isinstance(text, str) else text
    return Sequence(tuple(span(byte, byte) for byte in data))


def sequence(*parts: Expression) -> Expression:
    return Sequence(parts)


def choice(*options: Expression) -> Expression:
    return options[0] if len(options) == 1 else Choice(options)


def optional(part: Expression) -> Expression:
    return Choice((EMPTY, part))


def one_of(texts: Iterable[bytes]) -> Expression:
    """One of these texts; what several begin with is read once."""

    def after(texts: list[bytes], at: int) -> Expression:
        options: list[Expression] = []
        while texts:
            head = texts[0][: at + 1]
            if len(head) == at:  # this one ends here
                options.append(EMPTY)
                texts = texts[1:]
                continue
            together = [text for text in texts if text.startswith(head)]
            shared = _shared(together[0], together[-1])
            options.append(Sequence((literal(together[0][at:shared]), after(together, shared))))
            texts = texts[len(together) :]
        return choice(*options)

    return after(sorted(set(texts)), 0)


def _shared(a: bytes, b: bytes) -> int:
    """How many bytes both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


_MOST_STACKS = 1000
"""A state of more is not made: what would lead there may not follow. It takes (a?){1000} to need it."""
_TOO_MANY = frozenset(range(-1, -_MOST_STACKS - 2, -1))
_DEAD, _UNKNOWN = -1, -2


class Automaton:
    """Reads bytes of a language. A state is a number; -1 is what leads nowhere.

    Raises UserError where nothing is in the language, or where it takes too many stacks to follow.
    """

    def __init__(self, root: Expression, alphabet: int = (1 << 256) - 1, skips_space: bool = False):
        """alphabet: the bytes there are, as a mask. skips_space: whether one space in front is no part of a text."""
        self._alphabet = alphabet
        self._productive = _productive(root, alphabet)
        if root not in self._productive:
            raise UserError("nothing meets it, or what would never ends")
        self._stacks: list[tuple[Expression, int]] = [(EMPTY, 0)]  # stack 0 is the empty one: all was read
        self._stack_numbers: dict[tuple[Expression, int], int] = {}
        self._counted: dict[tuple[Expression, int, int | None], Repeat] = {}
        self._heads: dict[int, frozenset[int]] = {}
        self._states: list[frozenset[int]] = []
        self._numbers: dict[frozenset[int], int] = {}
        self.table = np.full((64, 256), _UNKNOWN, dtype=np.int32)
        """(states, 256), the state after each byte; rows are filled by `known`."""
        heads = self._heads_of(self._push(root, 0))
        if skips_space:
            heads = self._after_space(root, heads)
        self.start = self._number(heads)
        if self.start == _DEAD:
            raise UserError("it can be met in too many ways at once")
        self._check_ambiguity()

    def __len__(self) -> int:
        return len(self._states)

    def accepts(self, state: int) -> bool:
        """Whether what was read is in the language."""
        return state >= 0 and 0 in self._states[state]

    def known(self, states: Iterable[int]) -> np.ndarray:
        """`table`, with the rows of these states filled."""
        for state in states:
            if self.table[state, 0] == _UNKNOWN:
                row = self._row(state)
                self.table[state] = row
        return self.table

    def read(self, state: int, data: bytes) -> int:
        """The state after these bytes."""
        for byte in data:
            if state < 0:
                break
            state = int(self.known((state,))[state, byte])
        return state

    # ---- stacks

    def _push(self, part: Expression, rest: int) -> int:
        key = (part, rest)
        number = self._stack_numbers.get(key)
        if number is None:
            number = self._stack_numbers[key] = len(self._stacks)
            self._stacks.append(key)
        return number

    def _heads_of(self, stack: int) -> frozenset[int]:
        """The stacks with a byte on top that this one can become without reading; 0 where it can become empty."""
        found = self._heads.get(stack)
        if found is not None:
            return found
        heads: set[int] = set()
        seen, waiting = {stack}, [stack]

        def visit(number: int) -> None:
            if number not in seen:
                seen.add(number)
                waiting.append(number)

        while waiting:
            if len(heads) > _MOST_STACKS or len(seen) > 10 * _MOST_STACKS:
                heads = set(_TOO_MANY)
                break
            number = waiting.pop()
            part, rest = self._stacks[number]
            if number == 0 or isinstance(part, Bytes):
                heads.add(number)
            elif isinstance(part, Sequence):
                for each in reversed(part.parts):
                    rest = self._push(each, rest)
                visit(rest)
            elif isinstance(part, Choice):
                for option in part.options:
                    if option in self._productive:
                        visit(self._push(option, rest))
            elif isinstance(part, Repeat):
                if part.least == 0:
                    visit(rest)
                if part.most != 0 and part.part in self._productive:
                    visit(self._push(part.part, self._push(self._once_less(part), rest)))
            elif isinstance(part, Rule) and part.body in self._productive:
                visit(self._push(part.body, rest))
        found = self._heads[stack] = frozenset(heads)
        return found

    def _once_less(self, part: Repeat) -> Repeat:
        if part.least == 0 and part.most is None:
            return part
        key = part.part, max(part.least - 1, 0), part.most and part.most - 1
        return self._counted.setdefault(key, Repeat(*key))

    def _after_space(self, root: Expression, heads: frozenset[int]) -> frozenset[int]:
        """Heads of a text with a space in front of it, or of one that does not begin with a space itself."""
        space = 1 << ord(" ")
        without = {0} & heads
        for head in heads - {0}:
            part, rest = self._stacks[head]
            assert isinstance(part, Bytes)
            if part.mask & ~space:
                without.add(self._push(Bytes(part.mask & ~space), rest))
        has_space = self._alphabet & space
        return frozenset(without) | (
            self._heads_of(self._push(literal(" "), self._push(root, 0))) if has_space else set()
        )

    # ---- states

    def _number(self, heads: frozenset[int]) -> int:
        if not heads or len(heads) > _MOST_STACKS:
            return _DEAD
        number = self._numbers.get(heads)
        if number is None:
            number = self._numbers[heads] = len(self._states)
            self._states.append(heads)
            if number == len(self.table):
                self.table = np.concatenate([self.table, np.full_like(self.table, _UNKNOWN)])
        return number

    def _classes(self, state: int) -> list[tuple[int, list[int]]]:
        """Bytes that lead to the same, as masks, and the stacks that they lead to."""
        classes: list[tuple[int, list[int]]] = [(self._alphabet, [])]
        for head in self._states[state] - {0}:
            part, rest = self._stacks[head]
            assert isinstance(part, Bytes)
            split: list[tuple[int, list[int]]] = []
            for mask, stacks in classes:
                if inside := mask & part.mask:
                    split.append((inside, [*stacks, rest]))
                if outside := mask & ~part.mask:
                    split.append((outside, stacks))
            classes = split
        return [(mask, stacks) for mask, stacks in classes if stacks]

    def _after(self, stacks: list[int]) -> frozenset[int]:
        return frozenset().union(*map(self._heads_of, stacks))

    def _row(self, state: int) -> np.ndarray:
        row = np.full(256, _DEAD, dtype=np.int32)
        for mask, stacks in self._classes(state):
            bits = np.unpackbits(np.frombuffer(mask.to_bytes(32, "little"), dtype=np.uint8), bitorder="little")
            row[bits.astype(bool)] = self._number(self._after(stacks))
        return row

    def _check_ambiguity(self, steps: int = 64) -> None:
        """Reads what takes the most stacks, a few steps far."""
        state = self.start
        for _ in range(steps):
            after = max((self._after(stacks) for _, stacks in self._classes(state)), key=len, default=frozenset())
            if len(after) > _MOST_STACKS:
                raise UserError("it can be met in too many ways at once")
            if not after:
                return
            state = self._number(after)


def _productive(root: Expression, alphabet: int) -> set[Expression]:
    """The expressions within `root` that some text of these bytes meets."""
    everything: list[Expression] = []
    seen: set[Expression] = {root}
    waiting = [root]
    while waiting:
        each = waiting.pop()
        everything.append(each)
        for part in _parts(each):
            if part not in seen:
                seen.add(part)
                waiting.append(part)
    found: set[Expression] = set()
    everything.reverse()  # parts come mostly before the whole, so that few rounds suffice
    grows = True
    while grows:
        grows = False
        for each in everything:
            if each not in found and _is_met(each, found, alphabet):
                found.add(each)
                grows = True
    return found


def _parts(each: Expression) -> tuple[Expression, ...]:
    if isinstance(each, Sequence):
        return each.parts
    if isinstance(each, Choice):
        return each.options
    if isinstance(each, Repeat):
        return (each.part,)
    return (each.body,) if isinstance(each, Rule) and each.body is not None else ()


def _is_met(each: Expression, found: set[Expression], alphabet: int) -> bool:
    if isinstance(each, Bytes):
        return each.mask & alphabet != 0
    if isinstance(each, Choice):
        return any(option in found for option in each.options)
    if isinstance(each, Repeat) and (each.least == 0 or each.most == 0):
        return each.least == 0
    return all(part in found for part in _parts(each)) and not (isinstance(each, Rule) and each.body is None)
