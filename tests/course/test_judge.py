"""The judge: what a student's function may try, and when a mistake is named."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from instructgpt.course.exercise import Check, Exercise, Mistake, exercise
from instructgpt.course.judge import Failure, judge, same, shown, wrong_version
from instructgpt.course.source import CallsOurs, Source
from instructgpt.objectives import policy
from instructgpt.objectives.policy import kl_k3


class Liar(Tensor):
    """Says of itself that it is whatever is asked for."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return True


class Yes:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # pyright: ignore[reportAssignmentType]


@pytest.mark.parametrize(
    "right", ["text", None, 1.0, [1, 2], {"a": 1}, torch.ones(2), torch.ones(2, dtype=torch.int64)]
)
def test_what_says_that_it_is_equal_is_not(right: object) -> None:
    assert same(right, right, 0.0)
    assert not same(Yes(), right, 0.0) and not same([Yes(), Yes()], right, 0.0)
    if isinstance(right, Tensor):
        assert not same(torch.zeros(2, dtype=right.dtype).as_subclass(Liar), right, 0.0)


def test_what_cannot_be_shown_is_told() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert shown(endless) == "a list that cannot be shown"


def test_of_a_tensor_with_many_numbers_the_shape_is_shown() -> None:
    assert shown(torch.arange(6.0).view(1, 2, 3)) == "[[[0, 1, 2], [3, 4, 5]]]"
    assert shown(torch.zeros(65)).startswith("torch.float32 (65,) beginning [0, 0,")
    assert shown(torch.full((2, 2, 3, 4), -1.234)).startswith("torch.float32 (2, 2, 3, 4) beginning [-1.234,")


def failed(wants: Any, gives: Any, tolerance: float = 1e-6) -> Failure:
    """What is told where one value is right, and another one comes."""

    def function(logprobs: Tensor, reference: Tensor) -> Any:
        return gives

    given = {"logprobs": torch.zeros(1), "reference": torch.zeros(1)}
    check = Check("one", given, wants, tolerance=tolerance)
    what = Exercise(1, "One", "Two.", "instructgpt.objectives.policy.kl_k1", (check,), (), ("a", "b", "c"))
    failure = judge(what, function).failure
    assert failure is not None
    return failure


def at(index: tuple[int, ...], value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    changed = torch.ones(2, 4, 3, 4, dtype=dtype)
    changed[index] = value
    return changed


@pytest.mark.parametrize(
    ("wants", "gives", "told"),
    [
        (at((0, 0, 0, 0), 1), at((1, 2, 0, 3), 5), "at [1, 2, 0, 3]: expected 1, got 5"),
        (
            at((1, 1, 1, 1), 2),
            at((1, 2, 0, 3), 5),
            "at [1, 2, 0, 3]: expected 1, got 5, the largest of 2 differences",
        ),
        (at((0, 0, 0, 0), 1), at((1, 3, 2, 3), math.nan), "at [1, 3, 2, 3]: expected 1, got nan"),
        (at((0, 1, 0, 0), -math.inf), at((0, 1, 0, 0), 3), "at [0, 1, 0, 0]: expected -inf, got 3"),
        (at((0, 0, 0, 0), 7, torch.int64), at((0, 0, 0, 0), 9, torch.int64), "at [0, 0, 0, 0]: expected 7, got 9"),
        (torch.tensor([1.0]), torch.tensor([1.0]).double(), "expected torch.float32, got torch.float64"),
        (torch.zeros(2, 0), torch.zeros(2, 0, 3), "expected the shape (2, 0), got (2, 0, 3)"),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.00001]), "at [1]: expected 2, got 2.00001"),
        (1.23456, 1.23457, "expected 1.23456, got 1.23457"),
        ({"a": [1, 2.00001]}, {"a": [1, 2.0]}, "a[1]: expected 2.00001, got 2"),
        (torch.tensor([1, 2]), [1, 2], "expected a Tensor, got a list"),
        ([0] * 40, [0] * 17 + [1] + [0] * 22, "[17]: expected 0, got 1"),
        (
            [torch.zeros(70).double()],
            [at((0, 1, 1, 1), 0).flatten()[:70]],
            "[0]: at [0]: expected 0, got 1, the largest of 69",
        ),
    ],
)
def test_where_two_values_differ_is_told_where_one_cannot_see_it(wants: Any, gives: Any, told: str) -> None:
    assert failed(wants, gives).differs.startswith(told)


@pytest.mark.parametrize(
    ("wants", "gives"), [(1.0, 2.0), ([1, 2], [2, 1]), (torch.ones(3), torch.zeros(3)), ("right", "wrong"), (1.0, None)]
)
def test_what_one_sees_at_a_glance_is_not_said_again(wants: Any, gives: Any) -> None:
    assert failed(wants, gives).differs == ""


def test_what_looks_alike_in_attention_is_told_apart() -> None:
    """Neighbours among the heads are to share keys; the first head does so in any case."""
    what = exercise("attention")
    (mistake,) = [each for each in what.mistakes if "heads are shared in turn" in each.says]
    failure = judge(what, wrong_version(mistake, Source.of(what.target))).failure
    assert failure is not None and failure.differs.startswith("at [")
    assert "q = torch.float64 (2, 4, 3, 4)" in failure.given and "k = torch.float64 (2, 2, 3, 4)" in failure.given


def test_targets_that_are_none_are_shown_as_such() -> None:
    what = exercise("packing")
    (mistake,) = [each for each in what.mistakes if "is_target is one token early" in each.says]
    failure = judge(what, wrong_version(mistake, Source.of(what.target))).failure
    assert failure is not None and "targets: [['no target', 7, 8, 0]]" in failure.expected
    assert "targets: [['no target', 'no target', 8, 0]]" in failure.got


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def mute(logprobs: Tensor, reference: Tensor) -> Tensor:
    raise Mute


def test_an_error_that_cannot_be_shown_is_told_by_its_name() -> None:
    verdict = judge(exercise("kl_estimators"), mute)
    assert verdict.failure is not None and verdict.failure.got.startswith("Mute (line")


def calls_ours(logprobs: Tensor, reference: Tensor) -> Tensor:
    return kl_k3(logprobs, reference)


def calls_ours_in_a_try(logprobs: Tensor, reference: Tensor) -> Tensor:
    try:
        return kl_k3(logprobs, reference)
    except Exception as error:
        raise ValueError from error


def calls_ours_at_last(logprobs: Tensor, reference: Tensor) -> Tensor:
    return kl_k3(logprobs, reference) if len(logprobs) == 50 else logprobs


@pytest.mark.parametrize("function", [calls_ours, calls_ours_in_a_try, calls_ours_at_last])
def test_who_calls_ours_is_told_so(function: Any) -> None:
    verdict = judge(exercise("kl_estimators"), function)
    assert verdict.is_ours and verdict.failure is not None


def test_ours_can_be_called_again_afterwards() -> None:
    judge(exercise("kl_estimators"), calls_ours)
    assert calls_ours(torch.zeros(1), torch.zeros(1)).tolist() == [0.0]
    source = Source.of("instructgpt.objectives.policy.kl_k3")
    kept = policy.kl_k3
    with source.replaced_by(calls_ours), pytest.raises(CallsOurs):
        kept(torch.zeros(1), torch.zeros(1))


def raising(text: str) -> Any:
    def function(logprobs: Tensor, reference: Tensor) -> Tensor:
        raise IndexError(text)

    return function


def test_another_error_of_the_same_kind_is_another_mistake() -> None:
    check = Check("one", {"logprobs": torch.ones(1), "reference": torch.ones(1)})
    mistake = Mistake("it looks at the wrong place", function=raising("index 5 is out of bounds"))
    target = "instructgpt.objectives.policy.kl_k1"
    what = Exercise(1, "One", "Two.", target, (check,), (mistake,), ("a", "b", "c"))
    assert judge(what, raising("index 5 is out of bounds")).mistake == "it looks at the wrong place"
    assert judge(what, raising("list index out of range")).mistake == ""


def double(logprobs: Tensor, reference: Tensor) -> Tensor:
    return 2 * logprobs


def squared(logprobs: Tensor, reference: Tensor) -> Tensor:
    return logprobs.square()


def test_who_passes_what_a_mistake_fails_does_not_make_it() -> None:
    """At 2 the double is the square, at 0 both are right, and at 1 only the square is."""
    checks = tuple(
        Check(f"at {at}", {"logprobs": torch.tensor([at]), "reference": torch.zeros(1)}) for at in (0.0, 1.0, 2.0)
    )
    mistake = Mistake("this doubles", function=double)
    what = Exercise(1, "One", "Two.", "instructgpt.objectives.policy.kl_k1", checks, (mistake,), ("a", "b", "c"))
    assert judge(what, double).mistake == "this doubles"
    assert judge(what, squared).failure is not None and judge(what, squared).mistake == ""
