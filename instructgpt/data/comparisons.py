"""Compared answers as batches: all answers to a prompt in one batch, packed into rows where they do not see each other.

Ranking (texts, the best first) -> Ranked (tokens) -> ComparisonBatch (rows, and which answer beats which)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from instructgpt import world
from instructgpt.data.batch import Batch, moved
from instructgpt.data.held_out import prompt_key, without
from instructgpt.data.packing import collate
from instructgpt.data.preferences import Ranking
from instructgpt.data.sources import Epochs
from instructgpt.data.tokens import Tokens
from instructgpt.data.windows import FittedPrompt, fit_prompt
from instructgpt.errors import UserError
from instructgpt.text.chat import Message, render_answer, validate_messages
from instructgpt.text.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False, slots=True)
class Ranked:
    """The answers to one prompt as tokens, the best first: each is the prompt, the answer and its `end` token.

    Only the answer and its `end` are targets. One answer alone is compared with nothing, but can be scored.
    """

    answers: tuple[Tokens, ...]


@dataclass(frozen=True)
class Pairs:
    """Which answer of a batch beats which; every tensor is (P,)."""

    better: Tensor
    """Number of the better answer, int64."""
    worse: Tensor
    """Number of the worse one, int64."""
    weight: Tensor
    """1 / C(K, 2) for a prompt with K answers, so that every prompt weighs 1; float32."""


@dataclass(frozen=True)
class ComparisonBatch:
    """Answers in packed rows, numbered from 0 to S - 1, and the pairs of them that are compared."""

    rows: Batch
    """(B, T); the last token of an answer is among the inputs, for that is where a reward is read."""
    answers: Tensor
    """(B, T) int64: number of the answer that a token belongs to; -1 in padding."""
    last: Tensor
    """(S,) int64: where the last token of each answer is, in the rows laid end to end."""
    pairs: Pairs

    @property
    def tokens(self) -> Tensor:
        """Tokens that are not padding, a scalar."""
        return self.rows.tokens

    @property
    def lengths(self) -> Tensor:
        """(S,) tokens of each answer, its `end` included."""
        answers = self.rows.at_targets(self.answers)
        return torch.zeros_like(self.last).index_add(0, answers, torch.ones_like(answers))

    def to(self, device: torch.device) -> ComparisonBatch:
        return moved(self, device)


class RankedSource(Protocol):
    """An endless sequence of rankings, pure in the index."""

    def __getitem__(self, index: int, /) -> Ranked: ...


class WorldPreferences:
    """Pairs of the instruction world, its kinds of fault taking turns; none on a prompt that is held out."""

    def __init__(self, split: str, tokenizer: Tokenizer, context: int, seed: int = 0, held: Collection[str] = ()):
        self._tokenizer, self._context = tokenizer, context
        self.pair = without(partial(world.preference, split, seed=seed), lambda pair: prompt_key(pair.messages), held)

    def __getitem__(self, index: int) -> Ranked:
        pair = self.pair(index)
        messages: Any = pair.messages  # the world's messages are plain dictionaries
        return tokenized(messages, (pair.chosen, pair.rejected), self._tokenizer, self._context)


class Rankings:
    """Rankings held in memory. Every epoch is all of them in a new order. Raises UserError when there is none."""

    def __init__(self, items: Iterable[Ranked], seed: int = 0):
        self._items = list(items)
        if not self._items:
            raise UserError("there is no comparison to use")
        self._epochs = Epochs(lambda epoch: len(self._items), seed, shuffle=True)

    def __len__(self) -> int:
        """Rankings in an epoch."""
        return len(self._items)

    def __getitem__(self, index: int) -> Ranked:
        return self._items[self._epochs.locate(index).item]


def tokenized(messages: list[Message], answers: Sequence[str], tokenizer: Tokenizer, context: int) -> Ranked:
    """Answers to one prompt as tokens, each at most `context` long; see `fit`."""
    return fit(messages, answers, tokenizer, context).ranked


class FittedComparison(NamedTuple):
    """A comparison made to fit, and what that cost."""

    ranked: Ranked
    prompt: FittedPrompt
    cut_answers: int
    """Answers that lost their tail, and their `end` with it."""


def fit(messages: list[Message], answers: Sequence[str], tokenizer: Tokenizer, context: int) -> FittedComparison:
    """Answers to one prompt as tokens, each at most `context` long.

    What is too long loses the front of its prompt (`fit_prompt`), the same for all answers, but no more than down to
    half of the context; then an answer loses its tail, and its `end` with it.
    """
    validate_messages(messages)
    bodies = [render_answer(answer, tokenizer) for answer in answers]
    prompt = fit_prompt(messages, tokenizer, max(context - max(map(len, bodies)), context // 2))
    room = context - len(prompt.ids)
    ranked = Ranked(tuple(_answer_tokens(prompt.ids, body[:room]) for body in bodies))
    return FittedComparison(ranked, prompt, sum(len(body) > room for body in bodies))


def _answer_tokens(prompt: list[int], answer: list[int]) -> Tokens:
    ids = np.array(prompt + answer, dtype=np.int32)
    return Tokens(ids, np.arange(len(ids)) >= len(prompt))


def tokenized_all(
    rankings: Sequence[Ranking], tokenizer: Tokenizer, context: int, long: Literal["cut", "drop"] = "cut"
) -> tuple[list[Ranked], str]:
    """Rankings as tokens, and a line that says what did not fit; "" when all of it did.

    long: `drop` leaves out what would have to be cut. Answers that are equal once cut have nothing to compare: their
    ranking is left out.
    """
    kept: list[Ranked] = []
    left_out = turns = fronts = tails = equal = 0
    for ranking in rankings:
        ranked, prompt, cut_answers = fit(ranking.messages, ranking.answers, tokenizer, context)
        if long == "drop" and (prompt.is_cut or cut_answers):
            left_out += 1
        elif len({tokens.ids.tobytes() for tokens in ranked.answers}) < len(ranked.answers):
            equal += 1
        else:
            turns, fronts, tails = (
                turns + (prompt.lost_turns > 0),
                fronts + (prompt.lost_tokens > 0),
                tails + cut_answers,
            )
            kept.append(ranked)
    costs = (
        (left_out, "were left out"),
        (turns, "lost their earliest turns"),
        (fronts, "lost the front of their prompt"),
        (tails, "answer(s) lost their tail"),
        (equal, "were left out, because what is left of their answers is equal"),
    )
    told = ", ".join(f"{count:,} {what}" for count, what in costs if count)
    return kept, told and f"of {len(rankings):,} comparisons, to fit in {context:,} tokens: {told}"


def collate_comparisons(rankings: Sequence[Ranked], context: int) -> ComparisonBatch:
    """Rankings as one batch: answers are numbered in order, and packed into as few rows of `context` as it takes.

    Raises ValueError when an answer has more than `context` tokens.
    """
    documents = [tokens for ranked in rankings for tokens in ranked.answers]
    rows = _packed([len(tokens) for tokens in documents], context)
    batch = collate([[_with_last(documents[number]) for number in row] for row in rows], context)
    numbers = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)  # of the answers in each row
    last = torch.zeros(len(documents), dtype=torch.int64)
    for place, row in enumerate(rows):
        numbers[place, : len(row)] = torch.tensor(row)
        ends = np.cumsum([len(documents[number]) for number in row])
        last[row] = place * context + torch.from_numpy(ends) - 1
    answers = numbers.gather(1, batch.documents.clamp(min=0)).masked_fill(batch.documents < 0, -1)
    return ComparisonBatch(batch, answers, last, _pairs([len(ranked.answers) for ranked in rankings]))


def _packed(lengths: Sequence[int], context: int) -> list[list[int]]:
    """Which documents share a row: first-fit, the longest first (Johnson 1973)."""
    rows: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        place = next((i for i, left in enumerate(room) if left >= lengths[number]), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(context)
        rows[place].append(number)
        room[place] -= lengths[number]
    return rows


def _with_last(tokens: Tokens) -> Tokens:
    """With a token more that is no target: `collate` makes inputs of all but the last, and the `end` is to be one."""
    return Tokens(np.append(tokens.ids, tokens.ids[-1]), np.append(tokens.is_target, False))


def _pairs(counts: Sequence[int]) -> Pairs:
    """All comparisons within each ranking of so many answers, which follow each other."""
    found: list[tuple[int, int, float]] = []
    first = 0
    for count in counts:
        found += [
            (first + better, first + worse, 2 / (count * (count - 1)))
            for better, worse in combinations(range(count), 2)
        ]
        first += count
    better, worse, weight = zip(*found) if found else ((), (), ())
    return Pairs(
        torch.tensor(better, dtype=torch.int64), torch.tensor(worse, dtype=torch.int64), torch.tensor(weight)
    )  # fmt: skip


class ComparisonStream:
    """An endless stream of batches of `prompts` rankings each, in the source's order (a `BatchStream`)."""

    def __init__(self, source: RankedSource, context: int, prompts: int):
        if prompts < 1:
            raise ValueError(f"prompts is {prompts}; it must be at least 1")
        self._source, self._context, self._prompts = source, context, prompts
        self._next_index = 0

    def __iter__(self) -> Iterator[ComparisonBatch]:
        return self

    def __next__(self) -> ComparisonBatch:
        indices = range(self._next_index, self._next_index + self._prompts)
        self._next_index = indices.stop
        return collate_comparisons([self._source[index] for index in indices], self._context)

    def state(self) -> dict[str, Any]:
        return {"next_index": self._next_index}

    def restore(self, state: dict[str, Any]) -> None:
        self._next_index = state["next_index"]


def comparison_batches(items: Sequence[Ranked], context: int, prompts: int) -> Iterator[ComparisonBatch]:
    """One pass over `items`, in order; the last batch may be smaller."""
    for start in range(0, len(items), prompts):
        yield collate_comparisons(items[start : start + prompts], context)
