"""The decoder-only Transformer. GPT-2 (Radford et al. 2019) and Llama (Touvron et al. 2023) are two settings of it.

    x = embedding(ids)  [+ position_embedding(positions)]
    for each block:  x = x + attention(norm(x));  x = x + mlp(norm(x))
    logits = head(final_norm(x))

Dimensions: B rows, T tokens, C width, H heads, K key/value heads, D head_dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instructgpt.config import ModelConfig
from instructgpt.errors import UserError
from instructgpt.model.attention import Attention, Scope
from instructgpt.model.backend import Backend, sdpa
from instructgpt.model.cache import Feed
from instructgpt.model.checkpointing import Checkpointing, recomputed
from kernels import RopeScaling, rope_table


class Norm(nn.Module):
    """LayerNorm or RMSNorm, as the config says."""

    def __init__(self, config: ModelConfig, backend: Backend):
        super().__init__()
        self.eps, self.backend = config.norm_eps, backend
        self.is_layer_norm = config.norm == "layernorm"
        self.weight = nn.Parameter(torch.ones(config.width))
        self.bias = nn.Parameter(torch.zeros(config.width)) if self.is_layer_norm and config.bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.is_layer_norm:
            return self.backend.layer_norm(x, self.weight, self.bias, self.eps)
        return self.backend.rms_norm(x, self.weight, self.eps)


class MLP(nn.Module):
    """Two matrices around GELU, or three around SwiGLU, whose gate and up projections are one product."""

    def __init__(self, config: ModelConfig, backend: Backend):
        super().__init__()
        self.backend = backend
        self.is_gated = config.mlp == "swiglu"
        if self.is_gated:  # rows: the gate's, then up's
            self.gate_up = nn.Linear(config.width, 2 * config.mlp_width, bias=config.bias)
        else:
            self.up = nn.Linear(config.width, config.mlp_width, bias=config.bias)
        self.down = nn.Linear(config.mlp_width, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_gated:
            gate, up = self.gate_up(x).chunk(2, dim=-1)  # each (B, T, mlp_width)
            return self.down(self.backend.swiglu(gate, up))
        return self.down(self.backend.gelu(self.up(x)))


class Block(nn.Module):
    def __init__(self, config: ModelConfig, backend: Backend, layer: int):
        super().__init__()
        self.attention_norm = Norm(config, backend)
        self.attention = Attention(config, backend, layer)
        self.mlp_norm = Norm(config, backend)
        self.mlp = MLP(config, backend)
        self.dropout = nn.Dropout(config.dropout)
        self.checkpointing: Checkpointing = "none"

    def forward(self, x: Tensor, scope: Scope) -> Tensor:
        if self.checkpointing == "none" or not torch.is_grad_enabled():
            return self.compute(x, scope)
        is_random = self.training and self.dropout.p > 0
        return recomputed(self.compute, x, scope, how=self.checkpointing, is_random=is_random)

    def compute(self, x: Tensor, scope: Scope) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), scope))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


@dataclass(frozen=True)
class Compiled:
    """What runs in place of a Transformer's own functions where gradients are made, compiled for its shapes.

    Generation, validation and old log-probabilities, whose shapes are others each time, run what is written here.
    """

    block: Callable[[Block, Tensor, Scope], Tensor] | None = None
    """`Block.forward`, the same compiled code for all of them."""
    trunk: Callable[[Transformer, Tensor, Tensor, Tensor | None], Tensor] | None = None
    """`Transformer.trunk` (model, ids, positions, documents)."""
    losses: Callable[..., Tensor] | None = None
    """The backend's `linear_cross_entropy`."""


class Transformer(nn.Module):
    """Language model: `model(ids)` gives the logits of the token after each of `ids`."""

    def __init__(self, config: ModelConfig, backend: Backend | None = None):
        """A model of random weights; `reset(generator)` draws them again, reproducibly. `backend` None means sdpa."""
        super().__init__()
        if config.vocab_size < 1:
            raise UserError(f"model config: vocab_size is {config.vocab_size}, it must be at least 1")
        self.config = config = config.resolved()
        self.backend = backend or sdpa()
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        if config.position == "learned":
            self.position_embedding = nn.Embedding(config.context, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, self.backend, layer) for layer in range(config.layers))
        self.final_norm = Norm(config, self.backend)
        self.head_weight = None if config.tie_embeddings else nn.Parameter(torch.empty(config.vocab_size, config.width))
        self.compiled = Compiled()
        self.packed_head: nn.Module | None = None  # what computes the head where weights are packed (`inference.py`)
        self.reset()

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None) -> None:
        """GPT-2's initialisation (Radford et al. 2019, section 2.3): N(0, 0.02), and less for what is added up.

        Each of the 2·layers projections into the residual stream starts smaller by sqrt(2·layers), so that the
        stream's variance does not grow with depth. A short convolution starts at N(0, 1), neighbours as large as the
        token itself: each leaves a mark of its own from the start, and what follows a word is soon found by it.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim == 1:
                parameter.fill_(1.0)  # a norm's weight
            elif name.endswith("conv.weight"):
                parameter.normal_(0.0, 1.0, generator=generator)
            else:
                adds_to_stream = name.endswith(("attention.output.weight", "mlp.down.weight"))
                scale = (2 * self.config.layers) ** -0.5 if adds_to_stream else 1.0
                parameter.normal_(0.0, 0.02 * scale, generator=generator)

    def checkpoint(self, how: Checkpointing) -> None:
        """What the backward computes again from now on, instead of keeping it: see `checkpointing.py`."""
        for block in self.modules():
            if isinstance(block, Block):
                block.checkpointing = how

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    def forward(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: Feed | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of the token that follows each of `ids` (B, T). See `hidden`."""
        return self.head(self.hidden(ids, positions, documents, cache))

    def hidden(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: Feed | None = None,
    ) -> Tensor:
        """The residual stream (B, T, C) after the last norm.

        ids: (B, T). Attention is causal, and with `documents` (B, T), numbers that never fall along a row, -1 for the
        padding at its end, stays within tokens of one number, where positions restart unless `positions` (B, T) are
        given. With a cache, `ids` are the new tokens that it says, those of one sequence after those of another, in
        any number of rows; they are kept in it, see what it holds of their sequence, and carry no gradient beyond.
        Raises UserError when T exceeds the context.
        """
        T = ids.size(1)
        if cache is not None:
            return self.trunk(ids.reshape(1, -1), cache.positions, None, cache).view(*ids.shape, -1)
        if self.config.context < T:
            raise UserError(f"{T} tokens do not fit in the model's context of {self.config.context}")
        if positions is None:
            positions = _positions(ids, documents)
        if self.compiled.trunk is not None and torch.is_grad_enabled():
            return self.compiled.trunk(self, ids, positions, documents)
        return self.trunk(ids, positions, documents)

    def trunk(self, ids: Tensor, positions: Tensor, documents: Tensor | None, cache: Feed | None = None) -> Tensor:
        """`hidden`, of inputs that are known to fit."""
        x = self.embedding(ids)  # (B, T, C)
        if self.config.position == "learned":
            x = x + self.position_embedding(positions)
        x = self.dropout(x)
        scope = self.scope(x, positions, documents, cache)
        is_trained = cache is None and torch.is_grad_enabled()
        run = self.compiled.block if is_trained and self.compiled.block is not None else Block.__call__
        for block in self.blocks:
            x = run(block, x, scope)  # pyright: ignore[reportArgumentType]
        return self.final_norm(x)

    def scope(self, x: Tensor, positions: Tensor, documents: Tensor | None, cache: Feed | None) -> Scope:
        """Visibility and rotations are the same in every layer: made here, once."""
        rotation = _rotation(positions, self.config)
        if rotation is not None:
            rotation = self.backend.rotation(*rotation)
        if cache is not None:
            return Scope(self.backend.cached_attention(cache), rotation, positions, cache)
        visibility = self.backend.visibility(x.size(1), x.size(1), documents, x.device)
        return Scope(visibility, rotation, positions, None)

    @property
    def output_weight(self) -> Tensor:
        """The head's matrix (V, C)."""
        return self.embedding.weight if self.head_weight is None else self.head_weight

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., C)."""
        return F.linear(hidden, self.output_weight) if self.packed_head is None else self.packed_head(hidden)

    # Where head and loss meet: the logits of a large vocabulary would be the largest tensor of a training step, and a
    # backend need not hold them all.

    def token_losses(self, hidden: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Negative log-likelihood (N,) in nats, float32, of targets (N,) after hidden states (N, C)."""
        compiled = self.compiled.losses if torch.is_grad_enabled() else None
        losses = compiled or self.backend.linear_cross_entropy
        return losses(hidden, self.output_weight, targets, label_smoothing)

    @overload
    def token_logprobs(self, hidden: Tensor, targets: Tensor, with_entropy: Literal[False] = False) -> Tensor: ...
    @overload
    def token_logprobs(self, hidden: Tensor, targets: Tensor, with_entropy: Literal[True]) -> tuple[Tensor, Tensor]: ...
    def token_logprobs(
        self, hidden: Tensor, targets: Tensor, with_entropy: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Log-probability (N,) in nats, float32, of targets (N,) after hidden states (N, C); with the entropy (N,) of
        each next-token distribution if asked for. Both carry gradients."""
        return self.backend.linear_logprobs(hidden, self.output_weight, targets, with_entropy)


def _positions(ids: Tensor, documents: Tensor | None) -> Tensor:
    """Each token's distance from the start of its row, or of its document, (1 or B, T)."""
    slots = torch.arange(ids.size(1), device=ids.device)[None]
    if documents is None:
        return slots
    is_start = torch.ones_like(documents, dtype=torch.bool)
    is_start[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return slots - (slots * is_start).cummax(dim=1).values


def _rotation(positions: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor] | None:
    """RoPE's cos and sin at `positions`; None with learned positions."""
    if config.position != "rope":
        return None
    scaling = RopeScaling(
        config.rope_factor, config.rope_low_factor, config.rope_high_factor, config.rope_original_context
    )
    return rope_table(
        positions, config.head_dim, config.rope_theta, scaling=scaling if config.rope_factor > 1 else None
    )
