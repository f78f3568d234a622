"""Indices outside of what they index: NaN in the rows that they concern, or an error where one is asked for.

Whether an index is right is known on the device alone, and raising would make the CPU wait for the device at each call.
So no op raises, kernel or reference: it reads and writes nothing outside, and gives NaN in the rows concerned. With the
environment variable KERNELS_DEBUG=1 each call waits and raises, as PyTorch's device-side assertions do.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor


def debugging() -> bool:
    """Whether ops look at the values of indices and raise: KERNELS_DEBUG=1, outside of what torch.compile traces."""
    return not torch.compiler.is_compiling() and os.environ.get("KERNELS_DEBUG", "") not in ("", "0")


def require_values(op: str, is_right: Callable[[], Tensor], explain: Callable[[tuple[int, ...]], str]) -> None:
    """While debugging, ValueError with `explain(place)` of the first place where `is_right()` (bool) is False."""
    if not debugging():
        return
    wrong = (~is_right()).nonzero()
    if len(wrong):
        raise ValueError(f"{op}: {explain(tuple(wrong[0].tolist()))}")


def require_indices(
    op: str, name: str, indices: Tensor, end: int, what: str, begin: int = 0, allowed: int | None = None
) -> None:
    """While debugging, ValueError for the first of `indices` not in [begin, end), nor `allowed`.

    name: the argument; what: what `end` counts, such as "a vocabulary of 50,304".
    """

    def is_right() -> Tensor:
        is_inside = (indices >= begin) & (indices < end)
        return is_inside if allowed is None else is_inside | (indices == allowed)

    def explain(place: tuple[int, ...]) -> str:
        at = ", ".join(map(str, place))
        right = f"from {begin} to {end - 1}" + ("" if allowed is None else f", or {allowed}")
        return f"{name}[{at}] is {int(indices[place])}, outside of {what}: it must be {right}"

    require_values(op, is_right, explain)


def require_targets(op: str, targets: Tensor, vocabulary: int, ignore_index: int | None = None) -> None:
    """While debugging, ValueError for the first of `targets` outside of the vocabulary that is not `ignore_index`."""
    if debugging():  # else not even the text is made: while torch.compile traces, the size may be a symbol
        require_indices(op, "targets", targets, vocabulary, f"a vocabulary of {vocabulary:,}", allowed=ignore_index)


def is_unknown(targets: Tensor, vocabulary: int) -> Tensor:
    """True where a target is outside of the vocabulary."""
    return (targets < 0) | (targets >= vocabulary)


def known_targets(targets: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """targets with 0 in place of those outside of the vocabulary, and what to multiply their rows' results by: 1, or,
    where the target was outside, NaN, which makes the gradient of such a row NaN too."""
    outside = is_unknown(targets, vocabulary)
    return targets.masked_fill(outside, 0), torch.where(outside, float("nan"), 1.0)
