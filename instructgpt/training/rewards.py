"""Where rewards come from: the world's checker, a reward model, a function of the user's, or a weighted sum of them."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from instructgpt.data.queries import Query
from instructgpt.errors import UserError
from instructgpt.generation.engine import Completion


class Reward(Protocol):
    """Scores answers, any number at a time."""

    @property
    def name(self) -> str: ...

    def __call__(self, queries: Sequence[Query], answers: Sequence[Completion]) -> list[float]: ...


class WorldReward:
    """The truth: what the world's own checker gives."""

    name = "world"

    def __call__(self, queries: Sequence[Query], answers: Sequence[Completion]) -> list[float]:
        scores = []
        for query, answer in zip(queries, answers, strict=True):
            if query.check is None:
                raise UserError(
                    "--reward world knows only prompts of the world; name a reward model or --reward-function for "
                    f"files. The prompt: {shown(query)}"
                )
            scores.append(query.check(answer.text))
        return scores


class FunctionReward:
    """A function of the user's that scores answers, and what it is given.

    `f(prompts, answers) -> list[float]`: prompts are lists of messages ({"role": ..., "content": ...}), answers texts;
    it gives a number for each, as a list, a tuple, an array or a tensor of one dimension. More is passed by name:

    - a parameter `references` gets the answers that stand in the data;
    - one named as a field of the records gets that field's values, a list with one for each answer;
    - functions written for TRL work as they are: `f(prompts, completions, **columns)` gets everything by name, the
      answers as `completions` and as columns `references` and all fields. It must take `**kwargs`.

    A function gets copies, so that one that changes its arguments changes nothing here.
    """

    def __init__(self, name: str, function: Callable[..., Any]):
        self.name, self._function = name, function
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):  # built in, and says nothing of its parameters
            parameters = {}
        self._takes = {name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
        self._takes_all = len(self._takes) < len(parameters)

    def __call__(self, queries: Sequence[Query], answers: Sequence[Completion]) -> list[float]:
        try:
            scores = self._call(queries, answers)
        except Exception as error:
            raise UserError(f"{self._where} raised {_told(error)} for {self._culprit(queries, answers)}") from error
        values = _listed(scores)
        if values is None:
            raise UserError(f"{self._where} gave a {type(scores).__name__}; it must give a list of numbers")
        if len(values) != len(queries):
            first = f"the first prompt: {shown(queries[0])}" if queries else "no prompts"
            raise UserError(f"{self._where} gave {len(values)} values for {len(queries)} answers ({first})")
        for query, answer, score in zip(queries, answers, values):
            if not _is_finite_number(score):
                raise UserError(
                    f"{self._where} gave {score!r}, which is no finite number, for the answer {answer.text[:60]!r} to "
                    f"{shown(query)}"
                )
        return [float(score) for score in values]

    @property
    def _where(self) -> str:
        return f"--reward-function {self.name}"

    def _call(self, queries: Sequence[Query], answers: Sequence[Completion]) -> Any:
        prompts = [copy.deepcopy(query.messages) for query in queries]
        texts = [answer.text for answer in answers]
        columns: dict[str, list[Any]] = {"references": [query.reference for query in queries]}
        for field in dict.fromkeys(name for query in queries for name in query.fields):
            columns.setdefault(field, [copy.deepcopy(query.fields.get(field)) for query in queries])
        for taken in ("prompts", "completions", "answers"):
            columns.pop(taken, None)
        more = {name: column for name, column in columns.items() if self._takes_all or name in self._takes}
        if "completions" in self._takes or (self._takes_all and "answers" not in self._takes):
            more |= {"prompts": prompts} if self._takes_all or "prompts" in self._takes else {}
            return self._function(completions=texts, **more)
        return self._function(prompts, texts, **more)

    def _culprit(self, queries: Sequence[Query], answers: Sequence[Completion]) -> str:
        """The prompt on which it raises: found by asking again, one at a time."""
        for query, answer in zip(queries, answers):
            try:
                self._call([query], [answer])
            except Exception:  # noqa: PERF203 (that is the point)
                return f"the answer {answer.text[:60]!r} to {shown(query)}"
        return f"{len(queries)} answers together, and for none of them alone; the first prompt: {shown(queries[0])}"


def load_function(name: str) -> FunctionReward:
    """The function of `package.module:function` or `path/file.py:function`. UserError when there is none."""
    return FunctionReward(name, imported_function(name, "--reward-function"))


def imported_function(name: str, flag: str) -> Callable[..., Any]:
    """What `package.module:function` or `path/file.py:function` names. UserError, with the flag, when there is none."""
    module_name, colon, function_name = name.rpartition(":")
    flag = f"{flag} {name}"
    if not colon or not module_name or not function_name.isidentifier():
        raise UserError(f"{flag}: write package.module:function or path/file.py:function")
    try:
        if module_name.endswith(".py"):
            if not Path(module_name).is_file():
                raise UserError(f"{flag}: there is no file {module_name}")
            spec = importlib.util.spec_from_file_location(Path(module_name).stem, module_name)
            assert spec and spec.loader
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(module_name)
    except UserError:
        raise
    except Exception as error:  # a module of the user's may raise anything when it is imported
        raise UserError(f"{flag}: importing {module_name} raised {_told(error)}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"{flag}: {module_name} has no function {function_name}")
    return function


@dataclass(frozen=True)
class RewardSum:
    """Several rewards, each times its weight."""

    parts: Sequence[Reward]
    weights: Sequence[float]

    @property
    def name(self) -> str:
        return "+".join(part.name for part in self.parts)

    def __call__(self, queries: Sequence[Query], answers: Sequence[Completion]) -> list[float]:
        scores = [part(queries, answers) for part in self.parts]  # (parts, answers)
        return [math.fsum(w * s for w, s in zip(self.weights, column)) for column in zip(*scores)]


def shown(query: Query) -> str:
    """A prompt in a message: its last turn, cut short."""
    text = query.messages[-1]["content"]
    return repr(text if len(text) <= 80 else text[:80] + "…")


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _listed(scores: Any) -> list[Any] | None:
    """The values of a list, a tuple, or an array or tensor of one dimension; None for anything else.

    What else can be looped over has no order that is the answers' (a set, a dict) or is no list of numbers (a text).
    """
    if hasattr(scores, "tolist"):
        scores = scores.tolist()
    return list(scores) if isinstance(scores, (list, tuple)) else None


def _is_finite_number(value: Any) -> bool:
    if isinstance(value, (str, bytes)):  # float("1") is a number, and "1" none
        return False
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False
