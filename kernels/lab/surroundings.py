"""What an op must leave as it is: the process's settings, and the functions that judge it."""

from __future__ import annotations

import _thread
import builtins
import gc
import importlib
import math
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from multiprocessing import connection
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.lab.launches import current_stream
from kernels.lab.limits import Wrong
from kernels.lab.rounding import decompositions


@contextmanager
def same_state() -> Iterator[None]:
    """Raises Wrong where what runs inside changes a setting of the process, or replaces a function that judges: looked
    at before anything is judged, for what is put back later would not be seen."""
    names = Names()  # first, for what it imports sets a variable of the environment
    before = state()
    yield
    for name, value in state().items():
        if value != before[name]:
            raise Wrong(f"it changes {name}, which others rely on")
    names.require_unchanged()


class Names:
    """What judges, by name, as it was when this was made."""

    def __init__(self, modules: tuple[str, ...] = ("kernels.lab.",), of_others: bool = True) -> None:
        """modules: how the names of those begin that judge. of_others: also what PyTorch has and what tells the time,
        which takes a second or two, the first time."""
        if of_others:
            import_what_replaces()
        owners, self.insides = watched(modules, of_others, len(sys.modules))
        self.names = {owner: vars(owner).copy() for owner in owners}
        self.places = {owner: [*map(id, names.values())] for owner, names in self.names.items()}
        self.inside = [content(value) for _, value in self.insides]

    def require_unchanged(self) -> None:
        """Raises Wrong where a function was replaced, or what is in one."""
        for owner, before in self.names.items():
            if [*map(id, vars(owner).values())] != self.places[owner] and (names := replaced(owner, before)):
                raise Wrong(f"it replaces {owner.__name__}.{names[0]}, which others rely on")
        for (name, value), before in zip(self.insides, self.inside):
            if content(value) != before:
                raise Wrong(f"it replaces {name}, which others rely on")


@lru_cache(maxsize=1)
def import_what_replaces() -> None:
    """Imports once what changes others when it is imported."""
    importlib.import_module("torch._dynamo")  # which replaces functions of PyTorch itself
    decompositions()  # sets a variable of the environment
    for module in ("triton.testing", "triton.runtime.interpreter"):
        with suppress(ImportError):
            importlib.import_module(module)


def replaced(owner: ModuleType | type, before: dict[str, Any]) -> list[str]:
    now = vars(owner)
    names = [name for name, was in before.items() if now.get(name) is not was and counts(name, was, owner)]
    if isinstance(owner, type):
        names += [name for name, value in now.items() if name not in before and counts(name, value, owner)]
    return names


def counts(name: str, value: Any, owner: ModuleType | type) -> bool:
    """Whether it may not be replaced. What torch.cuda knows of the devices it learns when they are first used, and
    Python itself sets names such as __doc__."""
    return callable(value) if owner in (torch.cuda, sys) or name[:2] == "__" else True


@lru_cache(maxsize=8)
def watched(
    modules: tuple[str, ...], of_others: bool, loaded: int
) -> tuple[list[ModuleType | type], list[tuple[str, Any]]]:
    """Owners of names, and by name what they own that could be changed inside, and be the same object still: functions
    of the judging modules and of tensors, tables of the lab. loaded: how many modules are, to ask again."""
    known = [*(owners_of_others() if of_others else ()), *owners(modules)]
    insides: list[tuple[str, Any]] = []
    for owner in known:
        module = getattr(owner, "__module__", owner.__name__)
        kinds = (FunctionType, dict, list) if module.startswith("kernels.lab.") else FunctionType
        if module.startswith(modules) or owner is Tensor:
            values = {name: getattr(value, "__func__", value) for name, value in vars(owner).items()}
            insides += [
                (f"{owner.__name__}.{name}", value)
                for name, value in values.items()
                if isinstance(value, kinds) and name != "__builtins__"
            ]
    return known, insides


def content(value: FunctionType | dict[Any, Any] | list[Any]) -> Any:
    if isinstance(value, FunctionType):
        named = value.__kwdefaults__
        return value.__code__, value.__defaults__, named and tuple(named.items())
    return value.copy()


def owners_of_others() -> Iterator[ModuleType | type]:
    """Modules and classes of Python and of PyTorch whose functions are used in judging, or tell the time."""
    yield from (builtins, sys, math, time, statistics, np, torch, torch.nn.functional, torch.autograd, torch.linalg)
    yield from (Tensor, torch._C.TensorBase, torch.Generator, TorchDispatchMode, torch.autograd.Function)
    yield from (torch.cuda, torch.cuda.Event, torch.cuda.Stream, torch.cuda.CUDAGraph)
    yield from (mock, connection.Connection)
    for name in ("hypothesis", "triton.testing", "triton.runtime.jit", "triton.runtime.interpreter"):
        if (module := sys.modules.get(name)) is not None:  # where they are installed
            yield module
            yield from classes_of(module)


def owners(modules: tuple[str, ...]) -> Iterator[ModuleType | type]:
    """Modules whose names begin so, and their classes."""
    for name, module in list(sys.modules.items()):
        if name.startswith(modules) and module is not None:
            yield module
            yield from classes_of(module)


def classes_of(module: ModuleType) -> list[type]:
    """Its own."""
    return [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__]


def state() -> dict[str, Any]:
    """Settings of the process, by what a message calls them."""
    return {
        "PyTorch's default dtype": torch.get_default_dtype(),
        "PyTorch's default device": str(torch.get_default_device()),
        "PyTorch's number of threads": torch.get_num_threads(),
        "whether PyTorch is deterministic": torch.are_deterministic_algorithms_enabled(),
        "whether gradients are recorded": torch.is_grad_enabled(),
        "the precision of float32 matrix products": (
            torch.get_float32_matmul_precision(),
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        ),
        "whether denormal numbers are flushed": float(torch.tensor(1e-40) * 1) == 0.0,
        "PyTorch's random state": torch.get_rng_state().numpy().tobytes(),
        "numpy's random state": numbers_of_numpy(),
        "numpy's error handling": tuple(np.geterr().items()),
        "Python's random state": hash(random.getstate()),
        "the environment": dict(os.environ),
        "PyTorch's current stream": current_stream(),
        "which threads run": (sorted(thread.name for thread in threading.enumerate()), _thread._count()),
        "which processes run": children(),
        "what a signal does": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "which timers run": timers(),
        "when memory is collected": (gc.isenabled(), tuple(gc.callbacks)),
        "what watches Python": (sys.getprofile(), sys.gettrace()),
        "where is printed": (sys.stdout, sys.stderr),
        "PyTorch's modes": (
            torch._C._len_torch_function_stack(),
            torch._C._len_torch_dispatch_stack(),
            torch.is_inference_mode_enabled(),
            torch.is_anomaly_enabled(),
            *((torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in ("cpu", "cuda")),
        ),
        "the working directory": os.getcwd(),
        "sys.path": tuple(sys.path),
    }


def numbers_of_numpy() -> tuple[bytes, int]:
    state: Any = np.random.get_state(legacy=False)["state"]  # noqa: NPY002  # pyright: ignore
    return state["key"].tobytes(), state["pos"]


def children() -> list[str]:
    """The ids of the processes that this one has started and that are there still; none where the system, being no
    Linux, does not tell."""
    return sorted(" ".join(file.read_text() for file in Path("/proc/self/task").glob("*/children")).split())


def timers() -> list[bool]:
    """Whether each of the process's timers runs."""
    kinds = (getattr(signal, name, None) for name in ("ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF"))
    return [signal.getitimer(kind)[0] > 0 for kind in kinds if kind is not None]
