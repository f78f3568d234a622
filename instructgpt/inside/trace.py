"""What a model computes on one text: recorded while its own modules run, and gone on with from any layer.

Dimensions: T tokens, C width, L layers, H heads, D head_dim, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from instructgpt.model.adapters import adapters_of, settled
from instructgpt.model.quantize import unquantize
from instructgpt.model.transformer import Block, Transformer
from kernels import causal_mask


def readable(model: Transformer) -> Transformer:
    """The same model, changed in place, as what can be looked into: an adapter in use is in the weights, weights of few
    bits are the numbers that they stand for, and the weights need no gradient."""
    model = settled(model) if adapters_of(model) else unquantize(model)
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Trace:
    """One text, read once."""

    ids: Tensor
    """(T,)"""
    stream: list[Tensor]
    """L + 1 of (T, C): the residual stream before each block, and after the last."""
    attention: list[Tensor]
    """L of (H, T, T): how much each query, the second index, attends to each key."""
    heads: list[Tensor]
    """L of (T, H·D): what the heads found, side by side, as `attention.output` reads it."""
    neurons: list[Tensor]
    """L of (T, mlp_width): activations, as `mlp.down` reads them."""


@torch.no_grad()
def record(model: Transformer, ids: Tensor) -> Trace:
    """What the model computes on ids (T,)."""
    trace = Trace(ids, [], [], [], [])
    with ExitStack() as stack:
        stack.enter_context(seen_attention(model, trace.attention))
        for block in blocks(model):
            for module, into in ((block.attention.output, trace.heads), (block.mlp.down, trace.neurons)):
                stack.enter_context(seen_input(module, into))
            stack.enter_context(seen_input(block, trace.stream))
        stack.enter_context(seen_input(model.final_norm, trace.stream))
        model.hidden(ids[None])
    return Trace(
        ids, *([each[0] for each in part] for part in (trace.stream, trace.attention, trace.heads, trace.neurons))
    )


def blocks(model: Transformer) -> list[Block]:
    found: Any = model.blocks
    return list(found)


@contextmanager
def seen_input(module: torch.nn.Module, into: list[Tensor]) -> Iterator[None]:
    """Each first input of the module is appended to `into`."""
    handle = module.register_forward_pre_hook(lambda _, given: into.append(given[0]))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def seen_attention(model: Transformer, into: list[Tensor]) -> Iterator[None]:
    """Each layer's attention probabilities (B, H, T, T) are appended to `into`: those of the very queries and keys that
    the model hands to its backend, after norms, convolution and rotation. What the model computes stays as it is."""
    backend = model.backend

    def attention(q: Tensor, k: Tensor, v: Tensor, visibility: Any) -> Tensor:
        into.append(probabilities(q, k))
        return backend.attention(q, k, v, visibility)

    modules = [block.attention for block in blocks(model)]
    for module in modules:
        module.backend = replace(backend, attention=attention)
    try:
        yield
    finally:
        for module in modules:
            module.backend = backend


def probabilities(q: Tensor, k: Tensor) -> Tensor:
    """softmax(Q Kᵀ / √D) over the keys up to each query (Vaswani et al. 2017, eq. 1), which a fused attention never
    holds: (B, H, T, T) of q (B, H, T, D) and k (B, K, T, D), in float32 at least."""
    groups = q.size(1) // k.size(1)
    q, k = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k.repeat_interleave(groups, dim=1)))
    scores = q @ k.mT / math.sqrt(q.size(-1))
    return scores.masked_fill(~causal_mask(q.size(2), k.size(2), q.device), -math.inf).softmax(-1)


def onwards(model: Transformer, x: Tensor, layer: int, places: Tensor) -> Tensor:
    """Logits (B, P, V) at `places` (P,) of the text, from the residual stream x (B, T, C) before block `layer` on. With
    the number of layers it is what stands behind the last."""
    positions = torch.arange(x.size(1), device=x.device)[None]
    scope = model.scope(x, positions, None, None)
    for block in blocks(model)[layer:]:
        x = block(x, scope)
    return model.head(model.final_norm(x[:, places]))


def targets_after(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities (B, P) in nats of targets (P,), in float32 at least, by logits (B, P, V)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    chosen = logits.gather(-1, targets.expand(len(logits), -1)[..., None]).squeeze(-1)
    return chosen - logits.logsumexp(-1)
