"""Where rewards come from; the wrong ones are told with the prompt (tests/stages/test_ppo.py has the command line)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

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


COLUMNED = [
    Query([{"role": "user", "content": text}], [1], text.upper(), fields={"level": i, "tags": [text]})
    for i, text in enumerate("ab")
]


def test_a_function_written_for_trl_gets_all_by_name() -> None:
    seen = {}

    def trl(prompts, completions, **columns):
        seen.update(columns, prompts=prompts, completions=completions)
        return [1.0] * len(completions)

    assert FunctionReward("trl", trl)(COLUMNED, ANSWERS) == [1.0, 1.0]
    assert seen == {
        "prompts": [query.messages for query in COLUMNED], "completions": ["A", "C"], "references": ["A", "B"],
        "level": [0, 1], "tags": [["a"], ["b"]],
    }  # fmt: skip


def test_signatures_get_what_they_name() -> None:
    def only_by_name(**kwargs: Any):
        return [len(kwargs["prompts"]) + len(text) for text in kwargs["completions"]]

    def a_field(prompts, answers, level):
        return level

    def ours_and_all(prompts, answers, **more: Any):
        return [float(x) for x in more["level"]]

    def completions_alone(completions):
        return [text == "A" for text in completions]

    def defaults(prompts, answers, weight=2.0, *, references: Any = None):
        return [weight * (reference == "A") for reference in references]

    expected = {
        only_by_name: [3, 3],
        a_field: [0, 1],
        ours_and_all: [0, 1],
        defaults: [2, 0],
        completions_alone: [1, 0],
    }
    for function, scores in expected.items():
        assert FunctionReward("f", function)(COLUMNED, ANSWERS) == scores, function.__name__
    mixed = [COLUMNED[0], QUERIES[1]]
    assert FunctionReward("f", lambda prompts, completions, level: [x is None for x in level])(mixed, ANSWERS) == [0, 1]


def test_a_function_that_changes_its_arguments_changes_nothing() -> None:
    def rude(prompts, completions, references, tags):
        for prompt in prompts:
            prompt[-1]["content"] = "changed"
            prompt.append({"role": "user", "content": "more"})
        for column in (prompts, completions, references, *tags, tags):
            column.clear()
        return [0.5, 0.5]

    before = [(repr(query.messages), repr(query.fields), query.reference) for query in COLUMNED]
    assert FunctionReward("rude", rude)(COLUMNED, ANSWERS) == [0.5, 0.5]
    assert [(repr(query.messages), repr(query.fields), query.reference) for query in COLUMNED] == before
    assert [answer.text for answer in ANSWERS] == ["A", "C"]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"a": 1.0, "b": 2.0}, "f gave a dict; it must give a list of numbers"),
        ({1.0, 2.0}, "gave a set"), ("12", "gave a str"), (None, "gave a NoneType"), (0.5, "gave a float"),
        (iter([1.0, 2.0]), "gave a list_iterator"), (torch.tensor(1.0), "gave a Tensor"),
        ([1.0], "gave 1 values for 2 answers"), ([1.0, 2.0, 3.0], "gave 3 values for 2"), ([], "gave 0 values for 2"),
        (["1", "2"], "gave '1', which is no finite number"), ([1.0, [2.0]], r"gave \[2.0\], which is no"),
        (torch.ones(2, 1), r"gave \[1.0\], which is no finite"), ([1.0, -math.inf], "gave -inf, which is no"),
        ([1.0, 10**400], "which is no finite number"), ([1.0, 1j], "which is no finite number"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_numbers_is_refused_in_one_line(given: object, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as error:
        FunctionReward("f", lambda prompts, answers: given)(QUERIES, ANSWERS)
    assert "--reward-function f" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "given", [(0, 1), np.array([0, 1]), np.float32([0, 1]), torch.tensor([0, 1]), [False, True], [np.float64(0), 1]]
)
def test_what_is_one_in_another_form_is_taken(given: object) -> None:
    assert FunctionReward("f", lambda prompts, answers: given)(QUERIES, ANSWERS) == [0.0, 1.0]
