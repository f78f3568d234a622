"""Adapters in PEFT's layout, in and out, with PEFT itself as the judge: the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from instructgpt.config import ModelConfig
from instructgpt.errors import UserError
from instructgpt.model.adapters import LoRA, adapter_tensors, add_adapter, base_of
from instructgpt.model.transformer import Transformer
from instructgpt.pretrained.families import FAMILIES
from instructgpt.pretrained.folder import open_folder, read_json
from instructgpt.pretrained.peft import CONFIG, WEIGHTS, read_peft, write_peft
from instructgpt.pretrained.renaming import Imported
from instructgpt.pretrained.settings import model_config

peft = pytest.importorskip("peft", reason="PEFT is an oracle of these tests alone")
transformers = pytest.importorskip("transformers")

IDS = torch.randint(48, (2, 12), generator=torch.Generator().manual_seed(0))
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": dict(vocab_size=48, n_embd=32, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0),
    "llama": dict(
        vocab_size=48, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=16,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model as `transformers` saves it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    config = transformers.AutoConfig.for_model(request.param, **SIZES[request.param])
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def theirs(base: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def ours(base: Path) -> Transformer:
    config, family, _ = model_config(read_json(base / "config.json"), base)
    found = Imported(open_folder(base), config, family, "folder", base)
    model = Transformer(config)
    model.load_state_dict({name: found.read(name) for name in found.specs})
    return model.eval()


def modules(base: Path, kind: str) -> list[str]:
    names = {
        "gpt2": {"attention": ["c_attn"], "all": ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"]},
        "llama": {
            "attention": ["q_proj", "v_proj"],
            "all": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        },
    }  # fmt: skip
    return names[read_json(base / "config.json")["model_type"]][kind]


def saved(base: Path, folder: Path, kind: str = "all", **settings: Any) -> Any:
    """A model with an adapter that PEFT has made and saved, and that does something."""
    torch.manual_seed(1)
    is_gpt2 = read_json(base / "config.json")["model_type"] == "gpt2"
    given = {"r": 3, "lora_alpha": 6, "fan_in_fan_out": is_gpt2, "target_modules": modules(base, kind), **settings}
    model = peft.get_peft_model(theirs(base), peft.LoraConfig(**given)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
            if "magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.rand(parameter.shape))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("all", {}),
        ("attention", {"use_rslora": True}),
        ("all", {"use_dora": True}),
        ("all", {"rank_pattern": {"c_attn": 5, "q_proj": 2}, "alpha_pattern": {"c_attn": 1, "q_proj": 7}}),
        ("attention", {"layers_to_transform": [1]}),
    ],
)
@torch.no_grad()
def test_what_peft_has_saved_says_the_same_here(
    base: Path, kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = saved(base, tmp_path, kind, **settings)
    found = read_peft(tmp_path, ours(base))
    torch.testing.assert_close(found(IDS), model(IDS).logits, rtol=0, atol=1e-5)
    assert (found(IDS) - base_of(found)(IDS)).abs().max() > 0.01


@pytest.mark.parametrize(
    "lora",
    [
        LoRA(rank=3, alpha=6),
        LoRA(rank=2, alpha=5, on=("attention",), rslora=True),
        LoRA(rank=2, dora=True, on=("all",)),
        LoRA(rank=2, on=("value", "down")),
        LoRA(rank=1, on=("blocks.1.mlp", "blocks.0.attention.query")),
    ],
)
@torch.no_grad()
def test_what_is_written_here_says_the_same_in_peft_and_comes_back(base: Path, lora: LoRA, tmp_path: Path) -> None:
    model = add_adapter(ours(base), lora)
    generator = torch.Generator().manual_seed(2)
    for name, tensor in adapter_tensors(model).items():
        if not name.endswith("A"):
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)
    write_peft(tmp_path, model.config, adapter_tensors(model), lora, str(base), "0" * 64)
    found = peft.PeftModel.from_pretrained(theirs(base), tmp_path).eval()
    torch.testing.assert_close(found(IDS).logits, model(IDS), rtol=0, atol=1e-5)
    again = read_peft(tmp_path, ours(base), "0" * 64)
    torch.testing.assert_close(again(IDS), model(IDS), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="beside other weights"):
        read_peft(tmp_path, ours(base), "1" * 64)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not known here"),
        ({"bias": "all"}, "bias 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"lora_alpha": "many"}, "lora_alpha is 'many'"),
        ({"alpha_pattern": {".*_proj": 3}}, "no end of a layer's name"),
        ({"use_dora": True}, "lacks a magnitude, against use_dora"),
    ],
)
def test_settings_that_are_no_plain_adapter(base: Path, change: dict[str, Any], told: str, tmp_path: Path) -> None:
    saved(base, tmp_path, "attention")
    (tmp_path / CONFIG).write_text(json.dumps(read_json(tmp_path / CONFIG) | change))
    with pytest.raises(UserError, match=told):
        read_peft(tmp_path, ours(base))


def test_adapters_of_other_models(base: Path, tmp_path: Path) -> None:
    saved(base, tmp_path, "attention")
    narrow = ModelConfig(**{**vars(ours(base).config), "layers": 1})
    with pytest.raises(UserError, match="is beside no linear layer"):
        read_peft(tmp_path, Transformer(narrow))
    wide = ModelConfig(**{**vars(ours(base).config), "width": 64, "head_dim": 32 if "gpt2" in str(base) else 8})
    with pytest.raises(UserError, match="do not fit that"):
        read_peft(tmp_path, Transformer(wide))
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-10])
    with pytest.raises(UserError, match="cut off"):
        read_peft(tmp_path, ours(base))
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(UserError, match="no such file"):
        read_peft(tmp_path, ours(base))


def test_what_no_other_engine_has(tmp_path: Path) -> None:
    model = add_adapter(Transformer(ModelConfig(48, context=16, width=32, heads=2, layers=1, qk_window=4)), LoRA())
    with pytest.raises(UserError, match="short convolution"):
        write_peft(tmp_path, model.config, adapter_tensors(model), LoRA(), "")


def test_every_family_has_the_layers_that_an_adapter_stands_beside() -> None:
    from instructgpt.pretrained.families import shape_of
    from instructgpt.pretrained.peft import _modules

    for family in FAMILIES.values():
        shape = ModelConfig(**{**vars(shape_of(family)), "vocab_size": 48, "width": 32, "heads": 4, "layers": 2})
        parts = {place.rpartition(".")[2] for module in _modules(shape) for place in module.rows}
        gated = {"gate"} if family.name != "gpt2" else set()
        assert parts == {"query", "key", "value", "output", "up", "down"} | gated
