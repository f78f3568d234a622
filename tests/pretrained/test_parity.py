"""What comes in computes what `transformers` computes, and what leaves does so there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from instructgpt.config import ModelConfig
from instructgpt.model import Sequences, Transformer, resolve_backend
from instructgpt.pretrained.families import family_of
from instructgpt.pretrained.folder import CONFIG, open_folder, read_json
from instructgpt.pretrained.renaming import Exported, Imported
from instructgpt.pretrained.settings import folder_settings, model_config
from instructgpt.tensors import Held, write_safetensors

transformers = pytest.importorskip("transformers")


def imported(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    config, family, _ = model_config(read_json(folder / CONFIG), folder / CONFIG)
    source = Imported(open_folder(folder), config, family, "folder", folder)
    return config, {name: source.read(name) for name in source.specs}


def transformer(config: ModelConfig, weights: dict[str, Tensor], backend: str = "sdpa") -> Transformer:
    model = Transformer(config, resolve_backend(backend, torch.device("cpu")))
    model.load_state_dict(weights)
    return model.eval()


def exported(config: ModelConfig, weights: dict[str, Tensor], folder: Path) -> Any:
    family = family_of(config)
    folder.mkdir(exist_ok=True)
    write_safetensors(
        folder / "model.safetensors", Exported(Held(weights), config, family, "folder"), with_digests=False
    )
    (folder / CONFIG).write_text(json.dumps(folder_settings(config, family, "float32")))
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found = model(ids)
        return found if isinstance(found, Tensor) else found.logits


def greedy(model: Transformer, prompt: Tensor, n: int) -> list[int]:
    """The n most probable tokens one after the other, with the cache."""
    rows = Sequences(model.config, 1, prompt.size(1) + n)
    ids, found = prompt, []
    with torch.inference_mode():
        for _ in range(n):
            ids = model.head(model.hidden(ids, cache=rows.feed(ids.size(1)))[:, -1:]).argmax(-1)
            found.append(int(ids))
    return found


@pytest.mark.parametrize("backend", ["naive", "sdpa"])
def test_logits_are_theirs(saved, backend):
    model = transformer(*imported(saved.folder), backend)
    torch.manual_seed(1)
    ids = torch.randint(model.config.vocab_size, (3, model.config.context))
    expected = logits(saved.model, ids)
    assert expected.std() > 0.1  # logits that are all alike would agree with anything
    torch.testing.assert_close(logits(model, ids), expected, rtol=0, atol=1e-5)


def test_greedy_tokens_are_theirs(saved):
    model = transformer(*imported(saved.folder))
    prompt = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    theirs = saved.model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=64, do_sample=False, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    tokens = theirs[0, 8:].tolist()
    assert greedy(model, prompt, 64) == tokens and len(set(tokens)) > 1


def test_exports_load_there_with_the_same_logits_and_come_back_bit_by_bit(saved, tmp_path):
    config, weights = imported(saved.folder)
    theirs = exported(config, weights, tmp_path / "out")
    ids = torch.arange(48)[None] % config.vocab_size
    torch.testing.assert_close(logits(theirs, ids), logits(saved.model, ids), rtol=0, atol=1e-5)
    again_config, again = imported(tmp_path / "out")
    assert again_config == config and again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)


def test_shards_and_pickled_files_are_the_same_model(saved, tmp_path):
    _, weights = imported(saved.folder)
    saved.model.save_pretrained(tmp_path / "shards", max_shard_size="80KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    (tmp_path / "bin").mkdir()
    torch.save(saved.model.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    (tmp_path / "bin" / CONFIG).write_text((saved.folder / CONFIG).read_text())
    for folder in ("shards", "bin"):
        _, found = imported(tmp_path / folder)
        assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)


def test_the_first_gpt2_has_names_without_a_prefix_and_masks_among_its_weights(save, tmp_path):
    saved = save("gpt2")
    state = {name.removeprefix("transformer."): t.clone() for name, t in saved.model.state_dict().items()}
    del state["lm_head.weight"]
    state["h.0.attn.bias"] = torch.ones(1, 1, 96, 96).tril()
    state["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    write_safetensors(tmp_path / "model.safetensors", Held(state), with_digests=False)
    (tmp_path / CONFIG).write_text((saved.folder / CONFIG).read_text())
    (_, found), (_, weights) = imported(tmp_path), imported(saved.folder)
    assert all(torch.equal(found[name], weights[name]) for name in weights)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_number_format_is_kept(save, tmp_path, dtype):
    saved = save("qwen2")
    write_safetensors(
        tmp_path / "model.safetensors", Held({n: t.to(dtype) for n, t in saved.model.state_dict().items()}),
        with_digests=False,
    )  # fmt: skip
    (tmp_path / CONFIG).write_text((saved.folder / CONFIG).read_text())
    assert {tensor.dtype for tensor in imported(tmp_path)[1].values()} == {dtype}
