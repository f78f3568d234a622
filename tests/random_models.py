"""Random models that say different things: as weights are drawn, all answers would be much the same."""

from __future__ import annotations

import torch

from instructgpt.config import ModelConfig
from instructgpt.model.backend import Backend
from instructgpt.model.transformer import Transformer


def talkative(
    config: ModelConfig,
    seed: int = 0,
    ends: dict[int, float] | None = None,
    dtype: torch.dtype = torch.float64,
    backend: Backend | None = None,
) -> Transformer:
    """A model whose answers depend on what was asked.

    ends: by token, what its row of an untied head is multiplied by, so that answers end now and then. dtype: in float64
    only a wrong result differs, for rounding does not tip the scale between two tokens.
    """
    model = Transformer(config, backend).to(dtype)
    model.reset(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= 8
        for token, factor in (ends or {}).items():
            assert model.head_weight is not None
            model.head_weight[token] *= factor
    return model.eval()
