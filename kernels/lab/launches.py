"""Which kernels an op launches, whether they run natively or in the interpreter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from kernels.lab.memory import bits
from kernels.launch import INTERPRETED


@dataclass(frozen=True)
class Launch:
    """A kernel that was launched."""

    kernel: str
    programs: int
    stream: int = 0
    """Where, as CUDA numbers streams."""


During = Callable[[Callable[[], Any], list[Tensor]], Any]
"""What is done at a launch, given that and the tensors that the kernel gets."""


def run_it(launch: Callable[[], Any], tensors: list[Tensor]) -> Any:
    return launch()


def leave_it_out(launch: Callable[[], Any], tensors: list[Tensor]) -> None:
    """Memory stays as it was."""


class Tape:
    """What kernels wrote, launch by launch, to be written again where others compute."""

    def __init__(self) -> None:
        self.written: list[dict[int, Tensor]] = []
        """Of each launch: the place among the kernel's tensors -> what was in it afterwards, where that was new."""
        self.storages: set[int] = set()
        """Where it was written."""
        self.played = 0

    def record(self, launch: Callable[[], Any], tensors: list[Tensor]) -> Any:
        before = [t.detach().clone() for t in tensors]
        result = launch()
        changed = {i: t.detach().clone() for i, t in enumerate(tensors) if not torch.equal(bits(t), bits(before[i]))}
        self.written.append(changed)
        self.storages |= {tensors[i].untyped_storage().data_ptr() for i in changed}
        return result

    def play(self, launch: Callable[[], Any], tensors: list[Tensor]) -> None:
        """Instead of the launch."""
        written = self.written[self.played] if self.played < len(self.written) else {}
        self.played += 1
        for i, t in written.items():
            if i < len(tensors) and tensors[i].shape == t.shape and tensors[i].dtype == t.dtype:
                bits(tensors[i]).copy_(bits(t))


@contextmanager
def watched_launches(during: During = run_it) -> Iterator[list[Launch]]:
    """Yields the growing list of what is launched inside."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    seen: list[Launch] = []

    def watching(run: Any) -> Any:
        def run_watched(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
            def launch() -> Any:
                return run(self, *args, grid=grid, warmup=warmup, **options)

            if warmup:
                return launch()
            size: Any = grid(bound(self, args, options)) if callable(grid) else grid
            seen.append(Launch(self.__name__, math.prod(size), current_stream()))
            return during(launch, list(tensors_in((*args, *options.values()))))

        return run_watched

    with ExitStack() as stack:
        for owner in (InterpretedFunction, JITFunction):
            stack.enter_context(mock.patch.object(owner, "run", watching(owner.run)))
        yield seen


def tensors_in(arguments: Iterable[Any]) -> Iterator[Tensor]:
    """Those that a kernel gets by themselves, in tuples, or described."""
    for value in arguments:
        if isinstance(value, (tuple, list)):
            yield from tensors_in(value)
        elif isinstance(tensor := getattr(value, "base", value), Tensor):
            yield tensor


def current_stream() -> int:
    """The stream that work is queued on at this moment; 0 on a CPU."""
    return 0 if INTERPRETED or not torch.cuda.is_available() else torch.cuda.current_stream().cuda_stream


def bound(function: Any, args: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name, as a grid that is a function expects them."""
    return {**dict(zip(function.arg_names, args)), **options}
