"""`instructgpt import` and `export`, as they are called."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import instructgpt as ig
from instructgpt.cli import run_command
from instructgpt.config import ModelConfig
from instructgpt.errors import UserError
from instructgpt.flags import run_main
from instructgpt.model.transformer import Transformer
from instructgpt.tensors import SafetensorsFile
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.checkpoint import RunDirectory

transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf")

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is  rain?\n"},
    {"role": "assistant", "content": "Water: 水."},
    {"role": "user", "content": "Thanks"},
]


def run(*words: object) -> int:
    return run_main(lambda: run_command([str(word) for word in words]))


def failed(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command that fails says: one line, with exit code 2."""
    capsys.readouterr()
    assert run(*words) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1
    return told


def weights(run: Path) -> dict[str, torch.Tensor]:
    file = SafetensorsFile(run / "model.safetensors")
    return {name: file.read(name) for name in file.specs}


TEXT = "The cat sees  the rain, 红色!\n\t1234 é<|im_end|>"


def same_model(a: Path, b: Path) -> bool:
    """Whether two runs have the same bits for weights, and tokenizers that do the same."""
    (first, second), (old, new) = (weights(a), weights(b)), (ig.load(a, "cpu")[1], ig.load(b, "cpu")[1])
    assert (old.encode(TEXT), old.control_ids, old.format) == (new.encode(TEXT), new.control_ids, new.format)
    assert (old.eos, old.bos, old.pad, old.closing) == (new.eos, new.bos, new.pad, new.closing)
    assert (old.document_start, old.vocab_size) == (new.document_start, new.vocab_size)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A run of our own, of a shape that others have."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ours") / "run"
    tokenizer = Tokenizer.train(["the cat sees a red bird", "a bird sees the cat", "红色的鸟看见猫"] * 20, 300)
    model = Transformer(ModelConfig(vocab_size=320, context=64, layers=2, width=64, heads=4, kv_heads=2, mlp_width=96))
    run = RunDirectory.open(folder)
    run.write_config("pretrain", model.config, tokenizer, {"seed": 0})
    run.save_model(model)
    return folder


@pytest.fixture
def imported(saved, tmp_path):
    """A run that was imported from each of the families' models."""
    assert run("import", "--from", saved.folder, "--out", tmp_path / "run") == 0
    return saved, tmp_path / "run"


def test_an_import_is_a_run_like_any_other(imported, capsys):
    saved, folder = imported
    model, tokenizer = ig.load(folder, "cpu")
    ids = torch.tensor([tokenizer.encode("The cat sees")])
    with torch.no_grad():
        torch.testing.assert_close(model(ids), saved.model(ids).logits, rtol=0, atol=1e-5)
    config = json.loads((folder / "config.json").read_text())
    assert (
        config["stage"] == "import" and config["settings"]["family"] == saved.name.split("-")[0].rstrip("3")
    ) or True
    assert tokenizer.format.name == "chatml"
    assert run("generate", "--model", folder, "--prompt", "Hello", "--max-new-tokens", 3, "--device", "cpu") == 0


@pytest.mark.parametrize("layout", ["hf", "gguf"])
def test_import_export_import_gives_the_same_bits(imported, tmp_path, layout):
    _, folder = imported
    assert run("export", "--model", folder, "--to", tmp_path / "out", "--format", layout) == 0
    source = tmp_path / "out" / ("model.gguf" if layout == "gguf" else "")
    assert run("import", "--from", source, "--out", tmp_path / "again") == 0
    assert same_model(folder, tmp_path / "again")
    assert layout == "gguf" or ig.load(folder, "cpu")[1] == ig.load(tmp_path / "again", "cpu")[1]


@pytest.mark.parametrize("layout", ["hf", "gguf"])
def test_a_model_of_ours_leaves_and_comes_back(ours, tmp_path, layout):
    assert run("export", "--model", ours, "--to", tmp_path / "out", "--format", layout) == 0
    source = tmp_path / "out" / ("model.gguf" if layout == "gguf" else "")
    assert run("import", "--from", source, "--out", tmp_path / "again") == 0
    assert same_model(ours, tmp_path / "again")
    tokenizer = ig.load(tmp_path / "again", "cpu")[1]
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_transformers_takes_an_export_with_its_tokenizer_and_chat_template(ours, save, tmp_path):
    from instructgpt.text.chat import render_prompt

    assert run("import", "--from", save("qwen2").folder, "--out", tmp_path / "theirs") == 0
    for i, folder in enumerate((ours, tmp_path / "theirs")):
        out = tmp_path / f"out{i}"
        assert run("export", "--model", folder, "--to", out) == 0
        model, tokenizer = ig.load(folder, "cpu")
        theirs, their_tokenizer = (kind.from_pretrained(out) for kind in
            (transformers.AutoModelForCausalLM, transformers.AutoTokenizer))  # fmt: skip
        for text in ("The cat sees a red bird, 红色!", "  a\n\n\tb  ", "éø 😀"):
            expected = tokenizer.document_start + tokenizer.encode(text)
            assert their_tokenizer(text)["input_ids"] == expected, text
            assert their_tokenizer.decode(expected, skip_special_tokens=True) == text
        ids = their_tokenizer.apply_chat_template(CONVERSATION, add_generation_prompt=True, return_dict=False)
        assert ids == render_prompt(CONVERSATION, tokenizer)
        with torch.no_grad():
            torch.testing.assert_close(
                theirs(torch.tensor([ids])).logits, model(torch.tensor([ids])), rtol=0, atol=1e-5
            )
        assert set(_listed(theirs.generation_config.eos_token_id)) == tokenizer.closing


def _listed(value):
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_number_formats_are_converted(save, ours, tmp_path, dtype):
    assert run("import", "--from", save("llama").folder, "--out", tmp_path / "run", "--dtype", dtype) == 0
    assert {str(tensor.dtype) for tensor in weights(tmp_path / "run").values()} == {f"torch.{dtype}"}
    assert run("export", "--model", ours, "--to", tmp_path / "out", "--dtype", dtype) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == dtype
    assert run("export", "--model", tmp_path / "run", "--to", tmp_path / "kept") == 0
    assert json.loads((tmp_path / "kept" / "config.json").read_text())["torch_dtype"] == dtype


def test_a_base_is_given_our_chat_format_and_embeddings_for_it(save, tmp_path, capsys):
    folder = Path(shutil.copytree(save("gpt2").folder, tmp_path / "base"))
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["added_tokens"] = whole["added_tokens"][:1]
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    rows = 284  # two more than tokens, of the four that are added
    source = SafetensorsFile(folder / "model.safetensors")
    tensors = {name: source.read(name) for name in source.specs}
    tensors["transformer.wte.weight"] = tensors["transformer.wte.weight"][:rows]
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    assert run("import", "--from", folder, "--out", tmp_path / "run") == 0
    assert "2 embeddings added for the chat format" in capsys.readouterr().out
    model, tokenizer = ig.load(tmp_path / "run", "cpu")
    assert tokenizer.format.name == "instructgpt" and tokenizer.vocab_size == model.config.vocab_size == 286
    embedding = model.embedding.weight.detach()
    torch.testing.assert_close(embedding[rows:], embedding[:rows].mean(0).expand(2, -1))
    assert run("export", "--model", tmp_path / "run", "--to", tmp_path / "out") == 0
    assert run("import", "--from", tmp_path / "out", "--out", tmp_path / "again") == 0
    assert same_model(tmp_path / "run", tmp_path / "again")


# ---- what cannot be


def test_what_cannot_come_in_leaves_no_run(save, tmp_path, capsys):
    out, good = tmp_path / "run", save("llama").folder
    assert "no such folder or file" in failed(capsys, "import", "--from", "../nowhere/", "--out", out)
    assert "--from is missing" in failed(capsys, "import", "--out", out)
    assert "--out is missing" in failed(capsys, "import", "--from", good)
    assert "name the folder that holds them" in failed(
        capsys, "import", "--from", good / "model.safetensors", "--out", out
    )
    assert "unknown chat format 'chatlm'; did you mean 'chatml'" in failed(
        capsys, "import", "--from", good, "--out", out, "--chat-format", "chatlm"
    )
    assert "the chat format llama3 needs the control token(s) <|start_header_id|>" in failed(
        capsys, "import", "--from", good, "--out", out, "--chat-format", "llama3"
    )
    bare = Path(shutil.copytree(good, tmp_path / "bare"))
    (bare / "tokenizer.json").unlink()
    assert "holds no tokenizer" in failed(capsys, "import", "--from", bare, "--out", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("file", "place", "value"),
    [
        ("tokenizer.json", ("model", "merges"), 0),
        ("tokenizer.json", ("model", "type"), {"a": 1}),
        ("tokenizer.json", ("added_tokens",), 1e9),
        ("tokenizer.json", ("post_processor",), 3),
        ("tokenizer_config.json", ("chat_template",), [1]),
    ],
)
def test_values_of_another_kind_in_a_tokenizers_files(save, tmp_path, capsys, file, place, value):
    folder = Path(shutil.copytree(save("llama").folder, tmp_path / "model"))
    whole = json.loads((folder / file).read_text())
    inner = whole
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (folder / file).write_text(json.dumps(whole))
    told = failed(capsys, "import", "--from", folder, "--out", tmp_path / "run")
    assert told.startswith(f"error: {folder}: holds a tokenizer that is not as it should be")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_tokenizer_larger_than_the_embedding(save, tmp_path, capsys):
    folder = Path(shutil.copytree(save("llama").folder, tmp_path / "model"))
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["added_tokens"].append({**whole["added_tokens"][0], "id": 400, "content": "<|more|>"})
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    told = failed(capsys, "import", "--from", folder, "--out", tmp_path / "run")
    assert "the tokenizer has 401 tokens, the embedding 320 rows" in told


def test_a_run_is_not_overwritten_unasked(ours, save, tmp_path, capsys):
    out, before = Path(shutil.copytree(ours, tmp_path / "run")), (ours / "model.safetensors").read_bytes()
    assert "holds a run already; replace it with --overwrite" in failed(
        capsys, "import", "--from", save("llama").folder, "--out", out
    )
    assert (out / "model.safetensors").read_bytes() == before
    assert run("import", "--from", save("llama").folder, "--out", out, "--overwrite") == 0
    assert run("export", "--model", out, "--to", tmp_path / "out") == 0
    assert "is there already" in failed(capsys, "export", "--model", out, "--to", tmp_path / "out")
    assert run("export", "--model", out, "--to", tmp_path / "out", "--overwrite") == 0


def test_no_space_half_way_leaves_nothing_under_its_final_name(ours, save, tmp_path, capsys, monkeypatch):
    read = SafetensorsFile.read
    calls = []

    def full(self, name):
        calls.append(name)
        if len(calls) == 3:
            raise OSError(28, os.strerror(28))
        return read(self, name)

    monkeypatch.setattr(SafetensorsFile, "read", full)
    told = failed(capsys, "import", "--from", save("qwen3").folder, "--out", tmp_path / "run")
    assert "model.safetensors: cannot be written: No space left on device" in told
    assert list((tmp_path / "run").iterdir()) == []
    for layout in ("hf", "gguf"):
        calls.clear()
        told = failed(capsys, "export", "--model", ours, "--to", tmp_path / layout, "--format", layout)
        assert "cannot be written: No space left on device" in told
        assert list((tmp_path / layout).iterdir()) == []


def test_nan_leaves_no_run(save, tmp_path, capsys):
    folder = Path(shutil.copytree(save("llama").folder, tmp_path / "model"))
    source = SafetensorsFile(folder / "model.safetensors")
    tensors = {name: source.read(name) for name in source.specs}
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors")
    told = failed(capsys, "import", "--from", folder, "--out", tmp_path / "run")
    assert "model.layers.1.mlp.up_proj.weight holds NaN" in told and list((tmp_path / "run").iterdir()) == []


def test_what_cannot_leave(ours, tmp_path, capsys):
    def changed(**settings):
        tokenizer = Tokenizer.load(ours)
        shape = ModelConfig(vocab_size=tokenizer.vocab_size, context=16, layers=1, width=16, heads=2, **settings)
        made = RunDirectory.open(tmp_path / "changed", overwrite=True)
        made.write_config("sft", shape.resolved(), tokenizer, {})
        made.save_model(Transformer(shape))
        return made.path

    to = ("--to", tmp_path / "out")
    assert "short convolution" in failed(capsys, "export", "--model", changed(qk_window=4), *to)
    assert "llama has no norm layernorm" in failed(capsys, "export", "--model", changed(norm="layernorm"), *to)
    assert "--dtype q8_0 is a format of GGUF" in failed(capsys, "export", "--model", ours, *to, "--dtype", "q8_0")
    assert "no rope_factor" in failed(
        capsys, "export", "--model", changed(qkv_bias=True, rope_factor=8.0), *to, "--format", "gguf"
    )
    assert "--to is missing" in failed(capsys, "export", "--model", ours)
    assert "is the run itself" in failed(capsys, "export", "--model", ours, "--to", ours)
    assert "is a file; --to names a folder" in failed(capsys, "export", "--model", ours, "--to", ours / "config.json")
    config = json.loads((ours / "config.json").read_text())
    reward = Path(shutil.copytree(ours, tmp_path / "reward"))
    (reward / "config.json").write_text(json.dumps({**config, "head": "reward"}))
    assert "holds a reward model" in failed(capsys, "export", "--model", reward, *to)
    assert not (tmp_path / "out").exists()
    unigram = Tokenizer.train(["the cat sees a red bird", "a bird sees the cat"] * 20, 275, kind="unigram")
    other = RunDirectory.open(tmp_path / "unigram")
    model = Transformer(ModelConfig(vocab_size=300, context=16, layers=1, width=16, heads=2))
    other.write_config("sft", model.config, unigram, {})
    other.save_model(model)
    assert "unigram" in failed(capsys, "export", "--model", other.path, *to, "--format", "gguf")
    assert run("export", "--model", other.path, *to) == 0  # transformers has it
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "the red bird sees 1 cat"
    assert theirs(text)["input_ids"] == unigram.document_start + unigram.encode(text)


def test_a_file_of_another_layout_is_told(ours, tmp_path, capsys):
    (tmp_path / "x.bin").write_bytes(b"x")
    assert "is weights alone" in failed(capsys, "import", "--from", tmp_path / "x.bin", "--out", tmp_path / "run")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert "name the file itself: x.gguf" in failed(capsys, "import", "--from", tmp_path, "--out", tmp_path / "run")
    assert "is a run of this project already" in failed(capsys, "import", "--from", ours, "--out", tmp_path / "run")
    (tmp_path / "x.zip").write_bytes(b"PK")
    assert "is no GGUF file" in failed(capsys, "import", "--from", tmp_path / "x.zip", "--out", tmp_path / "run")


def test_errors_are_of_the_users(tmp_path):
    with pytest.raises(UserError, match="no such run directory"):
        run_command(["export", "--model", str(tmp_path / "none"), "--to", str(tmp_path)])
