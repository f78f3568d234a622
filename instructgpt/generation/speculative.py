"""Speculative decoding: tokens are guessed ahead, and one forward of the model checks several at a time.

Row i's token number t is a function of the model's distribution and of the row's own random number t (`sampling.draw`
inverts the cumulative distribution). So a guess is checked by choosing as always, after the guesses before it, and
looking whether that is what was guessed: the tokens are those of the model alone, one by one, and not in distribution
only, as where a guess is accepted by chance (Leviathan, Kalman & Matias 2023; Chen et al. 2023).

    LookUp      what followed the same words before (Saxena 2023, prompt look-up decoding)
    DraftModel  a smaller model of the same tokenizer; it draws with the very number that the model will draw with, for
                then the two agree as often as two draws can

Whether that pays depends on text, batch and machine: it is measured, seconds a token with guesses and without.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from instructgpt.errors import UserError
from instructgpt.generation.blocks import Pool
from instructgpt.generation.decoding import Decoder
from instructgpt.generation.row import Row
from instructgpt.generation.scheduler import Work
from instructgpt.model.transformer import Transformer
from instructgpt.text.tokenizer import Tokenizer


class Guesser(Protocol):
    def guess(self, rows: Sequence[Row], most: Sequence[int]) -> list[list[int]]:
        """Up to `most` tokens that may come next, for each row; none where there is nothing to go by."""
        ...


class LookUp:
    """Guesses what came after the last words the last time."""

    LONGEST = 3
    """Tokens that are looked for, or fewer where so many were not there before."""

    def __init__(self) -> None:
        self._seen: dict[Row, tuple[int, dict[tuple[int, ...], int]]] = {}
        """By row: how many of its tokens were read, and for each few of them where what follows begins."""

    def guess(self, rows: Sequence[Row], most: Sequence[int]) -> list[list[int]]:
        self._seen = {row: self._seen.get(row, (0, {})) for row in rows}
        return [self._of(row, count) for row, count in zip(rows, most)]

    def _of(self, row: Row, most: int) -> list[int]:
        read, places = self._seen[row]
        ids = row.ids
        # Up to the last token but one: after the last nothing is known yet.
        for end in range(max(read, 1), len(ids)):
            for length in range(1, min(self.LONGEST, end) + 1):
                places[tuple(ids[end - length : end])] = end
        self._seen[row] = len(ids), places
        for length in range(min(self.LONGEST, len(ids)), 0, -1):
            at = places.get(tuple(ids[-length:]))
            if at is not None:
                return ids[at : at + most]
        return []


class DraftModel:
    """Guesses what a smaller model would say."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, blocks: int, block_size: int, cell: int):
        """With as many blocks as the larger model has. Raises UserError where the tokenizer is not the model's."""
        if tokenizer.vocab_size > model.config.vocab_size:
            raise UserError(
                f"the draft model has {model.config.vocab_size} tokens and the tokenizer {tokenizer.vocab_size}: it "
                "must be a model of the same tokenizer"
            )
        self._tokenizer, self._context = tokenizer, model.config.context
        self._decoder = Decoder(model, tokenizer, blocks, block_size)
        self._pool = Pool(blocks, block_size, cell, keeps_prefixes=False)
        self._shadows: dict[Row, Row] = {}
        """What stands in the cache here, by row."""

    def guess(self, rows: Sequence[Row], most: Sequence[int]) -> list[list[int]]:
        for row in [row for row in self._shadows if not row.is_running]:
            self._pool.release(self._shadows.pop(row).table)
        wanted: list[tuple[Row, int]] = []
        for row, count in zip(rows, most):
            count = min(count, self._context - len(row.ids))
            shadow = self._shadow(row)
            if count > 0 and self._pool.grow(shadow.table, len(row.ids) + count):
                wanted.append((shadow, len(row.ids) + count))
        while reading := [(shadow, end) for shadow, end in wanted if len(shadow.ids) < end]:
            work = [Work(shadow, shadow.cached, shadow.ids[shadow.cached :], 1) for shadow, _ in reading]
            work.sort(key=lambda each: (len(each.ids), each.row.table.runs[-1][0]))
            for each, token in zip(work, self._decoder.launch(work).read().tokens):
                each.row.cached = len(each.row.ids)
                each.row.ids.append(max(token, 0))
        return [self._shadows[row].ids[len(row.ids) :] for row in rows]

    def _shadow(self, row: Row) -> Row:
        """With the tokens that the row has now."""
        shadow = self._shadows.get(row)
        if shadow is None:
            request = replace(row.request, adapter="", logprobs=None, constraint=None)
            shadow = self._shadows[row] = Row(row.number, row.index, request, row.limit, self._tokenizer)
        pairs = enumerate(zip(shadow.ids, row.ids))
        same = next((i for i, (ours, theirs) in pairs if ours != theirs), min(len(shadow.ids), len(row.ids)))
        shadow.ids, shadow.cached = list(row.ids), min(shadow.cached, same, len(row.ids) - 1)
        return shadow


class Speculation:
    """Guesses where it pays."""

    ROUND = 64
    """Steps after which the other way is tried again."""
    TRIAL = 4
    """Steps that it is then tried for."""

    def __init__(self, guesser: Guesser, most: int, clock: Callable[[], float] = time.perf_counter):
        """most: tokens guessed ahead at a time."""
        self._guesser, self._most, self._clock = guesser, most, clock
        self._seconds_a_token: dict[bool, float] = {}
        """With guesses, and without; what is long past counts less."""
        self._step = 0
        self._began = 0.0
        self._is_timed = self._is_guessing = False

    @property
    def pays(self) -> bool:
        """As far as is known."""
        known = self._seconds_a_token
        return len(known) < 2 or known[True] <= known[False]

    def begin(self, rows: Sequence[Row]) -> None:
        """Before a step: gives the rows whose next token comes their guesses."""
        self._began = self._clock()
        at = self._step % self.ROUND
        self._is_guessing = self.pays if at >= 2 * self.TRIAL else at < self.TRIAL
        answering = [row for row in rows if row.cached + 1 == len(row.ids) and not row.branches]
        # Steps that read prompts say nothing about the two ways.
        self._is_timed = len(answering) == len(rows)
        if not self._is_guessing:
            return
        # What a constraint allows is known token by token.
        free = [row for row in answering if row.matcher is None]
        most = [min(self._most, row.limit - row.chosen - 1) for row in free]
        for row, drafts in zip(free, self._guesser.guess(free, most)):
            row.drafts = drafts

    def end(self, tokens: int, is_reading: bool) -> None:
        """After a step that gave so many tokens."""
        if not self._is_timed or is_reading or not tokens:
            return
        self._step += 1
        spent, way = (self._clock() - self._began) / tokens, self._is_guessing
        before = self._seconds_a_token.get(way, spent)
        self._seconds_a_token[way] = before + 0.2 * (spent - before)
