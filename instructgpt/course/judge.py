"""Is a function right? Every check of its exercise, and, where some fail, the known mistake that behaves the same."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from math import isclose, isnan
from typing import Any

import numpy as np
import torch
from torch import Tensor, allclose, equal
from torch.nn import Parameter

from instructgpt.course.exercise import OURS, Check, Exercise, Holds, Mistake
from instructgpt.course.source import CallsOurs, Function, Source
from kernels.lab.interpreter import causes_of


@dataclass(frozen=True)
class Outcome:
    """What came of a function in one check."""

    value: Any = None
    error: str = ""
    """What it raised, or did that it must not; empty where it gave a value."""
    said: str = ""
    """What it said in raising it."""
    place: str = ""
    """Where that was, in words."""

    def __str__(self) -> str:
        if not self.error:
            return shown(self.value)
        return f"{self.error}{': ' if self.said else ''}{self.said}{self.place}"


@dataclass(frozen=True)
class Failure:
    """The first check that a function fails; texts, for they come from another process."""

    number: int
    """Of the check, from 1."""
    says: str
    given: str
    expected: str
    got: str
    differs: str = ""
    """Where the two differ, where that cannot be seen at a glance."""


@dataclass(frozen=True)
class Verdict:
    """What is to be said of a function."""

    checks: int
    failed: int
    failure: Failure | None = None
    mistake: str = ""
    """The sentence of the known mistake that it behaves like."""
    is_unwritten: bool = False
    """It still raises NotImplementedError."""
    is_ours: bool = False
    """It calls the function that it is to replace."""


def judge(exercise: Exercise, function: Function, begin: Callable[[int], None] = lambda number: None) -> Verdict:
    """The verdict on a function that is to stand in the place of the exercise's target; begin: told each check,
    and 0 when they are over."""
    source = Source.of(exercise.target)
    right = [wanted(check, source.function) for check in exercise.checks]
    got = outcomes(exercise, source, function, begin)
    wrong = [i for i, check in enumerate(exercise.checks) if not is_right(got[i], right[i], check)]
    if not wrong:
        return Verdict(len(got), 0)
    first = exercise.checks[wrong[0]]
    failure = failure_of(wrong[0] + 1, first, right[wrong[0]], got[wrong[0]])
    if got[wrong[0]].error == NotImplementedError.__name__:
        return Verdict(len(got), len(wrong), failure, is_unwritten=True)
    if any(each.error == CallsOurs.__name__ for each in got):
        return Verdict(len(got), len(wrong), failure, is_ours=True)
    return Verdict(len(got), len(wrong), failure, known_mistake(exercise, source, got, right, wrong))


def failure_of(number: int, check: Check, right: Any, got: Outcome) -> Failure:
    given = ", ".join(f"{name} = {shown(value)}" for name, value in check.given.items())
    expected, came = str_of(right), str(got)
    is_plain = bool(got.error) or isinstance(right, Holds) or (expected != came and len(expected) <= GLANCE)
    return Failure(number, check.says, given, expected, came, "" if is_plain else difference(got.value, right, check))


def wanted(check: Check, ours: Function) -> Any:
    return outcome(check, ours).value if check.wants is OURS else check.wants


def outcomes(
    exercise: Exercise, source: Source, function: Function, begin: Callable[[int], None] = lambda number: None
) -> list[Outcome]:
    """What comes of a function in each check, standing in the place of ours."""
    found = []
    with source.replaced_by(function):
        for number, check in enumerate(exercise.checks, start=1):
            begin(number)
            found.append(outcome(check, function))
        begin(0)
    return found


def outcome(check: Check, function: Function) -> Outcome:
    given = copy.deepcopy(check.given)
    kept = {name: copy.deepcopy(value) for name, value in given.items() if name not in check.changes}
    try:
        value = check.look(function, given)
    except Exception as error:
        if any(isinstance(each, CallsOurs) for each in causes_of(error)):
            return Outcome(error=CallsOurs.__name__)
        said = " ".join(text_of(error).split())
        return Outcome(error=type(error).__name__, said=said, place=place(error, function))
    changed = [name for name, value in kept.items() if not same(given[name], value, 0.0)]
    if changed:
        return Outcome(error="changes what it is given", said=", ".join(changed))
    return Outcome(value)


def text_of(value: Any) -> str:
    """str(value), whatever a student's class makes of that."""
    try:
        return str(value)
    except Exception:
        return ""


def place(error: BaseException, function: Function) -> str:
    """The last line of the function's own file that was running, in words."""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" (line {lines[-1]})" if lines else ""


def is_right(got: Outcome, right: Any, check: Check) -> bool:
    if got.error:
        return False
    if isinstance(right, Holds):
        try:
            return bool(right.is_right(got.value))
        except Exception:
            return False
    return same(got.value, right, check.tolerance)


def known_mistake(
    exercise: Exercise, source: Source, got: Sequence[Outcome], right: Sequence[Any], wrong: Sequence[int]
) -> str:
    """The sentence of the mistake that gives the same in all that fails, and is right in all that does not.

    Who passes a check that a mistake fails does not make that mistake, whatever the two have in common elsewhere.
    """
    for mistake in exercise.mistakes:

        def agrees(i: int, mistake: Mistake = mistake) -> bool:
            check, found = exercise.checks[i], outcome_of(mistake, exercise.checks[i], source)
            return alike(found, got[i], check.tolerance) if i in wrong else is_right(found, right[i], check)

        if all(map(agrees, range(len(got)))):
            return mistake.says
    return ""


@cache
def outcome_of(mistake: Mistake, check: Check, source: Source) -> Outcome:
    function = wrong_version(mistake, source)
    with source.replaced_by(function):
        return outcome(check, function)


@cache
def wrong_version(mistake: Mistake, source: Source) -> Function:
    return mistake.function or source.changed(mistake.changes)


def alike(one: Outcome, other: Outcome, tolerance: float) -> bool:
    if one.error or other.error:
        return (one.error, one.said) == (other.error, other.said)
    return same(one.value, other.value, tolerance)


# ---- values


def same(got: Any, right: Any, tolerance: float) -> bool:
    """Whether two values are equal, numbers and tensors up to the tolerance; shapes and dtypes have to agree."""
    got, right = (torch.from_numpy(value) if isinstance(value, np.ndarray) else value for value in (got, right))
    if isinstance(right, Tensor):
        # A class of a student's own could say of itself that it equals anything.
        if type(got) not in (Tensor, Parameter) or (got.shape, got.dtype) != (right.shape, right.dtype):
            return False
        if not right.is_floating_point():
            return equal(got, right)
        return allclose(got.detach(), right.detach(), rtol=tolerance, atol=tolerance, equal_nan=True)
    if isinstance(right, (int, float)):
        got = got.item() if isinstance(got, Tensor) and got.dim() == 0 else got
        if not isinstance(got, (int, float)):
            return False
        return isclose(got, right, rel_tol=tolerance, abs_tol=tolerance) or (isnan(got) and isnan(right))
    if isinstance(right, (list, tuple)):
        is_list = isinstance(got, (list, tuple)) and len(got) == len(right)
        return is_list and all(same(a, b, tolerance) for a, b in zip(got, right))
    if isinstance(right, dict):
        return (
            isinstance(got, dict) and got.keys() == right.keys()
            and all(same(got[key], right[key], tolerance) for key in right)
        )  # fmt: skip
    if (parts := parts_of(right)) is not None:
        return type(got) is type(right) and same(parts_of(got), parts, tolerance)
    return type(got) is type(right) and bool(got == right)


def parts_of(value: Any) -> dict[str, Any] | None:
    """What an object is made of, by name; None for what is no such object."""
    if isinstance(value, type) or callable(value):
        return None
    if is_dataclass(value):
        return {each.name: getattr(value, each.name) for each in fields(value)}
    return getattr(value, "__dict__", None)


def difference(got: Any, right: Any, check: Check, path: str = "") -> str:
    """The first place where two values differ, in words; in a tensor, the one where they differ the most."""
    got, right = (torch.from_numpy(value) if isinstance(value, np.ndarray) else value for value in (got, right))
    where = f"{path}: " if path else ""
    if isinstance(right, (int, float)) and isinstance(got, (int, float)):
        return f"{where}expected {right:.9g}, got {got:.9g}"
    if type(got) not in (type(right), Parameter) and not isinstance(right, (list, tuple)):
        return f"{where}expected a {type(right).__name__}, got a {type(got).__name__}"
    if isinstance(right, Tensor):
        return where + _difference_of_tensors(got.detach(), right.detach(), check.tolerance)
    inner, given = _by_place(right), _by_place(got)
    if inner is None or given is None or inner.keys() != given.keys():
        return ""
    for place, value in inner.items():
        if not same(given[place], value, check.tolerance):
            return difference(given[place], value, check, f"{path}{place}" if path else place.removeprefix("."))
    return ""


def _difference_of_tensors(got: Tensor, right: Tensor, tolerance: float) -> str:
    if got.shape != right.shape:
        return f"expected the shape {tuple(right.shape)}, got {tuple(got.shape)}"
    if got.dtype != right.dtype:
        return f"expected {right.dtype}, got {got.dtype}"
    one, other = got.double(), right.double()
    is_off = ~torch.isclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)
    by = (one - other).abs().nan_to_num(nan=torch.inf).where(is_off, -1.0)
    at = np.unravel_index(int(by.argmax()), right.shape)
    numbers = f"expected {float(other[at]):.9g}, got {float(one[at]):.9g}"
    if not right.dim():
        return numbers
    count = int(is_off.sum())
    return f"at {[int(i) for i in at]}: {numbers}" + (f", the largest of {count} differences" if count > 1 else "")


def _by_place(value: Any) -> dict[str, Any] | None:
    """What a list, a table or a record holds, each under how one gets there."""
    if isinstance(value, (list, tuple)):
        return {f"[{i}]": each for i, each in enumerate(value)}
    if isinstance(value, dict):
        return {f".{key}": each for key, each in value.items()}
    parts = parts_of(value)
    return parts and {f".{name}": each for name, each in parts.items()}


LONGEST = 400
"""Characters shown of a value."""
MANY = 200
"""Characters of a tensor's numbers, above which its shape is shown, and how it begins."""
GLANCE = 50
"""Characters in which one sees by oneself what is different."""


def shown(value: Any) -> str:
    """A value on one line, numbers to four digits."""
    try:
        text = " ".join(_shown(value).split())
    except Exception:  # a list that holds itself, a class that cannot be printed
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def str_of(right: Any) -> str:
    return right.says if isinstance(right, Holds) else shown(right)


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        numbers = "" if value.numel() > 64 else _shown(value.detach().tolist())
        if value.numel() > 64 or len(numbers) > MANY:
            return f"{value.dtype} {tuple(value.shape)} beginning {_shown(value.detach().flatten()[:8].tolist())}"
        kind = "" if value.dtype in (torch.float64, torch.float32, torch.int64, torch.bool) else f"{value.dtype} "
        return kind + numbers
    if isinstance(value, bool) or value is None or isinstance(value, (int, str)):
        return repr(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        names = getattr(value, "_fields", None)
        items = [_shown(each) for each in value]
        if names:
            return f"{type(value).__name__}({', '.join(f'{n}={i}' for n, i in zip(names, items))})"
        return f"[{', '.join(items)}]" if isinstance(value, list) else f"({', '.join(items)})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shown(each)}" for key, each in value.items()) + "}"
    if isinstance(value, np.ndarray):
        return _shown(value.tolist())
    if (parts := parts_of(value)) is not None:
        return f"{type(value).__name__}({', '.join(f'{key}={_shown(each)}' for key, each in parts.items())})"
    return repr(value)
