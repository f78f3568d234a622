"""Folders that are not as they should be: each is told in one line that names the file and what is wrong with it."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from instructgpt.errors import UserError
from instructgpt.pretrained.folder import CONFIG, open_folder, read_json
from instructgpt.pretrained.renaming import Converted, Imported
from instructgpt.pretrained.settings import model_config
from instructgpt.tensors import Held, write_safetensors


def read(folder: Path) -> dict[str, torch.Tensor]:
    """Our parameters of the folder's model."""
    config, family, _ = model_config(read_json(folder / CONFIG), folder / CONFIG)
    source = Imported(open_folder(folder), config, family, "folder", folder)
    return {name: source.read(name) for name in source.specs}


@pytest.fixture
def folder(save, tmp_path):
    """A copy of a folder whose weights are right."""
    return Path(shutil.copytree(save("llama-grouped-tied").folder, tmp_path / "model"))


@pytest.fixture
def shards(save, tmp_path):
    save("llama").model.save_pretrained(tmp_path / "shards", max_shard_size="80KB")
    return tmp_path / "shards"


def change(folder: Path, edit) -> None:
    """Changes the weights of a folder."""
    source = open_folder(folder)
    tensors = {name: source.read(name) for name in source.specs}
    edit(tensors)
    write_safetensors(folder / "model.safetensors", Held(tensors), with_digests=False)


Q, K = (f"model.layers.1.self_attn.{name}_proj.weight" for name in "qk")


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda t: t.pop(K), rf"{K} is missing; the configuration asks for it, \(16, 48\)"),
        (lambda t: t.pop("model.norm.weight"), r"model\.norm\.weight is missing"),
        (lambda t: t.update({K: t[K][:8]}), rf"{K} has the shape \(8, 48\), the configuration asks for \(16, 48\)"),
        (lambda t: t.update({Q: t[Q].mT.contiguous()[:16]}), rf"{Q} has the shape \(16, 48\)"),
        (lambda t: t.update({"model.layers.2.x": t[Q]}), r"model\.layers\.2\.x is nothing that the configuration"),
        (lambda t: t.update(a=t[Q], b=t[Q], c=t[Q]), "a and 2 more is nothing that the configuration asks for"),
        (lambda t: t[K].view(-1)[7].fill_(float("nan")), f"{K} holds NaN"),
        (lambda t: t[Q].view(-1)[0].fill_(float("-inf")), f"{Q} holds infinity"),
        (lambda t: t.update({K: t[K].to(torch.int8)}), f"{K} is in int8"),
        (lambda t: t.update({"lm_head.weight": torch.ones(320, 48)}), r"lm_head\.weight is not the embedding"),
    ],
)  # fmt: skip
def test_tensors_that_are_not_as_they_should_be(folder, edit, complaint):
    change(folder, edit)
    with pytest.raises(UserError, match=complaint):
        read(folder)


def test_a_tied_head_that_was_saved_all_the_same_is_read(folder):
    before = read(folder)
    change(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    after = read(folder)
    assert "head_weight" not in after and after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_folder_without_config_or_weights(folder):
    (folder / CONFIG).rename(folder / "kept")
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        read(folder)
    (folder / "kept").rename(folder / CONFIG)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no weights: neither model\.safetensors nor pytorch_model\.bin"):
        read(folder)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("", r"config\.json:1: is not JSON"), ('{\n"a": 1,\n}', r"config\.json:3: is not"), ("[1]", "holds a JSON list")],
)  # fmt: skip
def test_a_config_that_is_no_configuration(folder, text, complaint):
    (folder / CONFIG).write_text(text)
    with pytest.raises(UserError, match=complaint):
        read(folder)
    (folder / CONFIG).write_bytes(b"\xff\xfe{")
    with pytest.raises(UserError, match=r"config\.json: is not JSON"):
        read(folder)


def test_a_missing_shard(shards):
    read(shards)
    next(shards.glob("model-00002*")).unlink()
    with pytest.raises(UserError, match=r"index\.json: model-00002-of-\d+\.safetensors is missing"):
        read(shards)


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda names: names.update({Q: "other.safetensors"}), r"other\.safetensors is missing; the index names it"),
        (lambda names: names.update({Q: "../model.safetensors"}), "a shard is a file beside the index"),
        (lambda names: names.update({Q: "/etc/passwd"}), "a shard is a file beside the index"),
        (lambda names: names.update({Q: 3}), "names 3"),
        (lambda names: names.update({Q: sorted(set(names.values()) - {names[Q]})[0]}), f"{Q} is not in model-"),
        (lambda names: names.pop(Q), f"{Q} is in model-.* where the index does not have it"),
        (lambda names: names.clear(), "has no weight_map"),
    ],
)
def test_an_index_that_says_something_else(shards, edit, complaint):
    file = shards / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    edit(index["weight_map"])
    file.write_text(json.dumps(index))
    with pytest.raises(UserError, match=complaint):
        read(shards)


def test_a_shard_that_is_cut_off(shards):
    file = next(shards.glob("model-00001*"))
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"model-00001.*cut off"):
        read(shards)


class Executed:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (Executed(), "holds more than tensors"),
        ({"a": Executed()}, "holds more than tensors"),
        ([torch.ones(2)], "holds no dictionary of tensors"),
        ({"a": 3}, "holds no dictionary of tensors"),
    ],
)
def test_nothing_foreign_is_unpickled(folder, content, complaint):
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=rf"pytorch_model\.bin: {complaint}"):
        read(folder)


@pytest.mark.parametrize("data", [b"", b"\x80\x02", pickle.dumps(Executed()), pickle.dumps({}), b"PK\3\4" + b"x" * 99])
def test_what_torch_did_not_save(folder, data):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(UserError, match=r"pytorch_model\.bin: "):
        read(folder)


@pytest.mark.parametrize("is_zip", [True, False])
def test_pickled_weights_of_today_and_of_before_2020(folder, save, is_zip):
    (folder / "model.safetensors").unlink()
    state = {name: tensor.clone() for name, tensor in save("llama-grouped-tied").model.state_dict().items()}
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
    read(folder)
    whole = (folder / "pytorch_model.bin").read_bytes()
    for end in (10, len(whole) // 2, len(whole) - 10):
        (folder / "pytorch_model.bin").write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"pytorch_model\.bin: "):
            read(folder)


def test_a_number_too_large_for_another_format(save):
    source = Held({"w": torch.tensor([1.0, -70_000.0])})
    assert Converted(source, torch.bfloat16).read("w").dtype == torch.bfloat16
    with pytest.raises(UserError, match="w holds 70000, too much for float16"):
        Converted(source, torch.float16).read("w")
