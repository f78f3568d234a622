"""One answer in the making."""

from __future__ import annotations

import torch

from instructgpt.generation.request import Finish, Request
from instructgpt.generation.stopping import StoppingText
from instructgpt.model.cache import Table
from instructgpt.text.tokenizer import Tokenizer


class Row:
    """What was asked for, what came of it so far, and where that stands in the cache.

    A prompt with several answers is a row of its own, with `branches`, until it is read.
    """

    def __init__(self, number: int, index: int, request: Request, limit: int, tokenizer: Tokenizer):
        """number: of the request; index: which of its answers; limit: most tokens to generate."""
        config = request.sampling
        self.number, self.index, self.request, self.limit = number, index, request, limit
        self.branches: list[Row] = []
        self.ids = list(request.ids)
        """The prompt, and what was generated."""
        self._prompt = len(request.ids)
        self.text = StoppingText(tokenizer, config.stop, request.raw)
        self._closing, self._stop_ids = tokenizer.closing, frozenset(config.stop_ids)
        self.matcher = None if request.constraint is None else request.constraint.start()
        self.numbers: list[float] = []
        """The random number that chooses each token; none when greedy."""
        if not config.greedy:
            generator = torch.Generator().manual_seed(config.seed + index)
            self.numbers = torch.rand(limit, generator=generator).tolist()
        self.finish: Finish | None = None
        # In the cache:
        self.table = Table()
        self.cached = 0
        """Tokens, the first of ids, whose keys are there."""
        self.node = self.kept = 0
        """The prefix of so many blocks, the first of the table, that others may find (`blocks.py`)."""
        self.is_running = self.was_admitted = False
        self.drafts: list[int] = []
        """Guesses of the tokens after `ids`."""

    @property
    def age(self) -> tuple[int, int]:
        return self.number, self.index

    @property
    def answers(self) -> int:
        return len(self.branches) or 1

    @property
    def is_plain(self) -> bool:
        """Its next token does not depend on what the host makes of the one before."""
        return not self.branches and self.matcher is None and not self.request.sampling.punishes

    @property
    def samples(self) -> list[Row]:
        """The answers whose next token follows this row's."""
        return self.branches or [self]

    @property
    def chosen(self) -> int:
        """Tokens generated so far."""
        return len(self.ids) - self._prompt

    @property
    def generated(self) -> list[int]:
        return self.ids[self._prompt :]

    @property
    def valid(self) -> bool | None:
        # A stop string is no part of the text, so what the matcher has read is not what stands there.
        return None if self.matcher is None else self.matcher.is_complete and not self.text.stopped

    def push(self, token: int) -> str:
        """The next token; gives the text that it makes certain, and sets `finish` where it is the last."""
        self.ids.append(token)
        text = ""
        if token in self._closing:
            self.text.push(token)
            self.finish = "end"
        elif token in self._stop_ids:
            self.finish = "stop"
        else:
            text = self.text.push(token)
            if self.matcher is not None:
                self.matcher.accept(token)
            if self.text.stopped:
                self.finish = "stop"
            elif self.chosen == self.limit:
                self.finish = "length" if self.limit == self.request.sampling.max_new_tokens else "context"
        return text + self.text.close() if self.finish else text
