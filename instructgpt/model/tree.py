"""Two models of one set of tensors: a tree of modules copied, what they hold shared."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def with_exchanged(module: Module, exchange: Callable[[nn.Module], nn.Module | None]) -> Module:
    """A copy of the tree of modules, not of what they hold, in which some are others.

    exchange: what is to stand in a module's place; None to go on below it.
    """
    twin = copy.copy(module)
    twin.__dict__["_modules"] = {
        name: child and (exchange(child) or with_exchanged(child, exchange)) for name, child in module._modules.items()
    }
    return twin
