"""The judge: what a student's function may try, and when a mistake is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from instructgpt.course.exercise import Check, Exercise, Mistake, exercise
from instructgpt.course.judge import judge, same, shown
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
