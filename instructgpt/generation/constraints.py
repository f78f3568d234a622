"""What an answer must be like: JSON, JSON by a schema, a regular expression, one of several texts.

A constraint is an automaton over bytes (`grammar.py`). What may come next is found by reading every token of the
vocabulary from the state that is reached, all of them at once along a tree of their beginnings (Willard and Louf 2023),
and is kept by state. So an answer is in the language, or a beginning of a text in it that was cut off; the tokens that
close an answer may come where it is whole, and only there.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from instructgpt.errors import UserError
from instructgpt.generation.grammar import Automaton, Expression, one_of
from instructgpt.generation.json_grammar import any_json
from instructgpt.generation.json_schema import json_schema
from instructgpt.generation.regex import parse_regex
from instructgpt.text.tokenizer import Tokenizer

Kind = Literal["json", "schema", "regex", "choices"]
_KEPT_MASKS = 1024
"""Most states of a constraint whose tokens are remembered; each takes a bit a token."""
_KEPT_STATES = 20_000
"""An automaton that has made more begins anew with the next answer."""
_LONGEST = 100_000
"""Characters of a constraint."""


def any_json_constraint(tokenizer: Tokenizer, raw: bool = False) -> Guide:
    """The answer is a JSON value. raw: of a text to go on with, not of an answer in a conversation."""
    return _guide("json", "", tokenizer, raw)


def schema_constraint(schema: dict[str, Any] | bool | str, tokenizer: Tokenizer, raw: bool = False) -> Guide:
    """The answer is JSON that a schema allows, given as JSON's text or what it says; see `json_schema.py`.

    Raises UserError where it is no schema, says what cannot be kept, cannot be met or would never end.
    """
    if not isinstance(schema, str):
        try:
            schema = json.dumps(schema)
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"the schema is no JSON: {error}") from None
    return _guide("schema", schema, tokenizer, raw)


def regex_constraint(pattern: str, tokenizer: Tokenizer, raw: bool = False) -> Guide:
    """The whole answer matches a regular expression. Raises UserError for one that is wrong or not supported."""
    return _guide("regex", pattern, tokenizer, raw)


def choice_constraint(choices: Sequence[str], tokenizer: Tokenizer, raw: bool = False) -> Guide:
    """The answer is one of these texts, none of them empty."""
    if isinstance(choices, str) or not choices or not all(isinstance(each, str) and each for each in choices):
        raise UserError(f"choices is {choices!r:.60}; it must be a list of texts, none of them empty")
    return _guide("choices", json.dumps(list(choices)), tokenizer, raw)


@lru_cache(maxsize=64)
def _guide(kind: Kind, said: str, tokenizer: Tokenizer, raw: bool) -> Guide:
    return Guide(_expression(kind, said), tokenizer, raw)


def _expression(kind: Kind, said: str) -> Expression:
    if len(said) > _LONGEST:
        raise UserError(f"the {kind} has {len(said):,} characters; {_LONGEST:,} are allowed")
    if kind == "json":
        return any_json()
    if kind == "regex":
        return parse_regex(said)
    try:
        value = json.loads(said, parse_constant=_refused)
        if kind == "schema":
            return json_schema(value)
        return one_of([each.encode() for each in value])
    except UnicodeEncodeError:
        raise UserError(f"the {kind} has half a character, which no UTF-8 can hold") from None
    except json.JSONDecodeError as error:
        raise UserError(f"the schema is no JSON: {error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise UserError("the schema is nested too deep") from None


def _refused(constant: str) -> None:
    raise UserError(f"the schema has {constant}, which is no JSON")


class Guide:
    """A constraint for the tokens of one tokenizer; for one thread at a time."""

    def __init__(self, expression: Expression, tokenizer: Tokenizer, raw: bool = False):
        """Raises UserError where no answer meets it."""
        self._expression, self.vocabulary = expression, _vocabulary(tokenizer)
        self.closing = sorted(tokenizer.closing)
        self._skips_space = tokenizer.stream("rest" if raw else "answer").has_space
        self._masks: OrderedDict[int, np.ndarray] = OrderedDict()
        self._automaton = self._new_automaton()

    def _new_automaton(self) -> Automaton:
        return Automaton(self._expression, self.vocabulary.alphabet, self._skips_space)

    def start(self) -> GuidedAnswer:
        """A new answer."""
        if len(self._automaton) > _KEPT_STATES:
            self._automaton = self._new_automaton()
            self._masks = OrderedDict()  # answers on their way keep theirs
        return GuidedAnswer(self, self._automaton, self._masks)


class GuidedAnswer:
    """One answer on its way through a constraint."""

    def __init__(self, guide: Guide, automaton: Automaton, masks: OrderedDict[int, np.ndarray]):
        self._guide, self._automaton, self._masks = guide, automaton, masks
        self._state = automaton.start

    @property
    def is_complete(self) -> bool:
        """What was accepted so far is a whole answer, to which nothing need be added."""
        return self._automaton.accepts(self._state)

    def allow(self, may_follow: Tensor) -> None:
        """Writes into `may_follow` (V,), bool on the CPU: True where the token may come next. Those that close an
        answer may where it is complete, and alone where nothing can be added, or nothing can be spelt any more."""
        text = self._text_tokens()
        may_follow.zero_()
        may_follow[: len(text)] = torch.from_numpy(text)
        if self.is_complete or not text.any():
            may_follow[self._guide.closing] = True

    def _text_tokens(self) -> np.ndarray:
        packed = self._masks.get(self._state)
        if packed is not None:
            self._masks.move_to_end(self._state)
            return np.unpackbits(packed, count=len(self._guide.vocabulary.tokens)).view(bool)
        found = self._guide.vocabulary.read(self._automaton, self._state)
        self._masks[self._state] = np.packbits(found)
        if len(self._masks) > _KEPT_MASKS:
            self._masks.popitem(last=False)
        return found

    def accept(self, token: int) -> None:
        """The next token, one of those allowed. Raises ValueError for another."""
        if token in self._guide.closing:
            return
        data = self._guide.vocabulary.tokens[token]
        state = self._automaton.read(self._state, data)
        if state < 0 or not data:
            raise ValueError(f"token {token} may not come here")
        self._state = state


# ---- the vocabulary as a tree


class _Level(NamedTuple):
    """The beginnings of one length that tokens have, N of them."""

    before: np.ndarray
    """(N,), each one's beginning a byte shorter, by its place on the level before."""
    byte: np.ndarray
    """(N,), its last byte."""
    whole: np.ndarray
    """(M,), places of those that are tokens; several tokens may be one text."""
    tokens: np.ndarray
    """(M,), which."""


class _Vocabulary:
    """A tokenizer's tokens by their bytes."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.alphabet = 0
        """The bytes that are tokens by themselves, as a mask: what consists of them can be spelt."""
        for data in self.tokens:
            if len(data) == 1:
                self.alphabet |= 1 << data[0]
        self._levels = self._tree()

    def _tree(self) -> list[_Level]:
        levels: list[_Level] = []
        place = dict.fromkeys((i for i, data in enumerate(self.tokens) if data), 0)  # of each token on the level before
        length = 0
        while place:
            found: dict[tuple[int, int], int] = {}
            here = {i: found.setdefault((before, self.tokens[i][length]), len(found)) for i, before in place.items()}
            length += 1
            ends = [i for i in here if len(self.tokens[i]) == length]
            pairs = np.array(list(found), dtype=np.int64)
            levels.append(_Level(pairs[:, 0], pairs[:, 1], np.array([here[i] for i in ends], dtype=np.int64),
                                 np.array(ends, dtype=np.int64)))  # fmt: skip
            place = {i: at for i, at in here.items() if len(self.tokens[i]) > length}
        return levels

    def read(self, automaton: Automaton, state: int) -> np.ndarray:
        """(V,) bool, the tokens that lead somewhere from this state."""
        found = np.zeros(len(self.tokens), dtype=bool)
        states = np.array([state])
        for level in self._levels:
            before = states[level.before]
            alive = np.flatnonzero(before >= 0)
            if not len(alive):
                break
            before = before[alive]
            table = automaton.known(np.unique(before).tolist())
            states = np.full(len(level.before), -1, dtype=np.int64)
            states[alive] = table[before, level.byte[alive]]
            found[level.tokens] = states[level.whole] >= 0
        return found


@lru_cache(maxsize=8)
def _vocabulary(tokenizer: Tokenizer) -> _Vocabulary:
    return _Vocabulary(tokenizer)
