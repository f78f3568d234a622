"""Which kernels an op launches, whether they run natively or in the interpreter."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from kernels.launch import INTERPRETED


@dataclass(frozen=True)
class Launch:
    """A kernel that was launched."""

    kernel: str
    programs: int
    stream: int = 0
    """Where, as CUDA numbers streams."""


@contextmanager
def watched_launches(is_run: bool = True) -> Iterator[list[Launch]]:
    """Yields the growing list of what is launched inside; without `is_run` nothing is, and memory stays as it was."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    seen: list[Launch] = []

    def watching(run: Any) -> Any:
        def run_watched(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
            if not warmup:
                size: Any = grid(bound(self, args, options)) if callable(grid) else grid
                seen.append(Launch(self.__name__, math.prod(size), current_stream()))
            return run(self, *args, grid=grid, warmup=warmup, **options) if is_run or warmup else None

        return run_watched

    with ExitStack() as stack:
        for owner in (InterpretedFunction, JITFunction):
            stack.enter_context(mock.patch.object(owner, "run", watching(owner.run)))
        yield seen


def current_stream() -> int:
    """The stream that work is queued on at this moment; 0 on a CPU."""
    return 0 if INTERPRETED or not torch.cuda.is_available() else torch.cuda.current_stream().cuda_stream


def bound(function: Any, args: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name, as a grid that is a function expects them."""
    return {**dict(zip(function.arg_names, args)), **options}
