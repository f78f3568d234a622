"""A folder's config.json and our ModelConfig, both ways. Every setting that changes what is computed is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from instructgpt.config import ModelConfig
from instructgpt.errors import UserError
from instructgpt.pretrained.families import FAMILIES, GPT2, Family, shape_of, unknown_architecture

_DEFAULTS: dict[str, Any] = {
    # What a folder may leave out, with the value that `transformers` then takes.
    "n_inner": None, "layer_norm_epsilon": 1e-5, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "head_dim": None,
    "num_key_value_heads": None,
}  # fmt: skip

_MUST_BE: dict[str, tuple[tuple[Any, ...], str]] = {
    # Settings with the values that the Transformer computes as they say; what another one would need.
    "hidden_act": (("silu", "swish"), "another gate in the MLP"),
    "activation_function": (("gelu_new", "gelu_pytorch_tanh"), "another function in the MLP"),
    "attention_bias": ((False, None), "a bias on attention's output, with none in the MLP"),
    "mlp_bias": ((False, None), "biases in the MLP, with none elsewhere"),
    "partial_rotary_factor": ((1, None), "rotations of a part of each head"),
    "rope_interleaved": ((False, None), "rotations of neighbouring dimensions"),
    "scale_attn_weights": ((True, None), "attention that is not scaled"),
    "scale_attn_by_inverse_layer_idx": ((False, None), "attention scaled by layer"),
    "add_cross_attention": ((False, None), "attention to an encoder"),
    "is_encoder_decoder": ((False, None), "an encoder"),
    "quantization_config": ((None,), "weights that are packed by another program; take the unpacked model"),
    "num_local_experts": ((None, 0), "a mixture of experts"),
    "attn_logit_softcapping": ((None,), "bounded scores"),
}
_UNUSED = frozenset(
    """_name_or_path architectures attention_dropout attn_pdrop bos_token_id dtype embd_pdrop eos_token_id
    gradient_checkpointing initializer_range is_decoder is_llama_config layer_types max_window_layers model_type
    n_ctx pad_token_id predict_special_tokens pretraining_tp reorder_and_upcast_attn resid_pdrop rope_parameters
    rope_scaling sliding_window summary_activation summary_first_dropout summary_proj_to_labels summary_type
    summary_use_proj task_specific_params tie_word_embeddings torch_dtype transformers_version
    transformers.js_config unsloth_version use_cache use_sliding_window vocab_size return_dict
    output_hidden_states output_attentions id2label label2id problem_type chunk_size_feed_forward head_dim
    _attn_implementation_autoset""".split()
)
"""Settings that change nothing of what a forward pass computes, or that are read below by hand."""


def find_family(values: Mapping[str, Any], where: Path) -> Family:
    """Which family a config.json is of. Raises UserError for an architecture that the Transformer cannot be."""
    name = values.get("model_type")
    if not name:
        names = values.get("architectures") or []
        found = [family for family in FAMILIES.values() if family.architecture in names]
        if found:
            return found[0]
        if not names:
            raise UserError("is not a model's configuration: it has neither model_type nor architectures", where)
        name = names[0]
    if str(name) not in FAMILIES:
        raise UserError(unknown_architecture(str(name)), where)
    return FAMILIES[str(name)]


def model_config(values: Mapping[str, Any], where: Path) -> tuple[ModelConfig, Family, list[str]]:
    """Our config, the family, and what the user should know: that a context is cut short, which settings are not used.

    values: config.json of a folder, `where` its path. Raises UserError for what the Transformer cannot express, and
    for settings that are missing or no numbers.
    """
    family = find_family(values, where)
    notes: list[str] = []
    rope, scaling = _rope(values, where)
    values = {**values, **rope}
    for key, (allowed, needed) in _MUST_BE.items():
        if key in values and values[key] not in allowed:
            raise UserError(f"{key} {values[key]!r} needs what the Transformer here lacks: {needed}", where)
    known = {key for _, key, _ in family.keys} | _UNUSED | set(_MUST_BE)
    if unknown := sorted(set(values) - known):
        notes.append(f"settings that are not known here, and not used: {', '.join(unknown)}")
    sizes = {ours: _number(values, key, where) for ours, key, _ in family.keys}
    given = {ours: value for ours, value in sizes.items() if value is not None}
    if window := _window(values, family, where):
        if window < given["context"]:
            notes.append(
                f"context is {window}, not {given['context']}: beyond its sliding window the model would see less than "
                "what attention here sees"
            )
        given["context"] = min(window, given["context"])
    if family is GPT2:
        given["dropout"] = _number(values, "resid_pdrop", where) or 0.0
    tied = values.get("tie_word_embeddings")
    try:
        config = replace(
            shape_of(family),
            vocab_size=_number(values, "vocab_size", where),
            tie_embeddings=family is GPT2 if tied is None else bool(tied),
            **given,
            **scaling,
        )
    except UserError as error:
        raise UserError(str(error), where) from None
    return config.resolved(), family, notes


def _number(values: Mapping[str, Any], key: str, where: Path) -> Any:
    """A setting that is a number, of the kind that its default or ModelConfig has; None where it may be left out."""
    value = values.get(key, _DEFAULTS.get(key))
    if value is None and (key in _DEFAULTS or key.endswith("pdrop")):
        return None
    is_fraction = key.endswith(("eps", "epsilon", "theta", "pdrop"))
    if isinstance(value, bool) or not isinstance(value, (int, float) if is_fraction else int):
        found = "missing" if value is None else f"{value!r}"
        raise UserError(f"{key} is {found}; it must be a {'number' if is_fraction else 'whole number'}", where)
    if not is_fraction and value < 1:
        raise UserError(f"{key} is {value}; it must be at least 1", where)
    return float(value) if is_fraction else value


def _rope(values: Mapping[str, Any], where: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """RoPE's settings as config.json's older form has them, and our scaling. Newer folders keep both in one record."""
    found: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        if not isinstance(values.get(key), (dict, type(None))):
            raise UserError(f"{key} is {values[key]!r}; it must be an object or null", where)
        found |= values.get(key) or {}
    kind = found.get("rope_type", found.get("type", "default"))
    plain = {key: found[key] for key in ("rope_theta", "partial_rotary_factor") if key in found}
    if kind in ("default", None):
        return plain, {}
    if kind != "llama3":
        raise UserError(f"the rope scaling {kind!r} is not what the Transformer here computes; known is llama3", where)
    names = {
        "rope_factor": "factor", "rope_low_factor": "low_freq_factor", "rope_high_factor": "high_freq_factor",
        "rope_original_context": "original_max_position_embeddings",
    }  # fmt: skip
    scaling: dict[str, Any] = {}
    for ours, theirs in names.items():
        value = found.get(theirs)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"the rope scaling's {theirs} is {value!r}; it must be a number", where)
        scaling[ours] = int(value) if ours == "rope_original_context" else float(value)
    return plain, scaling


def _window(values: Mapping[str, Any], family: Family, where: Path) -> int | None:
    """How many tokens back a layer with a sliding window sees; None where every layer sees all."""
    layers = values.get("num_hidden_layers")
    kinds = values.get("layer_types")
    if isinstance(kinds, list) and set(kinds) - {"full_attention", "sliding_attention"}:
        raise UserError(f"layer_types are {', '.join(map(str, sorted(set(kinds))))}, not only attention", where)
    if family.name == "mistral":
        slides = True
    elif family.name in ("qwen2", "qwen3") and values.get("use_sliding_window"):
        first = values.get("max_window_layers", 28)
        slides = "sliding_attention" in kinds if isinstance(kinds, list) else layers is None or first < layers
    else:
        slides = False
    window = values.get("sliding_window", 4096 if slides else None)
    if not slides or window is None:
        return None
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise UserError(f"sliding_window is {window!r}; it must be a whole number", where)
    return window


def folder_settings(config: ModelConfig, family: Family, dtype: str) -> dict[str, Any]:
    """config.json of a model that leaves as `family`; the tokens' ids are still to be added. dtype: of its weights."""
    config = config.resolved()
    values: dict[str, Any] = {
        "architectures": [family.architecture], "model_type": family.name, "torch_dtype": dtype,
        "vocab_size": config.vocab_size, "tie_word_embeddings": config.tie_embeddings,
    }  # fmt: skip
    values |= {key: getattr(config, ours) for ours, key, _ in family.keys}
    if family is GPT2:
        dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop"), config.dropout)
        return {**values, "activation_function": "gelu_new", "attn_pdrop": 0.0, **dropout}
    values |= {"hidden_act": "silu", "attention_dropout": 0.0}
    if family.name != "qwen2":
        values["attention_bias"] = False
    if family.name == "llama":
        values["mlp_bias"] = False
    if config.rope_factor > 1:
        values["rope_scaling"] = {
            "rope_type": "llama3", "factor": config.rope_factor, "low_freq_factor": config.rope_low_factor,
            "high_freq_factor": config.rope_high_factor,
            "original_max_position_embeddings": config.rope_original_context,
        }  # fmt: skip
    return values
