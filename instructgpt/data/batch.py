"""What a model is fed: a packed batch, and the protocol of a resumable stream of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

Record = TypeVar("Record")


def mapped(record: Record, function: Callable[[Tensor], Tensor]) -> Record:
    """A dataclass with each of its tensors, and those of the dataclasses in it, replaced by what `function` gives."""
    found = copy.copy(record)
    for each in fields(record):  # pyright: ignore[reportArgumentType]
        value = getattr(record, each.name)
        if isinstance(value, Tensor):
            object.__setattr__(found, each.name, function(value))
        elif is_dataclass(value):
            object.__setattr__(found, each.name, mapped(value, function))
    return found


def moved(record: Record, device: torch.device) -> Record:
    """The dataclass with its tensors on `device`; from pinned memory they get there while the device computes."""
    return mapped(record, lambda tensor: tensor.to(device, non_blocking=True))


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents, which do not see each other; tensors are (B, T) where nothing else is said."""

    ids: Tensor
    """Input tokens, int64."""
    targets: Tensor
    """The token that follows each input token in its document, int64; meaningless where `is_target` is False."""
    is_target: Tensor
    """True where the target is to be predicted and counts in the loss: never in a prompt, never in padding."""
    positions: Tensor
    """Position of each token in its own document, int64; restarts at 0 in each."""
    documents: Tensor
    """Number of the document within its row, int64, counted from 0; -1 marks padding."""

    places: Tensor = field(init=False)
    """(N,) int64: where the targets are, in the rows laid end to end. Found once, on the CPU: their number decides
    shapes, and to learn it from a GPU is to wait for it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "places", self.is_target.flatten().nonzero()[:, 0])

    @property
    def tokens(self) -> Tensor:
        """Tokens that are not padding, a scalar on the batch's device."""
        return (self.documents >= 0).sum()

    def at_targets(self, values: Tensor) -> Tensor:
        """Rows (N, ...) of values (B, T, ...): those of the positions that predict a target."""
        return values.flatten(0, 1).index_select(0, self.places)

    def to(self, device: torch.device) -> Batch:
        return moved(self, device)


class BatchStream(Protocol):
    """An endless, deterministic stream of batches whose place can be saved and restored."""

    def __iter__(self) -> Iterator[Any]: ...

    def __next__(self) -> Any: ...

    def state(self) -> dict[str, Any]:
        """Where the stream stands, as JSON-able values: restoring it makes the next batch the same one."""
        ...

    def restore(self, state: dict[str, Any]) -> None: ...
