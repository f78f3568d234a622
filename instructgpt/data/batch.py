"""What a model is fed: a packed batch, and the protocol of a resumable stream of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents; every tensor is (B, T). Documents in a row do not see each other."""

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

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.documents >= 0).sum())

    def to(self, device: torch.device) -> Batch:
        return Batch(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


class BatchStream(Protocol):
    """An endless, deterministic stream of batches whose place can be saved and restored."""

    def __iter__(self) -> Iterator[Any]: ...

    def __next__(self) -> Any: ...

    def state(self) -> dict[str, Any]:
        """Where the stream stands, as JSON-able values: restoring it makes the next batch the same one."""
        ...

    def restore(self, state: dict[str, Any]) -> None: ...
