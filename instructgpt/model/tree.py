"""Modules around tensors that there are already: a layer of a weight, a copy of a tree that shares what it holds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def linear_of(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """The layer of this weight (out, in) and bias (out,), which draws none of its own."""
    linear = nn.Linear(weight.size(1), weight.size(0), bias=False, device="meta")
    linear.weight = weight
    linear.register_parameter("bias", bias)
    return linear


def with_exchanged(module: Module, exchange: Callable[[nn.Module], nn.Module | None]) -> Module:
    """A copy of the tree of modules, not of what they hold, in which some are others.

    exchange: what is to stand in a module's place; None to go on below it.
    """
    twin = copy.copy(module)
    twin.__dict__["_modules"] = {
        name: child and (exchange(child) or with_exchanged(child, exchange)) for name, child in module._modules.items()
    }
    return twin
