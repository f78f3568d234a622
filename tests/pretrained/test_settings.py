from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from instructgpt.config import MODEL_PRESETS, ModelConfig
from instructgpt.errors import UserError
from instructgpt.pretrained.families import FAMILIES, family_of
from instructgpt.pretrained.settings import folder_settings, model_config

WHERE = Path("model/config.json")
LLAMA = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32,
    "num_key_value_heads": 4, "intermediate_size": 5632, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
LLAMA3 = {
    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def read(values: dict) -> ModelConfig:
    return model_config(values, WHERE)[0]


def test_real_configurations_of_each_family():
    """As their folders on the hub have them, in the older and the newer form."""
    tiny_llama = read({**LLAMA, "pretraining_tp": 1, "rope_scaling": None, "torch_dtype": "float32"})
    assert (tiny_llama.kv_heads, tiny_llama.head_dim, tiny_llama.rope_theta) == (4, 64, 10000.0)
    gpt2 = read({**GPT2, "n_ctx": 1024, "attn_pdrop": 0.1, "resid_pdrop": 0.1, "task_specific_params": {"x": {}}})
    assert gpt2 == replace(MODEL_PRESETS["gpt2"], vocab_size=50257).resolved()
    llama32 = read({**LLAMA, "rope_theta": 500000.0, "rope_scaling": LLAMA3, "tie_word_embeddings": True})
    assert (llama32.rope_factor, llama32.rope_original_context, llama32.tie_embeddings) == (32.0, 8192, True)
    newer = {**LLAMA, "rope_parameters": {**LLAMA3, "rope_theta": 500000.0}, "tie_word_embeddings": True}
    assert read(newer) == llama32
    qwen = read({**LLAMA, "model_type": "qwen2", "use_sliding_window": False, "sliding_window": 128})
    assert qwen.qkv_bias and qwen.context == 2048
    qwen3 = read({**LLAMA, "model_type": "qwen3", "head_dim": 128, "attention_bias": False})
    assert qwen3.qk_norm and qwen3.head_dim == 128
    assert read({**LLAMA, "model_type": None, "architectures": ["LlamaForCausalLM"]}) == tiny_llama


@pytest.mark.parametrize(
    ("changed", "context"),
    [
        ({"model_type": "mistral", "sliding_window": 512}, 512),
        ({"model_type": "mistral", "sliding_window": None}, 2048),
        ({"model_type": "mistral", "sliding_window": 4096}, 2048),
        ({"model_type": "mistral", "max_position_embeddings": 32768}, 4096),  # what they take where it is not said
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 256, "max_window_layers": 2}, 256),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 256, "max_window_layers": 22}, 2048),
        ({"model_type": "llama", "sliding_window": 256}, 2048),  # Llama has none
    ],
)
def test_a_sliding_window_bounds_the_context(changed, context):
    config, _, notes = model_config({**LLAMA, **changed}, WHERE)
    assert config.context == context
    longest = {**LLAMA, **changed}["max_position_embeddings"]
    assert any(f"context is {context}, not {longest}" in note for note in notes) == (context < longest)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"model_type": "gemma2"}, r"gemma2 needs .*: norms that multiply by 1 \+ weight"),
        ({"model_type": "gpt_neox"}, "gpt_neox needs what .* lacks: rotations of a part of each head"),
        ({"model_type": "mixtral"}, "mixtral needs what .* lacks: a mixture of experts"),
        ({"model_type": "qwen3_moe"}, "qwen3_moe needs a mixture of experts"),
        ({"model_type": "phi3"}, "phi3 needs .*: query, key and value"),
        ({"model_type": "xyz"}, "xyz is unknown; known are gpt2, llama, mistral, qwen2, qwen3"),
        ({"model_type": "", "architectures": []}, "has neither model_type nor architectures"),
        ({"model_type": "", "architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM needs"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope scaling 'linear'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling 'yarn'"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope scaling 'dynamic'"),
        ({"rope_scaling": "llama3"}, "rope_scaling is 'llama3'; it must be an object or null"),
        ({"rope_parameters": [LLAMA3]}, "rope_parameters is .*; it must be an object or null"),
        ({"rope_scaling": {**LLAMA3, "factor": "8"}}, "scaling's factor is '8'; it must be a number"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 0.5}}, "rope_low_factor 1.0 is not below"),
        ({"attention_bias": True}, "attention_bias True needs .* a bias on attention's output"),
        ({"mlp_bias": True}, "mlp_bias True needs .* biases in the MLP"),
        ({"partial_rotary_factor": 0.5}, "rotations of a part of each head"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "rotations of a part of each head"),
        ({"rope_interleaved": True}, "rotations of neighbouring dimensions"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' needs .* another gate"),
        ({"quantization_config": {"quant_method": "gptq"}}, "packed by another program"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types are .*linear_attention"),
        ({"hidden_size": None}, "hidden_size is missing; it must be a whole number"),
        ({"hidden_size": "2048"}, "hidden_size is '2048'"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"vocab_size": 0}, "vocab_size is 0; it must be at least 1"),
        ({"num_key_value_heads": 5}, "heads 32 is not a multiple of kv_heads 5"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0"),
        ({"model_type": "mistral", "sliding_window": "all"}, "sliding_window is 'all'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changed, complaint):
    with pytest.raises(UserError, match=rf"^model/config\.json: .*{complaint}"):
        read({**LLAMA, **changed})


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"activation_function": "relu"}, "another function in the MLP"),
        ({"scale_attn_by_inverse_layer_idx": True}, "attention scaled by layer"),
        ({"add_cross_attention": True}, "attention to an encoder"),
        ({"n_layer": 1.5}, "n_layer is 1.5"),
    ],
)
def test_what_gpt2_may_not_be(changed, complaint):
    with pytest.raises(UserError, match=complaint):
        read({**GPT2, **changed})


def test_settings_that_are_not_known_are_told():
    _, _, notes = model_config({**LLAMA, "logit_magic": 3, "use_cache": True}, WHERE)
    assert notes == ["settings that are not known here, and not used: logit_magic"]


@pytest.mark.parametrize(
    "values",
    [GPT2, {**GPT2, "tie_word_embeddings": False, "n_inner": 100, "resid_pdrop": 0.0, "embd_pdrop": 0.0}, LLAMA,
     {**LLAMA, "rope_scaling": LLAMA3, "head_dim": 80}, {**LLAMA, "model_type": "qwen2"},
     {**LLAMA, "model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True}],
)  # fmt: skip
def test_settings_come_back(values):
    config = read(values)
    family = family_of(config)
    assert family.name == values["model_type"]
    assert model_config(folder_settings(config, family, "float32"), WHERE) == (config, family, [])


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (MODEL_PRESETS["tiny"], r"cannot leave: no other engine has the short convolution .* \(qk_window 4\)"),
        (ModelConfig(mlp="gelu"), "gpt2 has no norm rmsnorm.*llama has no mlp gelu"),
        (ModelConfig(bias=True), "llama has no bias True"),
        (ModelConfig(norm="layernorm"), "llama has no norm layernorm"),
        (ModelConfig(position="learned"), "llama has no position learned"),
        (ModelConfig(qk_norm=True, qkv_bias=True), "llama has no qk_norm with qkv_bias"),
        (replace(MODEL_PRESETS["gpt2"], kv_heads=4), "gpt2 has no 12 heads of 64, 4 of them keys"),
        (replace(MODEL_PRESETS["gpt2"], head_dim=32), "gpt2 has no 12 heads of 32"),
        (replace(MODEL_PRESETS["gpt2"], qk_norm=True), "gpt2 has no qk_norm"),
    ],
)
def test_what_cannot_leave_is_refused_by_name(config, complaint):
    with pytest.raises(UserError, match=complaint):
        family_of(config)


def test_presets_that_others_have_can_leave():
    found = {name: family_of(MODEL_PRESETS[name]) for name in ("gpt2", "gpt2-medium", "llama-124m", "llama-1b")}
    assert [family.name for family in found.values()] == ["gpt2", "gpt2", "llama", "llama"]
    assert family_of(ModelConfig(qk_norm=True)) is FAMILIES["qwen3"]
    assert family_of(ModelConfig(qkv_bias=True)) is FAMILIES["qwen2"]
