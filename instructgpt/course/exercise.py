"""What an exercise is: one record in a file of `exercises/`, which is all that a teacher writes.

    EXERCISE = Exercise(
        place=110, title="A mean", about="Two sentences.", target="instructgpt.evaluation.scores.mean_interval",
        checks=(Check("two scores", {"scores": [0.0, 1.0]}, wants=...),),
        mistakes=(Mistake("this divides by n - 1", "/ n", "/ (n - 1)"),),
        hints=("where to look", "what to do", "how"),
    )

Signature, docstring and solution are read from the target's own source, so an exercise cannot lag behind it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from instructgpt.course import exercises
from instructgpt.errors import UserError, suggestion

OURS: Any = object()
"""What a check wants where it is what our function gives."""


@dataclass(frozen=True)
class Holds:
    """What a check wants where many values are right."""

    says: str
    """What is right, in words."""
    is_right: Callable[[Any], bool]


def called(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """What the function returns."""
    return function(**given)


@dataclass(frozen=True, eq=False)
class Check:
    """One property of a right function."""

    says: str
    """What is looked at, in words."""
    given: dict[str, Any]
    """Arguments by name; each call gets a copy."""
    wants: Any = OURS
    """The value that is right, such as one computed by hand; or `Holds`."""
    look: Callable[[Callable[..., Any], dict[str, Any]], Any] = called
    """(function, given) -> what is compared: the result, a part of it, a gradient, what is left in an argument."""
    tolerance: float = 1e-6
    """Relative and absolute."""
    changes: tuple[str, ...] = ()
    """Arguments that the function may write to."""


@dataclass(frozen=True, eq=False)
class Mistake:
    """A wrong version that people write: our source with a change, or a function of its own."""

    says: str
    """The sentence that names it: "this divides by the number of tokens, padding included"."""
    old: str = ""
    """Text that occurs exactly once in our function."""
    new: str = ""
    further: tuple[tuple[str, str], ...] = ()
    """Further pairs of an old text and a new one."""
    function: Callable[..., Any] | None = None
    """The wrong version, where ours has no text to change."""

    @property
    def changes(self) -> tuple[tuple[str, str], ...]:
        return ((self.old, self.new), *self.further)


@dataclass(frozen=True)
class Exercise:
    """A function to write, and all that is said of it."""

    place: int
    """Where it stands in the course; a hundred for each part of the road, in steps of ten."""
    title: str
    about: str
    """What it is about, in two sentences."""
    target: str
    """The dotted name of the function, or method, that is to be written."""
    checks: tuple[Check, ...]
    """Small ones first."""
    mistakes: tuple[Mistake, ...]
    hints: tuple[str, str, str]
    """Where to look, what to do, how to do it; none of them is the solution."""
    has: tuple[tuple[str, str], ...] = ()
    """What a method's `self` has that a solution needs, as (`self.name`, what it is)."""
    helpers: tuple[str, ...] = ()
    """Names that a solution may want besides those that ours uses, as `module:name`."""
    without: tuple[str, ...] = ()
    """Names that ours uses and that would give the answer away."""
    seconds: float = 30.0
    """How long the checks may take."""


PARTS = {0: "tokens", 1: "model", 2: "data", 3: "training", 4: "generation", 5: "alignment", 6: "evaluation",
         7: "adapters", 8: "kernels"}  # fmt: skip
"""Parts of the road by the hundred of `Exercise.place`."""


def names() -> list[str]:
    """Exercises, by the names of their files, in the order of the course."""
    found = [module.name for module in pkgutil.iter_modules(exercises.__path__)]
    return sorted(found, key=lambda name: (exercise(name).place, name))


def exercise(name: str) -> Exercise:
    """The exercise of a name. UserError where there is none, or its file holds none."""
    known = sorted(module.name for module in pkgutil.iter_modules(exercises.__path__))
    if name not in known:
        raise UserError(f"there is no exercise {name!r}{suggestion(name, known)}")
    module = importlib.import_module(f"{exercises.__name__}.{name}")
    found = getattr(module, "EXERCISE", None)
    if not isinstance(found, Exercise):
        raise UserError("has no record EXERCISE", module.__file__)
    return found


# ---- what checks are made of


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal random numbers, the same each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gradient_at(total: Tensor, leaf: Tensor) -> Any:
    """The gradient, or a sentence where there is none."""
    found = torch.autograd.grad(total, leaf, allow_unused=True)[0] if total.requires_grad else None
    return "there is none: what is computed does not hang on it, or is detached" if found is None else found


def gradient(name: str) -> Callable[[Callable[..., Any], dict[str, Any]], Any]:
    """Looks at the gradient of a weighted sum of the result with respect to the argument `name`."""

    def look(function: Callable[..., Any], given: dict[str, Any]) -> Any:
        leaf = given[name].detach().clone().requires_grad_()
        result = function(**{**given, name: leaf})
        return gradient_at((result * numbers(*result.shape, seed=1).to(result.dtype)).sum(), leaf)

    return look


def part(pick: Callable[[Any], Any]) -> Callable[[Callable[..., Any], dict[str, Any]], Any]:
    """Looks at what `pick` makes of the result."""
    return lambda function, given: pick(function(**given))


def refusal(function: Callable[..., Any], given: dict[str, Any]) -> str:
    """Looks at what the function raises: the error's type, or "no error"."""
    try:
        function(**given)
    except NotImplementedError:  # it is not written yet
        raise
    except Exception as error:
        return type(error).__name__
    return "no error"
