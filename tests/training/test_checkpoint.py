import json
import os

import pytest
import torch
from safetensors.torch import save_file

import instructgpt.atomic
from instructgpt.config import ModelConfig
from instructgpt.errors import UserError
from instructgpt.model.transformer import Transformer
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.checkpoint import RunDirectory, load, load_tensors, save_tensors
from instructgpt.training.loop import Snapshot

TEXT = ["the cat sees a red bird", "a bird sees the cat", "红色的鸟看见猫"] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXT, 300)


@pytest.fixture
def run(tmp_path, tokenizer):
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, context=16, layers=1, width=16, heads=2))
    run = RunDirectory.open(tmp_path / "run")
    run.write_config("pretrain", model.config, tokenizer, {"seed": 0})
    run.save_model(model)
    run.model = model
    return run


def test_a_run_directory_can_be_moved_and_loads_alone(run, tokenizer, tmp_path):
    run.path.rename(tmp_path / "elsewhere")
    model, loaded = load(tmp_path / "elsewhere", "cpu")
    assert loaded.fingerprint == tokenizer.fingerprint and not model.training
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_tensors_and_values_come_back(tmp_path):
    tensors = {
        "a": torch.randn(3, 2).bfloat16(),
        "b": torch.arange(4),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0),
    }
    save_tensors(tmp_path / "x.safetensors", tensors, {"step": 3, "cursor": {"next": [1, 2]}})
    found, values = load_tensors(tmp_path / "x.safetensors")
    assert values == {"step": 3, "cursor": {"next": [1, 2]}}
    assert found.keys() == tensors.keys() and all(torch.equal(found[k], tensors[k]) for k in tensors)


def test_truncated_weights(run):
    data = run.model_file.read_bytes()
    run.model_file.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors: is damaged"):
        load(run.path, "cpu")


def test_tampered_weights(run):
    data = bytearray(run.model_file.read_bytes())
    data[-5] ^= 1
    run.model_file.write_bytes(data)
    with pytest.raises(UserError, match="do not match its checksum"):
        load(run.path, "cpu")


def test_weights_of_another_shape(run):
    save_tensors(run.model_file, {"token_embedding.weight": torch.zeros(2, 2)})
    with pytest.raises(UserError, match=r"does not fit config\.json"):
        load(run.path, "cpu")


def test_foreign_weights_without_a_checksum_load(run):
    save_file({k: v.clone() for k, v in run.model.state_dict().items()}, str(run.model_file))
    model, _ = load(run.path, "cpu")
    assert torch.equal(next(model.parameters()), next(run.model.parameters()))


def test_tokenizer_of_another_run(run):
    Tokenizer.train([*TEXT, "dogs run"], 290).save(run.path)
    with pytest.raises(UserError, match="not the tokenizer that this run was trained with"):
        load(run.path, "cpu")


def test_broken_config_names_its_line(run):
    run.config_file.write_text('{\n "stage": "pretrain",\n oops\n}')
    with pytest.raises(UserError, match=r"config\.json:3: is not JSON"):
        load(run.path, "cpu")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_missing_files(run, missing):
    (run.path / missing).unlink()
    with pytest.raises(UserError, match=missing):
        load(run.path, "cpu")


def test_no_directory(tmp_path):
    with pytest.raises(UserError, match="no such run directory"):
        load(tmp_path / "nowhere", "cpu")


def test_another_run_is_refused(run):
    with pytest.raises(UserError, match=r"--resume.*--overwrite"):
        RunDirectory.open(run.path)
    assert run.model_file.exists(), "refusing must lose nothing"
    RunDirectory.open(run.path, resume=True)
    assert run.model_file.exists()
    RunDirectory.open(run.path, overwrite=True)
    assert not run.model_file.exists() and not run.config_file.exists()


def test_a_disk_that_fills_keeps_the_previous_checkpoint(run, monkeypatch):
    before = run.model_file.read_bytes()

    def no_space(*args):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(instructgpt.atomic.os, "fsync", no_space)
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be written: No space left on device.*is kept"):
        run.save_model(run.model)
    assert run.model_file.read_bytes() == before
    assert [p.name for p in run.path.iterdir() if p.name.endswith(".tmp")] == []
    load(run.path, "cpu")


def test_state_holds_no_pickle(run):
    run.save_state(Snapshot({"w": torch.ones(2)}, {"progress": {"step": 1}}))
    header = run.state_file.read_bytes()
    length = int.from_bytes(header[:8], "little")
    assert json.loads(header[8 : 8 + length])["w"]["dtype"] == "F32"
    assert run.load_state().values == {"progress": {"step": 1}}


def test_equal_contents_are_equal_files(tmp_path):
    """safetensors orders the metadata anew each time."""
    values = {"ü": '\x1f"'}
    for i in range(12):
        save_tensors(tmp_path / str(i), {"b": torch.ones(3), "a": torch.zeros(2, 2)}, values)
    assert len({(tmp_path / str(i)).read_bytes() for i in range(12)}) == 1
    tensors, read = load_tensors(tmp_path / "0")
    assert read == values and torch.equal(tensors["b"], torch.ones(3))
