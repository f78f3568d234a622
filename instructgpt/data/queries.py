"""Prompts to be answered and judged, not imitated: what reinforcement learning and rejection sampling read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, cast

from instructgpt import world
from instructgpt.data.account import Account, Unusable
from instructgpt.data.data_file import DataFile
from instructgpt.data.exchanges import Exchange, answered
from instructgpt.data.fields import Fields
from instructgpt.data.held_out import prompt_key, without
from instructgpt.data.instructions import KNOWN, conversation
from instructgpt.data.records import convert_files
from instructgpt.data.sources import Epochs
from instructgpt.data.templates import Templates
from instructgpt.errors import UserError
from instructgpt.text.chat import Message, render_prompt
from instructgpt.text.tokenizer import Tokenizer

_KNOWN = f"prompts without answers (prompt, messages, text), and those of instructions: {KNOWN}"


@dataclass(frozen=True)
class Query:
    """A prompt, with what is known of the right answer."""

    messages: list[Message]
    """It ends with the user's turn."""
    ids: list[int]
    """The same as tokens, up to where the assistant is to speak."""
    reference: str | None
    """The answer in the data; None where they have none, or only one that they call bad."""
    check: Callable[[str], float] | None = None
    """The true reward of an answer, in [0, 1]; None where only the world could know, and the prompt is not its."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Further fields of its record, for reward functions that ask for them."""


class QuerySource(Protocol):
    """An endless sequence of queries, pure in the index."""

    def __getitem__(self, index: int, /) -> Query: ...


class WorldQueries:
    """Prompts of the instruction world, each with its checker; none that is held out (`held_out.prompt_key`)."""

    def __init__(self, split: str, tokenizer: Tokenizer, seed: int = 0, held: Collection[str] = ()):
        self._tokenizer = tokenizer
        self._example = without(partial(world.example, split, seed=seed), lambda each: prompt_key(each.messages), held)

    def __getitem__(self, index: int) -> Query:
        example = self._example(index)
        messages = cast("list[Message]", example.messages)
        return Query(messages, render_prompt(messages, self._tokenizer), example.answer, example.check)


class FileQueries:
    """Prompts held in memory; every epoch is all of them in a new order. UserError when there is none."""

    def __init__(self, queries: Sequence[Query], seed: int = 0):
        if not queries:
            raise UserError("there is no prompt to use")
        self._queries = list(queries)
        self._epochs = Epochs(lambda epoch: len(self._queries), seed, shuffle=True)

    def __len__(self) -> int:
        return len(self._queries)

    def __getitem__(self, index: int) -> Query:
        return self._queries[self._epochs.locate(index).item]


@dataclass(frozen=True)
class _Asked:
    """What a record asks, and all that it holds: the first alone says whether two are the same."""

    exchange: Exchange
    fields: dict[str, Any] = field(repr=False)


def _asked(files: Iterable[DataFile | str], account: Account, strict: bool) -> Iterator[_Asked]:
    """The prompts of files, with what there is of answers."""

    def asked(record: Fields, templates: Templates) -> list[_Asked | Unusable]:
        found = answered(record, templates, account, _KNOWN, needs_answer=False)
        return [one if isinstance(one, Unusable) else _Asked(one, record.values) for one in found]

    return convert_files(files, account, strict, asked, unique=True)


def read_questions(file: DataFile | str, account: Account, strict: bool = False) -> Iterator[list[Message]]:
    """The conversations of a file up to their last answer, as `read_instructions` gives them; what has no answer is a
    prompt alone, which ends with the user's turn."""

    def questions(record: Fields, templates: Templates) -> Iterator[list[Message] | Unusable]:
        for exchange in answered(record, templates, account, _KNOWN, needs_answer=False):
            if isinstance(exchange, Unusable):
                yield exchange
                continue
            found = conversation(exchange, record, account)
            yield exchange.prompt if isinstance(found, Unusable) and not exchange.is_bad else found

    return convert_files([file], account, strict, questions)


def read_queries(
    files: Sequence[DataFile | str],
    tokenizer: Tokenizer,
    longest: int,
    strict: bool = False,
    seen: set[int] | None = None,
) -> tuple[list[Query], Account]:
    """The prompts of files, without the answer if there is one; those of more than `longest` tokens are left out.

    seen: what other files have brought already, as an `Account` keeps it.
    Raises UserError as `read_instructions`, and when every prompt is too long.
    """
    account = Account(DataFile.of(files[0]).path if len(files) == 1 else f"{len(files)} files", seen)
    queries = []
    for asked in _asked(files, account, strict):
        exchange = asked.exchange
        ids = render_prompt(exchange.prompt, tokenizer)
        if len(ids) <= longest:
            reference = exchange.answers[0] if exchange.answers and exchange.learn and not exchange.is_bad else None
            queries.append(Query(exchange.prompt, ids, reference, fields=asked.fields))
    too_long = account.kept - len(queries)
    if too_long:
        account.notes[f"prompt of more than {longest} tokens, left out"] += too_long
    if too_long and not queries:
        raise UserError(f"every prompt has more than {longest} tokens, which leaves no room to answer", account.name)
    return queries, account
