"""How large and how costly a model is, from its config alone; tests hold every figure against the real model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from instructgpt.config import ModelConfig


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters by where they are and what shape they have."""

    embeddings: int
    """Token and position embeddings, and the head where it has a matrix of its own."""
    matrices: int
    """The weight matrices of all blocks."""
    vectors: int
    """Norms, biases and convolutions."""

    @property
    def total(self) -> int:
        return self.embeddings + self.matrices + self.vectors


def count_parameters(config: ModelConfig) -> Parameters:
    """Exact numbers of parameters, each shared one counted once."""
    config = config.resolved()
    C, M = config.width, config.mlp_width
    q_width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
    into_mlp = 2 * M if config.mlp == "swiglu" else M
    matrices = C * (q_width + 2 * kv_width) + q_width * C + C * into_mlp + M * C
    biases = q_width + 2 * kv_width if config.bias or config.qkv_bias else 0
    biases += C + into_mlp + C if config.bias else 0
    norm = 2 * C if config.norm == "layernorm" and config.bias else C
    qk_norms = 2 * config.head_dim if config.qk_norm else 0
    qk_conv = (config.qk_window - 1) * (q_width + kv_width)
    tables = config.vocab_size * (1 if config.tie_embeddings else 2)
    tables += config.context if config.position == "learned" else 0
    return Parameters(
        embeddings=tables * C,
        matrices=config.layers * matrices,
        vectors=config.layers * (2 * norm + biases + qk_norms + qk_conv) + norm,
    )


def forward_flops_per_token(config: ModelConfig, tokens: int, head_share: float = 1.0) -> float:
    """FLOPs of a forward pass for each token of a sequence of `tokens`, a multiply-add being two.

    Counts matrix products only, and attention as the full square, masked half included: the convention of "model
    FLOPs" (Chowdhery et al. 2022, appendix B), which does not reward a kernel for what it skips. `head_share` is the
    share of tokens whose logits are computed: a batch with prompts needs them after its targets only.
    """
    config = config.resolved()
    # Scores and weighted values: 2 products of head_dim multiply-adds for each head and each key.
    attention = 2 * 2 * config.layers * config.heads * config.head_dim * tokens
    head = 2 * config.vocab_size * config.width
    return 2 * count_parameters(config).matrices + attention + head * head_share


def training_flops_per_token(
    config: ModelConfig, tokens: int, head_share: float = 1.0, is_frozen: bool = False
) -> float:
    """FLOPs of forward and backward: the backward repeats each product twice, for its input and for its weight.

    is_frozen: an adapter beside it is trained, which spares the weights' own gradients. The adapter's products, a rank
    wide, are not counted.
    """
    return (2 if is_frozen else 3) * forward_flops_per_token(config, tokens, head_share)


def recomputed_flops_per_token(config: ModelConfig, tokens: int) -> float:
    """What `--checkpointing blocks` adds: the forward of each block once more, but for the MLP's last product."""
    config = config.resolved()
    last = 2 * config.layers * config.mlp_width * config.width
    return forward_flops_per_token(config, tokens, head_share=0.0) - last


def cache_memory(config: ModelConfig, tokens: int, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of a `PagedCache` of so many slots."""
    config = config.resolved()
    vectors = 2 * config.kv_heads + (config.heads + config.kv_heads if config.qk_window > 1 else 0)
    return config.layers * tokens * vectors * config.head_dim * dtype.itemsize
