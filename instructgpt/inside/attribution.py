"""Which tokens an answer's token rests on: by the gradient, and by leaving each of them out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from instructgpt.inside.trace import blocks, seen_input, targets_after
from instructgpt.model.transformer import Transformer

_TOKENS_AT_ONCE = 4096


class Gradients(NamedTuple):
    """First-order estimates of what the log-probabilities of P tokens owe to what they were computed from, in nats."""

    tokens: Tensor
    """(P, T) of each token before them."""
    neurons: Tensor
    """(P, L, mlp_width) of each neuron, on all tokens together."""


def gradient_times_input(model: Transformer, ids: Tensor, places: Tensor) -> Gradients:
    """Σ_c e_tc · ∂ log p / ∂e_tc for each token's embedding e_t (Shrikumar et al. 2016, "gradient ∗ input"), and the
    same of each neuron's activation.

    ids (T,) is the text, `places` (P,) stand before the tokens whose log p it is. The sum over all tokens is the slope
    of log p when all embeddings grow in proportion; of a linear function, it is the function.
    """
    with torch.enable_grad(), ExitStack() as stack:
        embedded: list[Tensor] = []
        stack.enter_context(_leaf(model.embedding, embedded))
        neurons: list[Tensor] = []
        for block in blocks(model):
            stack.enter_context(seen_input(block.mlp.down, neurons))
        logprobs = targets_after(model.head(model.hidden(ids[None])[:, places]), ids[places + 1])[0]
        inputs = [*embedded, *neurons]  # (1, T, C) and L of (1, T, mlp_width)
        rows = []
        for logprob in logprobs:
            slopes = torch.autograd.grad(logprob, inputs, retain_graph=True)
            owed = [(x * slope)[0].detach() for x, slope in zip(inputs, slopes)]
            rows.append((owed[0].sum(-1), torch.stack([each.sum(0) for each in owed[1:]])))
    return Gradients(*(torch.stack(each) for each in zip(*rows)))


@contextmanager
def _leaf(module: torch.nn.Module, into: list[Tensor]) -> Iterator[None]:
    """What the module gives is a leaf to differentiate by, and appended to `into`."""

    def cut(module: torch.nn.Module, given: tuple[Tensor, ...], y: Tensor) -> Tensor:
        into.append(y.detach().requires_grad_())
        return into[-1]

    handle = module.register_forward_hook(cut)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def leaving_each_token_out(model: Transformer, ids: Tensor, places: Tensor) -> Tensor:
    """(P, T) what each token adds to the log-probabilities: log p with it, less log p of the text in which it does not
    stand (erasure, Li et al. 2016, eq. 6), in nats.

    ids (T,) is the text, `places` (P,) stand before the tokens whose log p it is. The last token that stands before one
    of these is left out as well, the one itself and those after it are not: they add nothing.
    """
    T, targets = len(ids), ids[places + 1]
    with_all = targets_after(model.head(model.hidden(ids[None])[:, places]), targets)[0]  # (P,)
    added = with_all.new_zeros(len(places), T)
    outs = torch.arange(min(T - 1, int(places[-1]) + 1), device=ids.device)
    for out in outs.split(max(1, _TOKENS_AT_ONCE // T)):
        kept = torch.arange(T - 1, device=ids.device).expand(len(out), -1)
        kept = kept + (kept >= out[:, None])  # (rows, T - 1): all places but the row's own
        hidden = model.hidden(ids[kept])
        for n, place in enumerate(places.tolist()):
            earlier = out[out <= place] if place > 0 else out[:0]  # what stands before the token that is predicted
            if len(earlier):
                logits = model.head(hidden[: len(earlier), place - 1 : place])  # (earlier, 1, V)
                added[n, earlier] = with_all[n] - targets_after(logits, targets[n : n + 1])[:, 0]
    return added
