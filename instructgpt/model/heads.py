"""What may stand on a Transformer's hidden states in place of the head that predicts tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from instructgpt.config import ModelConfig
from instructgpt.model.backend import Backend
from instructgpt.model.transformer import Transformer

_SCORED_AT_ONCE = 64


class RewardModel(nn.Module):
    """A Transformer that gives a text one number (Ouyang et al. 2022, section 3.5).

    The unembedding is replaced by a linear map to a scalar, read on the hidden state of the answer's last token: its
    `end`, so that the model has seen the whole answer and that it ended. It begins at 0 for every answer: all pairs are
    ties then, and the first loss is ln 2.
    """

    def __init__(self, transformer: Transformer):
        super().__init__()
        self.transformer = transformer
        self.head = nn.Linear(transformer.config.width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        if transformer.head_weight is not None:
            transformer.head_weight.requires_grad_(False)  # nobody asks it for tokens any more

    @property
    def config(self) -> ModelConfig:
        return self.transformer.config

    @property
    def backend(self) -> Backend:
        return self.transformer.backend

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    def forward(
        self, ids: Tensor, last: Tensor, positions: Tensor | None = None, documents: Tensor | None = None
    ) -> Tensor:
        """Rewards (S,) float32. `last` (S,) says where each answer's last token is in ids (B, T) laid end to end."""
        hidden = self.transformer.hidden(ids, positions, documents)  # (B, T, C)
        return self.head(hidden.flatten(0, 1)[last]).squeeze(-1).float()

    @torch.no_grad()
    def score(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Rewards (S,), on the model's device, of whole texts as ids: prompt, answer and its `end`. Dropout is off.

        Padding stands behind a text, where causal attention cannot see it: it changes nothing. Runs under the caller's
        autocast. Raises UserError when a text is longer than the context.
        """
        was_training = self.training
        self.eval()
        rewards = torch.zeros(len(sequences), device=self.device)
        # Texts of like length together, so that there is little padding.
        order = sorted(range(len(sequences)), key=lambda number: len(sequences[number]))
        for start in range(0, len(order), _SCORED_AT_ONCE):
            numbers = order[start : start + _SCORED_AT_ONCE]
            lengths = torch.tensor([len(sequences[number]) for number in numbers])
            T = int(lengths[-1])
            ids = torch.tensor([[*sequences[number], *[0] * (T - len(sequences[number]))] for number in numbers])
            last = torch.arange(len(numbers)) * T + lengths - 1
            rewards[torch.tensor(numbers, device=self.device)] = self(ids.to(self.device), last.to(self.device))
        self.train(was_training)
        return rewards


class ValueHead(nn.Module):
    """The reward that a policy may expect from here on: a linear map of its hidden state, in float32.

    It reads the policy's own trunk, so that a step costs no second Transformer, and begins at 0 everywhere.
    """

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Values (N,) of hidden states (N, C)."""
        # bfloat16's three digits are too few for what is subtracted from one another.
        with torch.autocast(hidden.device.type, enabled=False):
            return self.linear(hidden.float()).squeeze(-1)
