"""What a head does, whatever the text: does it look for what came after the same token before (induction), and does it
say what it looks at (copying)?

Both are measured on random tokens that are told twice (Olsson et al. 2022, "In-context Learning and Induction Heads",
definitions in the section on head scores), where nothing else helps to predict the second telling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from instructgpt.inside.trace import Trace, blocks, record
from instructgpt.model.transformer import Transformer

_TOLD = 25
"""Random tokens, as many as Olsson et al. take."""
_TEXTS = 2


class Scores(NamedTuple):
    """Of every head, (L, H)."""

    induction: Tensor
    """Share of attention, in the second telling, on what followed the same token in the first: 0 to 1."""
    copying: Tensor
    """Share of the vocabulary that the head alone makes less likely than the token that it should copy; 0.5 is luck."""


def score(model: Transformer, tokens: Sequence[int], seed: int = 0) -> Scores:
    """Scores on two texts of random tokens, drawn from `tokens`."""
    generator = torch.Generator().manual_seed(seed)
    told = max(2, min(_TOLD, model.config.context // 2))
    found = []
    for _ in range(_TEXTS):
        drawn = torch.tensor(tokens)[torch.randint(len(tokens), (told,), generator=generator)]
        trace = record(model, drawn.repeat(2).to(model.device))
        found.append(
            (torch.stack([prefix_matching(each, told) for each in trace.attention]), copying(model, trace, told))
        )
    return Scores(*(torch.stack(each).mean(0) for each in zip(*found)))


def prefix_matching(attention: Tensor, period: int) -> Tensor:
    """(...,) mean attention (..., T, T) of each token from the second telling on to the one that followed its like,
    `period` - 1 tokens before it."""
    return attention.diagonal(offset=1 - period, dim1=-2, dim2=-1)[..., 1:].mean(-1)


@torch.no_grad()
def copying(model: Transformer, trace: Trace, period: int) -> Tensor:
    """(L, H): what a head adds to the stream in the second telling, read by the head of the model, and how it ranks the
    token that came next in the first. Its last norm is taken for a scale, which changes no ranks."""
    at = torch.arange(period, 2 * period - 1, device=model.device)
    right = trace.ids[at + 1 - period]
    D = model.config.head_dim
    rows = []
    for block, heads in zip(blocks(model), trace.heads):
        weight = block.attention.output.weight  # (C, H·D)
        for first in range(0, heads.size(1), D):
            added = F.linear(heads[at, first : first + D], weight[:, first : first + D])  # (P, C)
            if model.final_norm.is_layer_norm:
                added = added - added.mean(-1, keepdim=True)
            logits = model.head(added * model.final_norm.weight)  # (P, V)
            own = logits.gather(1, right[:, None])
            less, same = (logits < own).float().mean(1), (logits == own).float().mean(1)
            rows.append((less + same / 2).mean())
    return torch.stack(rows).view(model.config.layers, model.config.heads)
