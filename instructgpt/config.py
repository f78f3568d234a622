"""Model configuration: one frozen dataclass and its presets. GPT-2 and Llama are two settings of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from instructgpt.errors import UserError, suggestion
from instructgpt.settings import NonNegative, NonNegativeInt, Positive, PositiveInt, Range, Settings, ShareBelow1


@dataclass(frozen=True)
class ModelConfig(Settings):
    """The shape of a decoder-only Transformer. Every field is a flag of the stage `pretrain`."""

    vocab_size: NonNegativeInt = 0
    """Rows of the embedding. 0 takes the tokenizer's size; a multiple of 64 is fastest on a GPU."""
    context: PositiveInt = 256
    """Longest sequence in tokens. Attention's cost grows with it; learned positions cannot go beyond it."""
    layers: PositiveInt = 4
    """Number of blocks. Depth buys more steps of reasoning for time that grows in proportion."""
    width: PositiveInt = 256
    """Size of the residual stream. Parameters and time grow with its square."""
    heads: PositiveInt = 4
    """Query heads. Each attends on its own; head_dim is width / heads unless set."""
    kv_heads: NonNegativeInt = 0
    """Key and value heads (grouped-query attention, Ainslie et al. 2023). 0 means all heads; fewer shrink the cache."""
    head_dim: NonNegativeInt = 0
    """Size of a head. 0 means width / heads. RoPE needs it to be even."""
    mlp: Literal["gelu", "swiglu"] = "swiglu"
    """`gelu` as in GPT-2 (tanh form), `swiglu` as in Llama (Shazeer 2020): three matrices for two."""
    mlp_width: NonNegativeInt = 0
    """Hidden size of the MLP. 0 means 4·width for gelu, 8/3·width rounded up to 32 for swiglu."""
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    """`layernorm` as in GPT-2, `rmsnorm` as in Llama (Zhang & Sennrich 2019): no mean, no bias, cheaper."""
    norm_eps: NonNegative = 1e-5
    """Added to the variance before the square root."""
    position: Literal["learned", "rope"] = "rope"
    """`learned` adds a vector per position (GPT-2); `rope` rotates queries and keys (Su et al. 2021)."""
    rope_theta: Positive = 10000.0
    """Base of RoPE's wavelengths. Larger bases suit longer contexts."""
    rope_factor: Annotated[float, Range(1, without_most=True)] = 1.0
    """How many times slower the slow rotations become, as in Llama 3.1 for contexts beyond its first; 1: none."""
    rope_low_factor: Positive = 1.0
    """With rope_factor: a pair that turns fewer times than this within rope_original_context is slowed down fully."""
    rope_high_factor: Positive = 4.0
    """With rope_factor: a pair that turns more often than this keeps its pace; in between it is mixed."""
    rope_original_context: PositiveInt = 8192
    """With rope_factor: the context that the model was first trained with."""
    bias: bool = False
    """Biases in linear layers (and LayerNorm), as GPT-2 has them."""
    qkv_bias: bool = False
    """Biases on queries, keys and values, without any elsewhere, as Qwen2 has them."""
    tie_embeddings: bool = True
    """The head uses the embedding's matrix: fewer parameters, better small models."""
    qk_norm: bool = False
    """RMSNorm on queries and keys per head (Henry et al. 2020): steadier at high learning rates."""
    qk_window: PositiveInt = 1
    """Tokens that make up a query or a key: its own and those before it, by a short convolution (So et al. 2021).
    1 leaves each alone, as in GPT-2 and Llama. Small models learn to look things up many times sooner with 4."""
    dropout: ShareBelow1 = 0.0
    """Share of activations dropped in training, after the embedding, attention and MLP."""

    def __post_init__(self) -> None:
        super().__post_init__()

        def require(holds: bool, message: str) -> None:
            if not holds:
                raise UserError(f"model config: {message}")

        if self.head_dim == 0:
            require(self.width % self.heads == 0, f"width {self.width} is not a multiple of heads {self.heads}")
        kv_heads, head_dim = self.kv_heads or self.heads, self.head_dim or self.width // self.heads
        require(self.heads % kv_heads == 0, f"heads {self.heads} is not a multiple of kv_heads {kv_heads}")
        require(self.position != "rope" or head_dim % 2 == 0, f"rope needs an even head_dim, not {head_dim}")
        require(
            self.rope_low_factor < self.rope_high_factor,
            f"rope_low_factor {self.rope_low_factor} is not below rope_high_factor {self.rope_high_factor}",
        )
        require(self.position == "rope" or self.rope_factor == 1, "rope_factor has no meaning for learned positions")

    def resolved(self) -> ModelConfig:
        """The shape with its zeros filled in. Presets keep them, so that changing the width changes what follows it."""
        wide = 4 * self.width if self.mlp == "gelu" else -(-8 * self.width // (3 * 32)) * 32
        return replace(
            self,
            kv_heads=self.kv_heads or self.heads,
            head_dim=self.head_dim or self.width // self.heads,
            mlp_width=self.mlp_width or wide,
        )


_GPT2: dict[str, Any] = dict(
    mlp="gelu", norm="layernorm", position="learned", bias=True, tie_embeddings=True, context=1024
)

MODEL_PRESETS: dict[str, ModelConfig] = {
    # What a laptop's CPU trains in minutes: few tokens, of which a narrow model sees more than a wide one.
    "tiny": ModelConfig(context=256, layers=4, width=128, heads=2, qk_norm=True, qk_window=4),
    "small": ModelConfig(context=512, layers=8, width=512, heads=8, qk_norm=True, qk_window=4),
    # Radford et al. 2019, table 2.
    "gpt2": ModelConfig(layers=12, width=768, heads=12, dropout=0.1, **_GPT2),
    "gpt2-medium": ModelConfig(layers=24, width=1024, heads=16, dropout=0.1, **_GPT2),
    # Llama-style (Touvron et al. 2023): the 124M-parameter body of GPT-2, and the shape of Llama 3.2 1B.
    "llama-124m": ModelConfig(context=1024, layers=12, width=768, heads=12, kv_heads=4),
    "llama-1b": ModelConfig(
        context=2048, layers=16, width=2048, heads=32, kv_heads=8, mlp_width=8192, rope_theta=500000.0
    ),
}


def model_preset(name: str) -> ModelConfig:
    """The preset of this name; a `UserError` with the nearest name otherwise."""
    if name not in MODEL_PRESETS:
        raise UserError(f"--preset {name} is unknown{suggestion(name, MODEL_PRESETS)}")
    return MODEL_PRESETS[name]
