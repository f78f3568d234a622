"""Parts of a model that can be left out, or made to say what they say on another text.

Heads stand side by side in what `attention.output` reads, neurons in what `mlp.down` reads. So a head, a neuron, a
layer's whole attention or MLP is a stretch of one module's input; set to zero, nothing of it reaches the residual
stream (but for the module's bias, which belongs to no part). An MLP's neurons are keys with values (Geva et al. 2021,
eq. 2): the activation says how well the key fits, and the neuron's column of `down` is the value that is then added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from instructgpt.config import ModelConfig
from instructgpt.inside.trace import Trace, blocks, onwards, targets_after
from instructgpt.model.transformer import Transformer

_TOKENS_AT_ONCE = 4096
"""Of all rows of a forward together."""


class Part(NamedTuple):
    """A stretch of what one layer's `attention.output` or `mlp.down` reads."""

    layer: int
    kind: Literal["attention", "mlp"]
    first: int
    end: int


def head(config: ModelConfig, layer: int, number: int) -> Part:
    D = config.head_dim
    return Part(layer, "attention", number * D, (number + 1) * D)


def every_head(config: ModelConfig) -> list[Part]:
    """Layer by layer."""
    return [head(config, layer, number) for layer in range(config.layers) for number in range(config.heads)]


def neuron(layer: int, number: int) -> Part:
    return Part(layer, "mlp", number, number + 1)


def whole(config: ModelConfig, layer: int, kind: Literal["attention", "mlp"]) -> Part:
    """All heads or all neurons of a layer."""
    return Part(layer, kind, 0, config.heads * config.head_dim if kind == "attention" else config.mlp_width)


Edit = Callable[[Tensor], Tensor]


@contextmanager
def edited(model: Transformer, layer: int, kind: Literal["attention", "mlp"], edit: Edit) -> Iterator[None]:
    """Within, `attention.output` or `mlp.down` of the layer reads `edit` of its input (B, T, heads or neurons)."""
    block = blocks(model)[layer]
    module = block.attention.output if kind == "attention" else block.mlp.down
    handle = module.register_forward_pre_hook(lambda _, given: (edit(given[0]),))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def left_out(model: Transformer, parts: Iterable[Part]) -> Iterator[None]:
    """Within, the model computes without these parts, in generation, too: they say zero on every token."""
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(edited(model, part.layer, part.kind, exchange([part])))
        yield


@contextmanager
def taken_from(model: Transformer, parts: Iterable[Part], other: Trace) -> Iterator[None]:
    """Within, these parts say what they said on another text of as many tokens (activation patching)."""
    with ExitStack() as stack:
        for part in parts:
            said = (other.heads if part.kind == "attention" else other.neurons)[part.layer]
            stack.enter_context(edited(model, part.layer, part.kind, exchange([part], said)))
        yield


def exchange(parts: Sequence[Part], said: Tensor | None = None, row_by_row: bool = False) -> Edit:
    """Each of the parts says what stands in `said` (T, all heads or neurons) or, without it, zero. row_by_row: each of
    them does so in one row of the batch, the first in the first."""

    def edit(x: Tensor) -> Tensor:
        x = x.clone()
        for row, part in enumerate(parts):
            rows = row if row_by_row else slice(None)
            x[rows, :, part.first : part.end] = 0 if said is None else said[:, part.first : part.end]
        return x

    return edit


class Without(NamedTuple):
    """What becomes of an answer without one part."""

    part: Part
    logprobs: Tensor
    """(P,) of the answer's tokens, in nats, each after the tokens before it."""
    greedy: Tensor
    """(P,) the likeliest token in each of their places."""


@torch.no_grad()
def without_each(model: Transformer, trace: Trace, parts: Sequence[Part], places: Tensor) -> list[Without]:
    """Each of the parts left out alone. places: (P,), those before the answer's tokens, where these are predicted.

    Parts of a layer are rows of one batch, which begins at that layer: what stands before it is in the trace.
    """
    found: list[Without] = []
    targets, at_once = trace.ids[places + 1], max(1, _TOKENS_AT_ONCE // len(trace.ids))
    for (layer, kind), group in groupby(parts, lambda part: (part.layer, part.kind)):
        alike = list(group)
        for start in range(0, len(alike), at_once):
            rows = alike[start : start + at_once]
            x = trace.stream[layer].expand(len(rows), -1, -1)
            with edited(model, layer, kind, exchange(rows, row_by_row=True)):
                logits = onwards(model, x, layer, places)  # (rows, P, V)
            found += map(Without, rows, targets_after(logits, targets), logits.argmax(-1))
    return found


@contextmanager
def without_direction(model: Transformer, layer: int, direction: Tensor) -> Iterator[None]:
    """Within, the residual stream behind block `layer` says nothing along `direction` (C,): x - (x·d) d, d of length 1
    (nullspace projection, Ravfogel et al. 2020, of one direction)."""
    d = direction / direction.norm()
    handle = blocks(model)[layer].register_forward_hook(lambda _, given, x: x - (x @ d)[..., None] * d)
    try:
        yield
    finally:
        handle.remove()
