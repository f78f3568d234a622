"""What the file of an exercise says of the names that its function may use."""

from __future__ import annotations

import ast
import re

import pytest

from instructgpt.course.at_hand import KNOWN, comment, definition
from instructgpt.course.attempt import beginning
from instructgpt.course.exercise import exercise, names
from instructgpt.course.source import Source


def told(*imported: tuple[str, str]) -> list[str]:
    return comment(imported, ()).splitlines()


def test_a_function_is_told_with_its_head_and_all_of_its_docstring() -> None:
    lines = told(("kernels.softmax", "rows_of_program"))
    assert lines[:2] == ["", "# At hand:"]
    text = " ".join(line.strip("# ") for line in lines)
    assert "rows_of_program(rows, queries, visible, columns, ROWS: tl.constexpr): Three values (ROWS, 1): this" in text
    assert text.endswith("each further one sees one more, up to all of them.")


def test_a_record_is_told_with_its_fields_and_those_that_it_has_of_others() -> None:
    lines = told(("instructgpt.text.chat", "Message"))
    assert lines[2] == "#   Message(role, content, learn): One turn."
    assert lines[3] == "#       role: `system`, `user` or `assistant`."
    assert any(line.startswith("#       learn: False on a turn") for line in lines)


def test_what_is_made_by_itself_is_no_field_to_be_given() -> None:
    assert told(("instructgpt.data.batch", "Batch"))[2].startswith(
        "#   Batch(ids, targets, is_target, positions, documents): "
    )


def test_a_constant_is_told_with_its_value() -> None:
    (_, _, line) = told(("instructgpt.evaluation.scores", "_Z"))
    assert line.startswith("#   _Z = 1.959964: The 97.5% quantile")


def test_what_a_function_returns_is_told_once() -> None:
    lines = told(("instructgpt.objectives.policy", "deviations"), ("instructgpt.objectives.policy", "Deviations"))
    assert sum(line.startswith("#   Deviations(centred, deviation): ") for line in lines) == 1
    assert any(line.startswith("#   Deviations(") for line in told(("instructgpt.objectives.policy", "deviations")))


def test_a_name_that_two_modules_have_is_told_once() -> None:
    lines = told(("instructgpt.objectives.lm", "Loss"), ("instructgpt.objectives.preference", "_loss"))
    assert sum(line.startswith("#   Loss(total, weight, metrics): ") for line in lines) == 1


@pytest.mark.parametrize("name", names())
def test_no_name_is_told_twice(name: str) -> None:
    lines = [line for line in beginning(name, "exercise").splitlines() if re.match(r"#   \w", line)]
    assert len(lines) == len(set(lines))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("online_softmax", ["Three values (ROWS, 1)", "whether each of them exists", "how many columns"]),
        ("accumulation", ["next(batches)", "batch.tokens"]),
        ("muon", ["in the update's own dtype"]),
        ("reward_loss", ["multiplied by its pair's weight here", "log-probabilities (S,) that policy and reference"]),
        ("dpo", ["multiplied by its pair's weight here", "log-probabilities (S,) that policy and reference"]),
        ("flash_attention", ["`exists` (rows,)", "may_attend (BLOCK_Q, BLOCK_K)", "values (BLOCK_K, BLOCK_D)"]),
        ("ppo_clip", ["even if r itself overflows", "the gradient is 0 there"]),
        ("interval", ["one such score alone", "the interval is that score"]),
        ("masks", ["Each form is right", "True where a query may attend", "what is added to its scores"]),
    ],
)
def test_the_file_says_what_a_solution_needs(name: str, says: list[str]) -> None:
    text = " ".join(re.sub(r"\n# *", " ", beginning(name, "exercise")).split())
    assert not [each for each in says if each not in text]


def test_a_name_that_is_handed_on_is_found_where_it_is_defined() -> None:
    found = definition("kernels", "causal_mask")
    assert found is not None and found.module == "kernels.attention"


def test_names_of_others_and_names_that_are_nowhere_are_passed_over() -> None:
    assert told(("torch", "Tensor"), ("kernels.launch", "tl"), ("kernels.softmax", "no_such_name")) == []


@pytest.mark.parametrize("name", names())
def test_everything_that_an_exercise_gives_is_described(name: str) -> None:
    what = exercise(name)
    source, text = Source.of(what.target), re.sub(r"\n# {5,}", " ", beginning(name, "exercise"))
    lines = [line.removeprefix("#   ") for line in text.splitlines() if line.startswith("#   ")]
    imported = [name for module, name in source.names(what.without, what.helpers) if definition(module, name)]
    for given in set(imported) - set(KNOWN):
        assert [line for line in lines if re.match(rf"{given}(\(.*\).*| = .*)?: \S", line)]
    used = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(source.node)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "ctx")
    }
    assert not [each for each in used if not any(each in head for head, _ in what.has)]
    assert all(f"#   {head}: {says}" in text for head, says in what.has)
