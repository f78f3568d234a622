"""Activation patching: of two texts that get different answers, where is it decided which?

The model reads one text, but at one place its activations are those that it had on the other (Vig et al. 2020; causal
tracing of Meng et al. 2022, section 2.1, with the other text in place of noise). What turns the answer over carries the
difference. How far it is turned is told by the difference of the logits of the two answers (Wang et al. 2022, section
3), as a share of the way: 0 is the text's own answer, 1 the other's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from instructgpt.inside.parts import edited, every_head, exchange
from instructgpt.inside.trace import Trace, onwards, record
from instructgpt.model.transformer import Transformer


@dataclass(frozen=True)
class Patching:
    """One text and another, of as many tokens, and the token that each is gone on with."""

    model: Transformer
    own: Trace
    other: Trace
    own_token: int
    other_token: int

    @classmethod
    def of(cls, model: Transformer, own: Tensor, other: Tensor, own_token: int, other_token: int) -> Patching:
        """own and other: ids (T,). Raises ValueError where they differ in length."""
        if len(own) != len(other):
            raise ValueError(f"{len(own)} tokens, and {len(other)}")
        return cls(model, record(model, own), record(model, other), own_token, other_token)

    def _difference(self, x: Tensor, layer: int) -> Tensor:
        """(B,) how much rather the own token than the other, going on from x (B, T, C) before block `layer`."""
        last = torch.tensor([x.size(1) - 1], device=x.device)
        logits = onwards(self.model, x, layer, last)[:, 0]  # (B, V)
        return logits[:, self.own_token] - logits[:, self.other_token]

    def _turned(self, difference: Tensor) -> Tensor:
        """As shares of the way from the text's own answer to the other."""
        layers = self.model.config.layers
        own, other = (self._difference(each.stream[-1][None], layers) for each in (self.own, self.other))
        return (own - difference) / (own - other)

    @torch.no_grad()
    def stream(self) -> Tensor:
        """(L, T): the residual stream before each block taken from the other text, at one token at a time."""
        rows = []
        for layer in range(self.model.config.layers):
            own, other = self.own.stream[layer], self.other.stream[layer]
            shares = own.new_zeros(len(own))
            # Where the streams are one, nothing can turn: all tokens before the first that differs.
            for places in (own != other).any(-1).nonzero()[:, 0].split(32):
                x = own.repeat(len(places), 1, 1)
                x[torch.arange(len(places)), places] = other[places]
                shares[places] = self._turned(self._difference(x, layer))
            rows.append(shares)
        return torch.stack(rows)

    @torch.no_grad()
    def heads(self) -> Tensor:
        """(L, H): what one head found taken from the other text, on all tokens."""
        config = self.model.config
        parts = every_head(config)
        rows = []
        for layer in range(config.layers):
            alike = parts[layer * config.heads : (layer + 1) * config.heads]
            x = self.own.stream[layer].expand(len(alike), -1, -1)
            with edited(self.model, layer, "attention", exchange(alike, self.other.heads[layer], row_by_row=True)):
                rows.append(self._turned(self._difference(x, layer)))
        return torch.stack(rows)
