"""Who computes what in the next step: first come, first served.

Answers on their way come first, each with its next token, then what is left of the step's budget of tokens goes to
prompts, a piece at a time, those begun before those waiting. Where blocks run out, the youngest answer gives back its
own and waits, to be computed again from the tokens that it has; the oldest always goes on, so every answer ends.
"""

from __future__ import annotations

from bisect import insort
from typing import NamedTuple

from instructgpt.generation.blocks import Pool
from instructgpt.generation.row import Row
from instructgpt.model.cache import Table


class Work(NamedTuple):
    """What one step computes of a row."""

    row: Row
    start: int
    """The first token's place in its sequence."""
    ids: list[int]
    chosen: int
    """So many of the last tokens are followed by one that is to be chosen; 0 where a prompt's end is not reached."""


class Scheduler:
    def __init__(self, pool: Pool, tokens_per_step: int, max_rows: int):
        self.pool, self.tokens_per_step, self.max_rows = pool, tokens_per_step, max_rows
        self.running: list[Row] = []
        """The oldest first."""
        self.waiting: list[Row] = []
        self.answers = 0
        """On their way, those counted that a running prompt will have."""
        self.preempted = self.prefix_hits = 0

    def add(self, row: Row) -> None:
        insort(self.waiting, row, key=lambda row: row.age)

    def drop(self, row: Row) -> None:
        """It is finished, or not wanted any more."""
        if row.is_running:
            self._stop(row)
        else:
            self.waiting.remove(row)

    def plan(self) -> list[Work]:
        """The next step: rows with one token first, in the order of their places in memory."""
        budget = self.tokens_per_step
        work: list[Work] = []
        preempted = self.preempted
        answering = [row for row in self.running if row.cached + 1 == len(row.ids)]
        reading = (
            [row for row in self.running if row.cached + 1 < len(row.ids)] if len(answering) < len(self.running) else []
        )
        for row in [*answering, *reading]:
            if row.is_running and budget > 0:
                if row.drafts and not self.pool.grow(row.table, len(row.ids) + len(row.drafts)):
                    row.drafts = []  # nobody gives way to a guess
                count = min(len(row.ids) - row.cached + len(row.drafts), budget)
                if self._has_room(row, row.cached + count):
                    work.append(self._work(row, count))
                    budget -= count
        while self.waiting and budget > 0 and preempted == self.preempted:
            row = self.waiting[0]
            if not self._admit(row):
                break
            count = min(len(row.ids) - row.cached, budget)
            work.append(self._work(row, count))
            budget -= count
        work = [each for each in work if each.row.is_running]  # others were preempted for those before them
        work.sort(key=lambda each: (len(each.ids), each.row.table.runs[-1][0]))
        return work

    def plan_ahead(self, work: list[Work]) -> list[Work]:
        """The step after `work`, which is under way, where it can be told already: one token more for each answer that
        can have one. Its ids are not known yet. None where others wait, or what is chosen decides what comes next."""
        is_plain = all(each.chosen == 1 and each.row.is_plain for each in work)
        if not is_plain or self.waiting or len(work) < len(self.running):
            return []
        then = [
            Work(row, start + (len(ids) or 1), [], 1)
            for row, start, ids, _ in work
            if row.is_running and row.chosen + 1 < row.limit
        ]
        if all(self.pool.grow(each.row.table, each.start + 1) for each in then):
            return then
        return []

    def _work(self, row: Row, count: int) -> Work:
        ids = row.ids[row.cached : row.cached + count]
        chosen = 0
        if row.cached + count >= len(row.ids):
            drafts = row.drafts[: count - len(ids)]
            ids, chosen = ids + drafts, 1 + len(drafts)
        return Work(row, row.cached, ids, chosen)

    def _has_room(self, row: Row, tokens: int) -> bool:
        """Blocks for so many of its tokens, taken from the youngest where none is left; False where that is itself."""
        while not self.pool.grow(row.table, tokens):
            youngest = self.running[-1]
            self.preempt(youngest)
            if youngest is row:
                return False
        return True

    def _admit(self, row: Row) -> bool:
        if self.running and self.answers + row.answers > self.max_rows:
            return False
        node, blocks = self.pool.find(self.pool.root(row.request.adapter), row.ids[:-1])
        table = Table(blocks)
        for block in blocks:
            self.pool.share(block)
        # Room for all that it has, so that it is not begun to be given up at once.
        if not self.pool.grow(table, len(row.ids)):
            self.pool.release(table)
            return False
        row.table, row.node, row.kept = table, node, len(blocks)
        row.cached = len(blocks) * self.pool.block_size
        if not row.was_admitted:
            self.prefix_hits += row.cached
        self.waiting.pop(0)
        self._start(row)
        return True

    def _start(self, row: Row) -> None:
        row.is_running = row.was_admitted = True
        self.answers += row.answers
        insort(self.running, row, key=lambda row: row.age)

    def fork(self, prompt: Row) -> tuple[list[int], list[int]]:
        """The answers to a prompt that was read, each with its first token, begin: they share the prompt's full blocks,
        and each has a copy of what is begun. Gives the blocks to be copied, and where to. Those for whom there is no
        room wait."""
        full, rest = divmod(len(prompt.ids), self.pool.block_size)
        sources: list[int] = []
        targets: list[int] = []
        for row in prompt.branches:
            if row.finish is not None:
                continue
            table = Table(prompt.table.blocks[:full])
            for block in table.blocks:
                self.pool.share(block)
            is_full = self.answers - prompt.answers >= self.max_rows
            if is_full or not self.pool.grow(table, len(prompt.ids)):
                self.pool.release(table)
                row.was_admitted = True
                self.add(row)
                continue
            if rest:
                sources.append(prompt.table.blocks[full])
                targets.append(table.blocks[full])
            row.table, row.node, row.kept, row.cached = table, prompt.node, prompt.kept, len(prompt.ids)
            self._start(row)
        self._stop(prompt)
        return sources, targets

    def preempt(self, row: Row) -> None:
        self._stop(row)
        row.table, row.cached, row.kept, row.drafts = Table(), 0, 0, []
        self.add(row)
        self.preempted += 1

    def _stop(self, row: Row) -> None:
        self.running.remove(row)
        self.answers -= row.answers
        self.pool.release(row.table)
        row.is_running = False

    def computed(self, row: Row, cached: int) -> None:
        """The keys of so many of its tokens are in the cache now."""
        row.cached = cached
        size = self.pool.block_size
        while (row.kept + 1) * size <= cached:
            at = row.kept * size
            row.node = self.pool.keep(row.node, row.ids[at : at + size], row.table.blocks[row.kept])
            row.kept += 1
