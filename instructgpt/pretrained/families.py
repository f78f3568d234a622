"""The families of models that the one Transformer can be: which name is which, in a folder, in a GGUF file and here.

Both directions, import and export, read these tables. What a row does not say is the same on both sides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from instructgpt.config import ModelConfig
from instructgpt.errors import UserError


@dataclass(frozen=True)
class Row:
    """One of our parameters and theirs."""

    ours: str
    """Within a block, or of the whole model where the row stands in `Family.whole`."""
    folder: str
    """The name in a folder. `{q,k,v}` are several tensors, whose rows we stack in this order."""
    gguf: str
    transposed: bool = False
    """A folder holds (inputs, outputs), as Conv1D of GPT-2's first code does. We, and GGUF, hold (outputs, inputs)."""

    def names(self, pattern: str) -> list[str]:
        """`attn.{q,k}.weight` -> [`attn.q.weight`, `attn.k.weight`]"""
        found = re.fullmatch(r"(.*){(.*)}(.*)", pattern)
        return [found[1] + one + found[3] for one in found[2].split(",")] if found else [pattern]


@dataclass(frozen=True)
class Family:
    """Models of one architecture, by their tables."""

    name: str
    """`model_type` of a folder's config.json."""
    architecture: str
    """Its class in `transformers`."""
    gguf: str
    """`general.architecture` of a GGUF file."""
    whole: tuple[Row, ...]
    block: tuple[Row, ...]
    prefix: str
    """Of all names in a folder but the head's. Some files of the first GPT-2 lack it."""
    layers: str
    """Before the number of a block, in a folder."""
    keys: tuple[tuple[str, str, str], ...]
    """Settings: ours, their name in config.json, their name in a GGUF file behind the architecture's."""
    interleaved: bool = False
    """llama.cpp's conversion pairs neighbouring rows of a query or key head for RoPE: row i of the first half and row i
    of the second stand side by side. Everywhere else the halves stand one behind the other."""


_GPT2_WHOLE = (
    Row("embedding.weight", "wte.weight", "token_embd.weight"),
    Row("position_embedding.weight", "wpe.weight", "position_embd.weight"),
    Row("final_norm.weight", "ln_f.weight", "output_norm.weight"),
    Row("final_norm.bias", "ln_f.bias", "output_norm.bias"),
    Row("head_weight", "lm_head.weight", "output.weight"),
)
_GPT2_BLOCK = (
    Row("attention_norm.weight", "ln_1.weight", "attn_norm.weight"),
    Row("attention_norm.bias", "ln_1.bias", "attn_norm.bias"),
    Row("attention.qkv.weight", "attn.c_attn.weight", "attn_qkv.weight", transposed=True),
    Row("attention.qkv.bias", "attn.c_attn.bias", "attn_qkv.bias"),
    Row("attention.output.weight", "attn.c_proj.weight", "attn_output.weight", transposed=True),
    Row("attention.output.bias", "attn.c_proj.bias", "attn_output.bias"),
    Row("mlp_norm.weight", "ln_2.weight", "ffn_norm.weight"),
    Row("mlp_norm.bias", "ln_2.bias", "ffn_norm.bias"),
    Row("mlp.up.weight", "mlp.c_fc.weight", "ffn_up.weight", transposed=True),
    Row("mlp.up.bias", "mlp.c_fc.bias", "ffn_up.bias"),
    Row("mlp.down.weight", "mlp.c_proj.weight", "ffn_down.weight", transposed=True),
    Row("mlp.down.bias", "mlp.c_proj.bias", "ffn_down.bias"),
)
# Llama's names are those of all families after it. Rows of parts that a config has not are left out.
_LLAMA_WHOLE = (
    Row("embedding.weight", "embed_tokens.weight", "token_embd.weight"),
    Row("final_norm.weight", "norm.weight", "output_norm.weight"),
    Row("head_weight", "lm_head.weight", "output.weight"),
)
_LLAMA_BLOCK = (
    Row("attention_norm.weight", "input_layernorm.weight", "attn_norm.weight"),
    Row("attention.qkv.weight", "self_attn.{q_proj,k_proj,v_proj}.weight", "attn_{q,k,v}.weight"),
    Row("attention.qkv.bias", "self_attn.{q_proj,k_proj,v_proj}.bias", "attn_{q,k,v}.bias"),  # Qwen2
    Row("attention.query_norm.weight", "self_attn.q_norm.weight", "attn_q_norm.weight"),  # Qwen3
    Row("attention.key_norm.weight", "self_attn.k_norm.weight", "attn_k_norm.weight"),
    Row("attention.output.weight", "self_attn.o_proj.weight", "attn_output.weight"),
    Row("mlp_norm.weight", "post_attention_layernorm.weight", "ffn_norm.weight"),
    Row("mlp.gate_up.weight", "mlp.{gate_proj,up_proj}.weight", "ffn_{gate,up}.weight"),
    Row("mlp.down.weight", "mlp.down_proj.weight", "ffn_down.weight"),
)

_GPT2_KEYS = (
    ("context", "n_positions", "context_length"),
    ("layers", "n_layer", "block_count"),
    ("width", "n_embd", "embedding_length"),
    ("heads", "n_head", "attention.head_count"),
    ("mlp_width", "n_inner", "feed_forward_length"),
    ("norm_eps", "layer_norm_epsilon", "attention.layer_norm_epsilon"),
)
_LLAMA_KEYS = (
    ("context", "max_position_embeddings", "context_length"),
    ("layers", "num_hidden_layers", "block_count"),
    ("width", "hidden_size", "embedding_length"),
    ("heads", "num_attention_heads", "attention.head_count"),
    ("kv_heads", "num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "head_dim", "attention.key_length"),
    ("mlp_width", "intermediate_size", "feed_forward_length"),
    ("norm_eps", "rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("rope_theta", "rope_theta", "rope.freq_base"),
)


def _like_llama(name: str, architecture: str, gguf: str, interleaved: bool = False) -> Family:
    return Family(
        name, architecture, gguf, _LLAMA_WHOLE, _LLAMA_BLOCK, "model.", "layers", _LLAMA_KEYS, interleaved
    )  # fmt: skip


FAMILIES = {
    family.name: family
    for family in (
        Family("gpt2", "GPT2LMHeadModel", "gpt2", _GPT2_WHOLE, _GPT2_BLOCK, "transformer.", "h", _GPT2_KEYS),
        _like_llama("llama", "LlamaForCausalLM", "llama", interleaved=True),
        _like_llama("mistral", "MistralForCausalLM", "llama", interleaved=True),
        _like_llama("qwen2", "Qwen2ForCausalLM", "qwen2"),
        _like_llama("qwen3", "Qwen3ForCausalLM", "qwen3"),
    )
}
GPT2, LLAMA = FAMILIES["gpt2"], FAMILIES["llama"]

LACKING = {
    "gemma": "norms that multiply by 1 + weight, scaled embeddings and a gate of GELU",
    "gpt_neox": "rotations of a part of each head, and attention beside the MLP instead of before it",
    "gptj": "rotations of a part of each head, and attention beside the MLP instead of before it",
    "phi": "rotations of a part of each head, and attention beside the MLP instead of before it",
    "phi3": "query, key and value, gate and up in one matrix, and a rope scaling of its own",
    "stablelm": "LayerNorm with a gated MLP, and rotations of a part of each head",
    "falcon": "attention beside the MLP instead of before it",
    "bloom": "ALiBi positions",
    "mpt": "ALiBi positions",
    "opt": "ReLU, and positions that begin at 2",
    "cohere": "attention beside the MLP, and scaled logits",
    "olmo2": "norms behind attention and MLP instead of before them",
    "granite": "scaled embeddings, attention, residuals and logits",
    "mixtral": "a mixture of experts",
    "deepseek": "a mixture of experts, and compressed keys and values",
    "mamba": "state spaces instead of attention",
    "t5": "an encoder",
    "bert": "attention to both sides",
}
"""What the Transformer lacks for others, by the beginning of their name."""


def unknown_architecture(name: str) -> str:
    """In words, what stands in the way of an architecture that is none of the families."""
    known = f"known are {', '.join(FAMILIES)}"
    words = re.sub(r"[^a-z0-9]", "", name.lower())
    if "moe" in words:
        return f"the architecture {name} needs a mixture of experts, which the Transformer here lacks; {known}"
    near = [key for key in LACKING if words.startswith(key.replace("_", ""))]
    if near:
        return f"the architecture {name} needs what the Transformer here lacks: {LACKING[max(near, key=len)]}; {known}"
    return f"the architecture {name} is unknown; {known}"


def family_of(config: ModelConfig) -> Family:
    """The family that a model can leave as. Raises UserError, naming every part that no other engine has."""
    config = config.resolved()
    if config.qk_window > 1:
        raise UserError(
            "cannot leave: no other engine has the short convolution on queries and keys "
            f"(qk_window {config.qk_window}); train with --qk-window 1 for that"
        )
    blockers: list[str] = []
    for family, wanted in ((GPT2, _GPT2_SHAPE), (LLAMA, _LLAMA_SHAPE)):
        wrong = [f"{key} {getattr(config, key)}" for key, value in wanted.items() if getattr(config, key) != value]
        if family is GPT2 and config.qk_norm:
            wrong.append("qk_norm")
        if family is GPT2 and (config.kv_heads, config.head_dim * config.heads) != (config.heads, config.width):
            wrong.append(
                f"{config.heads} heads of {config.head_dim}, {config.kv_heads} of them keys, in {config.width}"
            )
        if family is LLAMA and config.qk_norm and config.qkv_bias:
            wrong.append("qk_norm with qkv_bias")
        if not wrong:
            if family is GPT2:
                return GPT2
            return FAMILIES["qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"]
        blockers.append(f"{family.name} has no {', no '.join(wrong)}")
    raise UserError(f"cannot leave: no family has these parts together ({'; '.join(blockers)})")


_GPT2_SHAPE = {"mlp": "gelu", "norm": "layernorm", "position": "learned", "bias": True}
_LLAMA_SHAPE = {"mlp": "swiglu", "norm": "rmsnorm", "position": "rope", "bias": False}


def shape_of(family: Family) -> ModelConfig:
    """The parts that all models of a family have; sizes are still to be filled in."""
    parts = _GPT2_SHAPE if family is GPT2 else _LLAMA_SHAPE
    return replace(ModelConfig(**parts), qkv_bias=family.name == "qwen2", qk_norm=family.name == "qwen3")
