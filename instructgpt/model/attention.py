"""Causal self-attention with grouped key/value heads, RoPE, cache, and, optional, QK-norm and a short convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from instructgpt.config import ModelConfig
from instructgpt.model.backend import Backend
from instructgpt.model.cache import Feed
from instructgpt.model.short_conv import ShortConv


@dataclass(frozen=True)
class Scope:
    """What every block's attention needs besides its input: computed once a forward, the same in all layers."""

    visibility: Any
    """Which keys each query may attend to, as the backend's attention takes it; with a cache, its cached_attention."""
    rotation: tuple[Tensor, Tensor] | None
    """RoPE's cos and sin, as the backend's rope takes them; None with learned positions."""
    positions: Tensor
    """(1 or B, T), how many tokens stand before each in its document."""
    feed: Feed | None
    """Whose the new tokens are, where earlier ones are in a cache."""


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, backend: Backend, layer: int):
        super().__init__()
        self.config, self.backend, self.layer = config, backend, layer
        H, K, D = config.heads, config.kv_heads, config.head_dim
        # Rows: all query heads, then all key heads, then all value heads. One product is faster than three.
        self.qkv = nn.Linear(config.width, (H + 2 * K) * D, bias=config.bias or config.qkv_bias)
        self.output = nn.Linear(H * D, config.width, bias=config.bias)
        if config.qk_window > 1:
            self.qk_conv = ShortConv((H + K) * D, config.qk_window)
        if config.qk_norm:
            self.query_norm = nn.RMSNorm(D, config.norm_eps)
            self.key_norm = nn.RMSNorm(D, config.norm_eps)

    def forward(self, x: Tensor, scope: Scope) -> Tensor:
        B, T, _ = x.shape
        H, K, D = self.config.heads, self.config.kv_heads, self.config.head_dim
        qk, v = self.qkv(x).split(((H + K) * D, K * D), dim=-1)
        if self.config.qk_window > 1:
            if scope.feed is None:
                qk = self.qk_conv(qk, scope.positions)
            else:
                qk = self.qk_conv.after(qk, scope.feed.follow(self.layer, qk))
        q, k = qk.view(B, T, H + K, D).split((H, K), dim=2)
        v = v.view(B, T, K, D)
        if self.config.qk_norm:
            q = self.backend.rms_norm(q, self.query_norm.weight, self.config.norm_eps)
            k = self.backend.rms_norm(k, self.key_norm.weight, self.config.norm_eps)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H or K, T, D)
        if scope.rotation is not None:
            q, k = self.backend.rope(q, *scope.rotation), self.backend.rope(k, *scope.rotation)
        if scope.feed is None:
            y = self.backend.attention(q, k, v, scope.visibility)  # (B, H, T, D)
        else:
            y = scope.visibility(self.layer, q, k, v)
        return self.output(y.transpose(1, 2).reshape(B, T, H * D))
