"""`--weights`: how often each of --data is drawn beside the others, the same in every stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from instructgpt.data.data_file import DataFile
from instructgpt.data.sources import Mixture
from instructgpt.errors import UserError


def require_weights(data: Sequence[str], weights: Sequence[float]) -> None:
    """Raises UserError unless there are none, or one for each of --data."""
    if weights and len(weights) != len(data):
        raise UserError(f"--weights has {len(weights)} values for {len(data)} sources in --data")


def groups(data: Sequence[str], weights: Sequence[float]) -> list[list[str]]:
    """--data as sources to mix: with --weights each file is one, without them all files together are."""
    if weights:
        return [[name] for name in data]
    files = [name for name in data if name != "world"]
    return [group for group in (files, ["world"] if "world" in data else []) if group]


def of_group(group: Sequence[str], files: Sequence[DataFile], parts: Sequence[Sequence[Any]]) -> list[Any]:
    """What is trained on of a group's files, `parts` being that of each of `files`. Errors: UserError for nothing."""
    return require_some([each for file, part in zip(files, parts) if file.path in group for each in part], group)


def require_some(chosen: list[Any], group: Sequence[str]) -> list[Any]:
    """What is trained on of a group. Errors: UserError for nothing."""
    if not chosen:
        raise UserError("nothing of it is left to train on: it is held out, or in files before it", group[0])
    return chosen


def mixed(parts: Sequence[Any], weights: Sequence[float], seed: int) -> Any:
    """One source of several, drawn by their weights, or all as often."""
    return parts[0] if len(parts) == 1 else Mixture(parts, weights or [1.0] * len(parts), seed)
