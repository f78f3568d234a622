from __future__ import annotations

import pytest

from instructgpt.generation.blocks import Pool
from instructgpt.generation.request import Request
from instructgpt.generation.row import Row
from instructgpt.generation.sampling import SamplingConfig
from instructgpt.generation.scheduler import Scheduler, Work
from instructgpt.text.tokenizer import Tokenizer


class Bench:
    """A scheduler over a cache of blocks of 4 tokens, and the engine's part: every token chosen is 9."""

    def __init__(self, tokenizer: Tokenizer, blocks: int = 16, tokens: int = 8, rows: int = 4):
        self.scheduler = Scheduler(Pool(blocks, 4, cell=4), tokens, rows)
        self.tokenizer, self.rows = tokenizer, []

    def add(self, length: int, limit: int = 5, n: int = 1, first: int = 20) -> Row:
        request = Request(tuple(range(first, first + length)), SamplingConfig(max_new_tokens=limit), n)
        rows = [Row(len(self.rows), i, request, limit, self.tokenizer) for i in range(n)]
        row = rows[0]
        if n > 1:
            row = Row(len(self.rows), 0, request, limit, self.tokenizer)
            row.branches = rows
        self.rows.append(row)
        self.scheduler.add(row)
        return row

    def step(self) -> list[tuple[int, int, int]]:
        """(request, start, tokens) of each part of the step."""
        work = self.scheduler.plan()
        for each in work:
            self._taken(each)
        return [(each.row.number, each.start, len(each.ids)) for each in work]

    def _taken(self, each: Work) -> None:
        row = each.row
        assert each.ids == row.ids[each.start : each.start + len(each.ids)]
        assert len(row.table.blocks) * 4 >= each.start + len(each.ids)
        self.scheduler.computed(row, each.start + len(each.ids))
        if each.chosen:
            for answer in row.samples:
                answer.push(9)
            if row.branches:
                self.scheduler.fork(row)
            elif row.finish:
                self.scheduler.drop(row)


@pytest.fixture
def bench(tokenizer: Tokenizer) -> Bench:
    return Bench(tokenizer)


def test_long_prompts_are_read_in_pieces_beside_answers_on_their_way(bench: Bench) -> None:
    bench.add(3)
    assert bench.step() == [(0, 0, 3)]
    bench.add(18)
    assert bench.step() == [(0, 3, 1), (1, 0, 7)]
    assert bench.step() == [(0, 4, 1), (1, 7, 7)]
    assert bench.step() == [(0, 5, 1), (1, 14, 4)]
    assert bench.step() == [(0, 6, 1), (1, 18, 1)]


def test_first_come_first_served(tokenizer: Tokenizer) -> None:
    bench = Bench(tokenizer, rows=2)
    for length in (2, 3, 1):
        bench.add(length, limit=2)
    assert bench.step() == [(0, 0, 2), (1, 0, 3)] and bench.step() == [(0, 2, 1), (1, 3, 1)]
    assert bench.step() == [(2, 0, 1)]
    bench = Bench(tokenizer, blocks=4)
    bench.add(4, limit=9)
    bench.add(15, limit=1)  # has to wait for room
    bench.add(1, limit=1)  # and whoever comes later waits behind it
    assert bench.step() == [(0, 0, 4)] and bench.step() == [(0, 4, 1)]


def test_the_youngest_gives_way_and_is_computed_again(tokenizer: Tokenizer) -> None:
    bench = Bench(tokenizer, blocks=4, tokens=32)
    old, young = bench.add(4, limit=6), bench.add(4, limit=6, first=50)
    assert bench.step() == [(0, 0, 4), (1, 0, 4)]
    for step in range(4):
        assert bench.step() == [(0, 4 + step, 1), (1, 4 + step, 1)]
    assert bench.step() == [(0, 8, 1)] and bench.scheduler.preempted == 1  # both needed a block
    assert old.finish == "length" and bench.scheduler.waiting == [young] and young.generated == [9] * 5
    assert bench.step() == [(1, 4, 5)]  # its prompt's block was still there
    assert young.generated == [9] * 6 and bench.scheduler.pool.used == 0


def test_answers_to_one_prompt_share_it(bench: Bench) -> None:
    prompt = bench.add(6, n=3)
    assert bench.step() == [(0, 0, 6)]
    first, second, third = (row.table.blocks for row in prompt.branches)
    assert first[0] == second[0] == third[0] and len({first[1], second[1], third[1]}) == 3
    assert bench.scheduler.pool.used == 4 and bench.scheduler.answers == 3
    assert bench.step() == [(0, 6, 1)] * 3


def test_answers_without_room_wait(tokenizer: Tokenizer) -> None:
    bench = Bench(tokenizer, rows=2)
    prompt = bench.add(6, n=3, limit=2)
    assert bench.step() == [(0, 0, 6)] and bench.scheduler.waiting == [prompt.branches[2]]
    assert bench.step() == [(0, 6, 1)] * 2
    assert bench.step() == [(0, 4, 3)] and bench.scheduler.pool.used == 0
    assert all(row.finish == "length" for row in prompt.branches)


def test_more_answers_than_a_step_has_tokens_take_turns_by_age(tokenizer: Tokenizer) -> None:
    bench = Bench(tokenizer, tokens=3, rows=9)
    for _ in range(4):
        bench.add(1, limit=3)
    seen: list[int] = []
    while bench.scheduler.running or bench.scheduler.waiting:
        step = bench.step()
        assert 0 < sum(tokens for _, _, tokens in step) <= 3
        seen.extend(number for number, _, _ in step)
    assert sorted(seen) == sorted([*range(4)] * 3)


def test_a_prompt_read_before_is_not_read_again(bench: Bench) -> None:
    bench.add(8, limit=1)
    bench.step()
    bench.add(10, limit=1)
    bench.add(8, limit=1)
    assert bench.step() == [(1, 8, 2), (2, 4, 4)]  # at least one token is computed
    assert bench.scheduler.prefix_hits == 12
