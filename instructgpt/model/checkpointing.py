"""Activation checkpointing (Chen et al. 2016): keep less of the forward for the backward, and compute it again there.

    none        what autograd keeps: some 16 widths a token and layer, and the scores where attention holds them
    blocks      each block's input alone; its forward runs once more in the backward, up to its last matrix product
    selective   results of matrix products and attention too; what is cheap is computed again (Korthikanti et al. 2022)

Gradients are those without checkpointing, to the bit where the operators give the same bits each time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Checkpointing = Literal["none", "blocks", "selective"]

_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


def recomputed(function: Callable[..., Tensor], *inputs: Any, how: Checkpointing, is_random: bool) -> Tensor:
    """function(*inputs), of which autograd keeps the inputs, and with `selective` the dear results.

    is_random: the function draws random numbers; the same ones are drawn again then, which costs a copy of the
    generator's state.
    """
    if how == "blocks":
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=is_random)
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=is_random, context_fn=contexts)


def _policy(context: Any, operator: Any, *inputs: Any, **named: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if _is_dear(operator, inputs) else CheckpointPolicy.PREFER_RECOMPUTE


def _is_dear(operator: Any, inputs: tuple[Any, ...]) -> bool:
    """Products with weights, and attention, whoever computes it; of its scores as a matrix only what comes of them."""
    if operator is torch.ops.aten.bmm.default:
        (T, n), m = inputs[0].shape[-2:], inputs[1].size(-1)
        return T * m <= T * n + n * m  # not what is larger than all it is made of, as the scores are
    return operator in _PRODUCTS or "attention" in operator.name()
