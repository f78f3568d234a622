"""A checkpoint of 1 GB in shards is imported within 1.3 GB of memory, PyTorch itself included."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from instructgpt.config import ModelConfig
from instructgpt.pretrained.families import LLAMA
from instructgpt.pretrained.renaming import Exported, shapes_of
from instructgpt.pretrained.settings import folder_settings
from instructgpt.tensors import Spec, write_safetensors

pytestmark = pytest.mark.slow
SHAPE = ModelConfig(vocab_size=32_000, context=2048, layers=14, width=1024, heads=16, mlp_width=4096)
ROOT = Path(__file__).parents[2]
PROGRAM = """
import resource, sys
from instructgpt.cli import run_command
code = run_command(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)  # Linux counts in KiB
sys.exit(code)
"""


class Drawn:
    """A model's parameters, each made when it is asked for."""

    def __init__(self, config: ModelConfig):
        self.specs = {name: Spec(torch.float32, shape) for name, shape in shapes_of(config).items()}

    def read(self, name: str) -> torch.Tensor:
        return torch.rand(self.specs[name].shape)


class Some:
    """Some of the tensors."""

    def __init__(self, source, names):
        self.specs, self.read = {name: source.specs[name] for name in names}, source.read


@pytest.fixture(scope="module")
def shards(save, tmp_path_factory):
    """The checkpoint, as safetensors and as pickled files, in five shards of which blocks straddle two."""
    folder = tmp_path_factory.mktemp("large")
    theirs = Exported(Drawn(SHAPE), SHAPE, LLAMA, "folder")
    names, size = list(theirs.specs), sum(spec.size for spec in theirs.specs.values())
    assert 1e9 < size < 1.1e9
    cut = [names[i * len(names) // 5 : (i + 1) * len(names) // 5] for i in range(5)]
    index = {}
    for i, part in enumerate(cut):
        file = f"model-{i + 1:05}-of-00005.safetensors"
        write_safetensors(folder / file, Some(theirs, part), with_digests=False)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps(folder_settings(SHAPE, LLAMA, "float32")))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(save("llama").folder / name, folder)
    yield folder
    shutil.rmtree(folder)


def peak(*words: object) -> float:
    command = [sys.executable, "-c", PROGRAM, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


def test_import_and_export_never_hold_a_model_whole(shards, tmp_path):
    most = {"import": peak("import", "--from", shards, "--out", tmp_path / "run")}
    most["export hf"] = peak("export", "--model", tmp_path / "run", "--to", tmp_path / "hf")
    shutil.rmtree(tmp_path / "hf")
    most["export gguf"] = peak("export", "--model", tmp_path / "run", "--to", tmp_path / "gguf", "--format", "gguf")
    most["import gguf"] = peak("import", "--from", tmp_path / "gguf" / "model.gguf", "--out", tmp_path / "again")
    shutil.rmtree(tmp_path / "again")
    print({what: f"{size / 1e9:.2f} GB" for what, size in most.items()})
    assert max(most.values()) < 1.3e9
    assert max(most.values()) < 0.9e9  # PyTorch is 0.3 of it


def test_pickled_shards_too(shards, tmp_path):
    from instructgpt.tensors import SafetensorsFile

    for file in shards.glob("*.safetensors"):
        source = SafetensorsFile(file)
        torch.save({name: source.read(name) for name in source.specs}, tmp_path / f"pytorch_{file.stem}.bin")
    index = json.loads((shards / "model.safetensors.index.json").read_text())["weight_map"]
    named = {name: f"pytorch_{Path(file).stem}.bin" for name, file in index.items()}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": named}))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shards / name, tmp_path)
    size = peak("import", "--from", tmp_path, "--out", tmp_path / "run")
    print(f"{size / 1e9:.2f} GB")
    assert size < 1.3e9
