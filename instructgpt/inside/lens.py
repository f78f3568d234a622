"""The logit lens (nostalgebraist 2020): each layer's residual stream, read by the model's own last norm and head.

    p_l = softmax(head(final_norm(x_l)))

A residual stream is a sum to which every layer adds, so what stands in it on the way can be read as if it were the
end. After the last layer it is the model's own prediction; before, it is what the model would say if it stopped there,
which small models show better than large ones, whose early layers speak another language.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from instructgpt.inside.trace import Trace
from instructgpt.model.transformer import Transformer


class Lens(NamedTuple):
    """What is said at P places of the text after the embedding and after each of L layers; k guesses each."""

    tokens: Tensor
    """(L + 1, P, k) the likeliest, the likeliest first."""
    probabilities: Tensor
    """(L + 1, P, k)"""
    target: Tensor
    """(L + 1, P) probability of the token that follows."""
    rank: Tensor
    """(L + 1, P) how many tokens are likelier than that one."""


@torch.no_grad()
def read(model: Transformer, trace: Trace, places: Tensor, k: int) -> Lens:
    """The lens at `places` (P,), each of them before a token of the trace."""
    targets = trace.ids[places + 1][:, None]
    layers = []
    for x in trace.stream:  # one layer's logits at a time, for there may be many tokens
        p = model.head(model.final_norm(x[places])).float().softmax(-1)  # (P, V)
        top, own = p.topk(k), p.gather(1, targets)
        layers.append((top.indices, top.values, own.squeeze(1), (p > own).sum(1)))
    return Lens(*(torch.stack(each) for each in zip(*layers)))
