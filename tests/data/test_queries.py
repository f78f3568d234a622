"""Prompts without their answers: pure in the index, and none that would not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt import world
from instructgpt.data.data_file import DataFile
from instructgpt.data.queries import FileQueries, Query, WorldQueries, read_queries
from instructgpt.data.templates import Templates
from instructgpt.errors import UserError
from instructgpt.text.chat import render_prompt
from instructgpt.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([f"the cat number {i} saw {i * 7} red birds. 猫看见鸟。" for i in range(60)], vocab_size=340)


@given(index=st.integers(0, 10_000), seed=st.integers(0, 5))
def test_a_query_of_the_world_is_its_example_with_its_checker(tokenizer: Tokenizer, index: int, seed: int) -> None:
    example = world.example("train", index, seed)
    query = WorldQueries("train", tokenizer, seed)[index]
    assert (query.messages, query.reference) == (example.messages, example.answer)
    assert query.ids == render_prompt(query.messages, tokenizer) and query.ids[-1] == tokenizer.control_ids["assistant"]
    assert query.check is not None and query.check(example.answer) == 1.0


def test_queries_of_a_file_come_once_an_epoch_each_time_in_another_order() -> None:
    queries = [Query([{"role": "user", "content": str(i)}], [i], "") for i in range(20)]
    source = FileQueries(queries, seed=3)
    first, second = ([source[i].ids[0] for i in range(start, start + 20)] for start in (0, 20))
    assert sorted(first) == sorted(second) == list(range(20)) and first != second
    assert [FileQueries(queries, seed=3)[i].ids[0] for i in range(20, 40)] == second, "pure in the index"
    with pytest.raises(UserError, match="no prompt"):
        FileQueries([])


def test_reading_a_file_drops_prompts_that_are_too_long_and_says_so(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    records = [{"instruction": "the cat", "output": "red birds"}, {"instruction": "the cat " * 50, "output": "red"}]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    queries, account = read_queries([str(file)], tokenizer, longest=20)
    assert [(query.messages[-1]["content"], query.reference, query.check) for query in queries] == [
        ("the cat", "red birds", None)
    ]
    assert "noted 1: prompt of more than 20 tokens, left out" in account.report()
    with pytest.raises(UserError, match="every prompt has more than 2 tokens"):
        read_queries([str(file)], tokenizer, longest=2)


def test_a_template_for_the_prompt_alone(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps({"q": f"cat {i}?"}) + "\n" for i in (1, 2, 1)))
    queries, account = read_queries([DataFile(str(file), templates=Templates.of(prompt="Say: {q}"))], tokenizer, 99)
    asked = [(query.messages[-1]["content"], query.reference) for query in queries]
    assert asked == [("Say: cat 1?", None), ("Say: cat 2?", None)] and account.dropped == {"exact duplicate": 1}
