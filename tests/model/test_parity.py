"""The same random weights give the same logits as Hugging Face's GPT-2 and Llama, an implementation not ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from instructgpt.config import ModelConfig
from instructgpt.model import Transformer, resolve_backend

transformers = pytest.importorskip("transformers")

VOCAB, CONTEXT = 61, 32
BACKENDS = ["naive", "sdpa"]


def randomised(theirs: Any) -> dict[str, Tensor]:
    """Their weights, drawn anew so that biases and norms are not the zeros and ones they start as."""
    torch.manual_seed(0)
    for name, parameter in theirs.named_parameters():
        noise = 0.1 * torch.randn_like(parameter)
        parameter.data = 1 + noise if "norm" in name and name.endswith("weight") else noise
    return {name: tensor.detach() for name, tensor in theirs.eval().state_dict().items()}


def copy_into(model: Transformer, weights: dict[str, Tensor]) -> None:
    """Loads all of `weights`, clones, because a tied table must not be theirs as well."""
    model.load_state_dict({name: tensor.clone() for name, tensor in weights.items()}, strict=True)
    model.eval()


def assert_same_logits(ours: Transformer, theirs: Any) -> None:
    torch.manual_seed(1)
    ids = torch.randint(VOCAB, (3, CONTEXT))
    with torch.no_grad():
        expected = theirs(ids).logits
        assert expected.std() > 0.1  # logits that are all alike would agree with anything
        torch.testing.assert_close(ours(ids), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gpt2(backend: str) -> None:
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCAB, n_positions=CONTEXT, n_embd=48, n_layer=3, n_head=4,
            bos_token_id=0, eos_token_id=0, attn_implementation="eager",
        )
    )  # fmt: skip
    config = ModelConfig(
        vocab_size=VOCAB, context=CONTEXT, layers=3, width=48, heads=4, mlp="gelu", norm="layernorm",
        position="learned", bias=True, tie_embeddings=True,
    )  # fmt: skip
    w = randomised(theirs)
    ours = {"embedding.weight": w["transformer.wte.weight"], "position_embedding.weight": w["transformer.wpe.weight"]}
    names = {
        "attention_norm": "ln_1", "attention.qkv": "attn.c_attn", "attention.output": "attn.c_proj",
        "mlp_norm": "ln_2", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj",
    }  # fmt: skip
    for layer in range(3):
        for name, their_name in names.items():
            weight = w[f"transformer.h.{layer}.{their_name}.weight"]
            # Their Conv1D holds (inputs, outputs), a linear layer (outputs, inputs).
            ours[f"blocks.{layer}.{name}.weight"] = weight.mT if weight.ndim == 2 else weight
            ours[f"blocks.{layer}.{name}.bias"] = w[f"transformer.h.{layer}.{their_name}.bias"]
    for part in ("weight", "bias"):
        ours[f"final_norm.{part}"] = w[f"transformer.ln_f.{part}"]
    model = Transformer(config, resolve_backend(backend, torch.device("cpu")))
    copy_into(model, ours)
    assert_same_logits(model, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tied", [True, False])
def test_llama(backend: str, tied: bool) -> None:
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCAB, max_position_embeddings=CONTEXT, hidden_size=48, num_hidden_layers=3,
            num_attention_heads=6, num_key_value_heads=2, intermediate_size=80, rms_norm_eps=1e-5,
            tie_word_embeddings=tied, attn_implementation="eager",
        )
    )  # fmt: skip
    config = ModelConfig(
        vocab_size=VOCAB, context=CONTEXT, layers=3, width=48, heads=6, kv_heads=2, mlp_width=80, tie_embeddings=tied
    )
    w = randomised(theirs)
    ours = {"embedding.weight": w["model.embed_tokens.weight"], "final_norm.weight": w["model.norm.weight"]}
    if not tied:
        ours["head_weight"] = w["lm_head.weight"]
    for layer in range(3):
        their = {n.removeprefix(f"model.layers.{layer}."): t for n, t in w.items() if f".layers.{layer}." in n}
        blocks = {
            "attention_norm": [their["input_layernorm.weight"]],
            "attention.qkv": [their[f"self_attn.{p}_proj.weight"] for p in "qkv"],
            "attention.output": [their["self_attn.o_proj.weight"]],
            "mlp_norm": [their["post_attention_layernorm.weight"]],
            "mlp.gate_up": [their["mlp.gate_proj.weight"], their["mlp.up_proj.weight"]],
            "mlp.down": [their["mlp.down_proj.weight"]],
        }
        ours |= {f"blocks.{layer}.{name}.weight": torch.cat(tensors) for name, tensors in blocks.items()}
    model = Transformer(config, resolve_backend(backend, torch.device("cpu")))
    copy_into(model, ours)
    assert_same_logits(model, theirs)


def test_our_kernels_and_transformers_live_side_by_side() -> None:
    """Their optional hub package has the import name of ours: they must see that ours is another, and go without."""
    script = (
        "import kernels, transformers\n"
        "from transformers.utils import is_kernels_available\n"
        "assert not is_kernels_available()\n"
        "transformers.LlamaForCausalLM, transformers.GPT2LMHeadModel\n"
        "print(kernels.attention_reference.__module__)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "kernels.attention"
