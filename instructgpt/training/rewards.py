"""Where rewards come from: the world's checker, a reward model, a function of the user's, or a weighted sum of them."""

from __future__ import annotations

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
    """A function `f(prompts, answers) -> list[float]` of the user's; prompts are lists of messages, answers are texts.

    If it has a third parameter named `references`, it also gets the answers that stand in the data.
    """

    def __init__(self, name: str, function: Callable[..., Any]):
        self.name, self._function = name, function
        self._takes_references = "references" in inspect.signature(function).parameters

    def __call__(self, queries: Sequence[Query], answers: Sequence[Completion]) -> list[float]:
        try:
            scores = self._call(queries, answers)
        except Exception as error:
            raise UserError(f"{self._where} raised {_told(error)} for {self._culprit(queries, answers)}") from error
        try:
            scores = list(scores)
        except TypeError:
            raise UserError(f"{self._where} gave {type(scores).__name__}; it must give a list of numbers") from None
        if len(scores) != len(queries):
            first = f"the first prompt: {shown(queries[0])}" if queries else "no prompts"
            raise UserError(f"{self._where} gave {len(scores)} values for {len(queries)} answers ({first})")
        for query, answer, score in zip(queries, answers, scores):
            if not _is_finite_number(score):
                raise UserError(
                    f"{self._where} gave {score!r}, which is no finite number, for the answer {answer.text[:60]!r} to "
                    f"{shown(query)}"
                )
        return [float(score) for score in scores]

    @property
    def _where(self) -> str:
        return f"--reward-function {self.name}"

    def _call(self, queries: Sequence[Query], answers: Sequence[Completion]) -> Any:
        more = {"references": [query.reference for query in queries]} if self._takes_references else {}
        return self._function([query.messages for query in queries], [answer.text for answer in answers], **more)

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
    module_name, colon, function_name = name.rpartition(":")
    flag = f"--reward-function {name}"
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
    return FunctionReward(name, function)


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


def _is_finite_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
