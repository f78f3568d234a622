"""What an op must leave as it is: the process's settings, and the functions that judge it."""

from __future__ import annotations

import builtins
import importlib
import math
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.lab.launches import current_stream
from kernels.lab.limits import Wrong
from kernels.lab.rounding import decompositions


@contextmanager
def same_state() -> Iterator[None]:
    """Raises Wrong where what runs inside changes a setting of the process."""
    before = state()
    yield
    for name, value in state().items():
        if value != before[name]:
            raise Wrong(f"it changes {name}, which others rely on")


class Names:
    """What judges, by name, as it was when this was made."""

    def __init__(self, modules: tuple[str, ...] = ("kernels.lab.",), of_others: bool = True) -> None:
        """modules: how the names of those begin that judge. of_others: also what PyTorch has and what tells the time,
        which takes a second or two."""
        if of_others:
            importlib.import_module(
                "torch._dynamo"
            )  # which replaces functions of PyTorch itself, when it is first used
            decompositions()  # sets a variable of the environment
            with suppress(ImportError):
                importlib.import_module("triton.testing")
        watched = [*(owners_of_others() if of_others else ()), *owners(modules)]
        self.names = {owner: names_of(owner) for owner in watched}

    def require_unchanged(self) -> None:
        """Raises Wrong where a function was replaced."""
        for owner, before in self.names.items():
            now = vars(owner)
            replaced = [name for name, was in before.items() if name[:2] != "__" and now.get(name) is not was]
            if isinstance(owner, type):
                replaced += [name for name in now if name not in before]
            if replaced:
                raise Wrong(f"it replaces {owner.__name__}.{replaced[0]}, which others rely on")


def names_of(owner: ModuleType | type) -> dict[str, Any]:
    """What may not be replaced. What torch.cuda knows of the devices it learns when they are first used."""
    return {name: value for name, value in vars(owner).items() if owner is not torch.cuda or callable(value)}


def owners_of_others() -> Iterator[ModuleType | type]:
    """Modules and classes of Python and of PyTorch whose functions are used in judging, or tell the time."""
    yield from (builtins, math, time, np, torch, torch.nn.functional, torch.autograd, torch.linalg, Tensor)
    yield from (torch.cuda, torch.cuda.Event, torch.cuda.Stream, torch.cuda.CUDAGraph)
    if (timer := sys.modules.get("triton.testing")) is not None:  # where there is Triton
        yield timer


def owners(modules: tuple[str, ...]) -> Iterator[ModuleType | type]:
    """Modules whose names begin so, and their classes."""
    for name, module in list(sys.modules.items()):
        if name.startswith(modules) and module is not None:
            yield module
            yield from (v for v in vars(module).values() if isinstance(v, type) and v.__module__ == name)


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
        "numpy's random state": str(np.random.get_state(legacy=False)),  # noqa: NPY002
        "numpy's error handling": tuple(np.geterr().items()),
        "Python's random state": hash(random.getstate()),
        "the environment": dict(os.environ),
        "PyTorch's current stream": current_stream(),
        "which threads run": sorted(thread.name for thread in threading.enumerate()),
        "the working directory": os.getcwd(),
        "sys.path": tuple(sys.path),
    }
