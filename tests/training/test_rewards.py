"""Where rewards come from; the wrong ones are told with the prompt (tests/stages/test_ppo.py has the command line)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from instructgpt.data.queries import Query
from instructgpt.errors import UserError
from instructgpt.generation.engine import Completion
from instructgpt.training.rewards import FunctionReward, RewardSum, WorldReward, load_function, shown

QUERIES = [Query([{"role": "user", "content": text}], [1], text.upper(), lambda a: float(a == "A")) for text in "ab"]
ANSWERS = [Completion([5], "A", "end"), Completion([6], "C", "end")]


def test_the_worlds_reward_is_the_check() -> None:
    assert WorldReward()(QUERIES, ANSWERS) == [1.0, 0.0]


def test_a_function_gets_messages_texts_and_references_if_it_asks() -> None:
    def plain(prompts, answers):
        return [len(prompts) + len(answers[0]), prompts[1][-1]["content"] == "b"]

    def asking(prompts, answers, references):
        return [answer == reference for answer, reference in zip(answers, references)]

    assert FunctionReward("plain", plain)(QUERIES, ANSWERS) == [3.0, 1.0]
    assert FunctionReward("asking", asking)(QUERIES, ANSWERS) == [1.0, 0.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "x"])
def test_what_is_no_finite_number_is_told_with_its_prompt(value: object) -> None:
    with pytest.raises(UserError, match="no finite number, for the answer 'C' to 'b'"):
        FunctionReward("f", lambda prompts, answers: [0.0, value])(QUERIES, ANSWERS)


def test_a_function_that_raises_only_on_many_at_once() -> None:
    def raises(prompts, answers):
        if len(prompts) > 1:
            raise MemoryError
        return [0.0]

    with pytest.raises(UserError, match="raised MemoryError for 2 answers together, and for none of them alone"):
        FunctionReward("f", raises)(QUERIES, ANSWERS)


def test_a_sum_weighs_its_parts() -> None:
    length = FunctionReward("length", lambda prompts, answers: [len(answer) for answer in answers])
    total = RewardSum([WorldReward(), length], [2.0, -0.5])
    assert total(QUERIES, ANSWERS) == [1.5, -0.5] and total.name == "world+length"


def test_a_file_that_cannot_be_imported_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(UserError, match="raised SyntaxError") as error:
        load_function(f"{tmp_path / 'broken.py'}:f")
    assert "\n" not in str(error.value)


def test_a_long_prompt_is_cut_in_messages() -> None:
    assert shown(Query([{"role": "user", "content": "x" * 200}], [1], "")) == repr("x" * 80 + "…")
