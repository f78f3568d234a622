"""What the model is measured beside: GPT-2 in plain PyTorch, as nanoGPT writes it, that of `transformers`, llama.cpp.

The first two have the parameters of our own model of the same shape, and take the same step: cross-entropy over all
tokens, gradients clipped to a norm of 1, AdamW.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instructgpt.config import ModelConfig
from instructgpt.errors import UserError


class _PlainBlock(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads = config.heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.qkv, self.output = nn.Linear(config.width, 3 * config.width), nn.Linear(config.width, config.width)
        self.up, self.down = nn.Linear(config.width, 4 * config.width), nn.Linear(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.heads, C // self.heads).transpose(1, 2)
            for part in self.qkv(self.attention_norm(x)).split(C, dim=2)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(attended.transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))


class PlainGPT(nn.Module):
    """GPT-2 (Radford et al. 2019) as a few dozen lines of PyTorch's own modules. loss(ids, targets) -> mean, nats."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(_PlainBlock(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.head.weight = self.embedding.weight
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(ids) + self.position_embedding(torch.arange(ids.size(1), device=ids.device))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.final_norm(x))
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))


class TransformersGPT(nn.Module):
    """`transformers`' GPT2LMHeadModel with the same interface. Errors: ImportError where it is not installed."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        self.model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=config.vocab_size, n_positions=config.context, n_embd=config.width, n_layer=config.layers,
                n_head=config.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
                bos_token_id=None, eos_token_id=None,
            )
        )  # fmt: skip

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        logits = self.model(ids).logits
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))


def llama_cpp(file: Path | str, threads: int, is_exact: bool = False) -> Any:
    """llama.cpp's server for a GGUF file, one request at a time. is_exact: with keys and values, too, in float32."""
    try:
        llama: Any = import_module("xllamacpp")
    except ImportError:
        raise UserError("llama.cpp is not installed: pip install xllamacpp") from None
    params = llama.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.verbosity = str(file), 512, 1, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    if is_exact:
        params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return llama.Server(params)
