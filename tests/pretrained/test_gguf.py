"""GGUF files, written and read; `transformers` has a reader of its own, and the package `gguf` another."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from instructgpt.config import ModelConfig
from instructgpt.errors import UserError
from instructgpt.model import Transformer
from instructgpt.pretrained.families import family_of
from instructgpt.pretrained.folder import CONFIG, open_folder, read_json
from instructgpt.pretrained.gguf import PACKED, GGUFFile, folder_settings, with_rope_scaling, write_gguf
from instructgpt.pretrained.renaming import Exported, Imported
from instructgpt.pretrained.settings import model_config
from instructgpt.tensors import Held

gguf = pytest.importorskip("gguf")


def read(path: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    file = GGUFFile(path)
    config, family, _ = model_config(folder_settings(file), path)
    config = with_rope_scaling(file, config)
    source = Imported(file, config, family, "gguf", path)
    return config, {name: source.read(name) for name in source.specs}


def of_folder(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    config, family, _ = model_config(read_json(folder / CONFIG), folder / CONFIG)
    source = Imported(open_folder(folder), config, family, "folder", folder)
    return config, {name: source.read(name) for name in source.specs}


def write(path: Path, config: ModelConfig, weights: dict[str, Tensor], dtype: str = "keep", **values) -> Path:
    family = family_of(config)
    write_gguf(path, Exported(Held(weights), config, family, "gguf"), config, family, dtype, values)
    return path


@pytest.fixture(scope="module")
def small():
    """A model whose rows are made of whole blocks, of 32 and of 256."""
    config = ModelConfig(
        vocab_size=40, context=64, layers=1, width=256, heads=4, kv_heads=2, mlp_width=512, tie_embeddings=False
    ).resolved()
    torch.manual_seed(0)
    return config, dict(Transformer(config).state_dict())


@pytest.fixture
def file(small, tmp_path):
    return write(tmp_path / "model.gguf", *small)


def test_a_model_comes_back_bit_by_bit(saved, tmp_path):
    config, weights = of_folder(saved.folder)
    again_config, again = read(write(tmp_path / "model.gguf", config, weights))
    assert again_config == config or saved.name.startswith("gpt2")  # GGUF has no dropout
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)


def test_transformers_reads_what_is_written(saved, tmp_path):
    transformers = pytest.importorskip("transformers")
    write(tmp_path / "model.gguf", *of_folder(saved.folder))
    # Their reader of GGUF overlooks settings, such as a head_dim, that a config of theirs has.
    told = {} if saved.name == "mistral" else {"config": saved.model.config}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", **told).eval()
    ids = torch.arange(40)[None] % 320
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, saved.model(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "matrix", "embedding"),
    [("float32", "F32", "F32"), ("float16", "F16", "F16"), ("bfloat16", "BF16", "BF16"), ("q8_0", "Q8_0", "Q8_0"),
     ("q4_0", "Q4_0", "Q8_0")],
)  # fmt: skip
def test_number_formats(small, tmp_path, dtype, matrix, embedding):
    config, weights = small
    path = write(tmp_path / "model.gguf", config, weights, dtype)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert kinds["blk.0.attn_q.weight"] == kinds["blk.0.ffn_down.weight"] == matrix
    assert kinds["token_embd.weight"] == kinds["output.weight"] == embedding
    assert kinds["blk.0.attn_norm.weight"] == kinds["output_norm.weight"] == "F32"
    bits = {"F32": 30, "F16": 10, "BF16": 7, "Q8_0": 7, "Q4_0": 3}[matrix]
    for name, tensor in read(path)[1].items():
        error = (tensor.float() - weights[name]).abs().max() / weights[name].abs().max()
        assert error <= 1.1 * 2.0**-bits, (name, error)
    again = write(tmp_path / "again.gguf", *read(path), dtype)
    assert again.read_bytes() == path.read_bytes()  # what was rounded once is not rounded again


@pytest.mark.parametrize("kind", PACKED.values())
def test_every_packed_type_is_read_as_the_package_does(tmp_path, kind):
    kinds = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[kinds]
    data = torch.randint(1, 60, (3, 512 // block * size), dtype=torch.uint8).numpy()  # no NaN in its scales
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("first", data, raw_dtype=kinds)
    writer.add_tensor("second", data[::-1].copy(), raw_dtype=kinds)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(tmp_path / "x.gguf")
    expected = torch.from_numpy(gguf.dequantize(data, kinds))
    assert file.specs["first"].shape == (3, 512) and torch.equal(file.read("first"), expected)
    assert torch.equal(file.read("second"), expected.flip(0))


def test_rows_that_are_no_whole_blocks_become_float16(tmp_path):
    config = ModelConfig(vocab_size=10, context=8, layers=1, width=48, heads=2, mlp_width=64).resolved()
    path = write(tmp_path / "x.gguf", config, dict(Transformer(config).state_dict()), "q4_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert (kinds["blk.0.attn_q.weight"], kinds["blk.0.ffn_down.weight"]) == ("F16", "Q4_0")


def test_positions_stay_in_float32(save, tmp_path):
    """As llama.cpp's own converter has them: they are looked up, and added to what is looked up in the embedding."""
    path = write(tmp_path / "x.gguf", *of_folder(save("gpt2").folder), "float16")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert (kinds["position_embd.weight"], kinds["blk.0.attn_qkv.weight"]) == ("F32", "F16")


def test_a_weight_too_large_for_float16_is_refused(small, tmp_path):
    config, weights = small
    with pytest.raises(UserError, match=r"70000.* is too much for F16"):
        write(tmp_path / "x.gguf", config, {**weights, "head_weight": weights["head_weight"] + 70_000.0}, "float16")
    assert list(tmp_path.iterdir()) == []


# ---- files that are not as they should be


def test_cut_off_at_any_byte(file):
    data = file.read_bytes()
    for end in [*range(0, 2000, 97), len(data) // 2, len(data) - 1]:
        file.write_bytes(data[:end])
        with pytest.raises(UserError, match=r"model\.gguf: is (cut off|damaged|no GGUF)"):
            GGUFFile(file)


@given(at=st.integers(4, 1500), byte=st.integers(0, 255))
def test_a_byte_that_is_wrong_is_read_or_refused(small, tmp_path_factory, at, byte):
    """Whatever a header says: no other error, and no endless loop or allocation."""
    path = write(tmp_path_factory.mktemp("g") / "x.gguf", *small)
    data = bytearray(path.read_bytes())
    data[at] = byte
    path.write_bytes(data)
    try:
        read(path)
    except UserError as error:
        assert "\n" not in str(error)


def test_layers_by_the_billion_are_refused_at_once(small, tmp_path):
    path = write(tmp_path / "x.gguf", *small)
    data = path.read_bytes()
    at = data.index(b"llama.block_count") + len(b"llama.block_count") + 4  # what follows its type
    path.write_bytes(data[:at] + struct.pack("<I", 2**31) + data[at + 4 :])
    with pytest.raises(UserError, match=r"says 2,147,483,648 layers, and there are \d+ tensors"):
        read(path)


@pytest.mark.parametrize(
    ("at", "data", "complaint"),
    [
        (0, b"GGML", "is no GGUF file"),
        (4, struct.pack("<I", 4), "is of version 4; known are versions 2 and 3"),
        (4, struct.pack("<I", 1), "is of version 1"),
        (4, struct.pack(">I", 3), "is big-endian"),
        (8, struct.pack("<Q", 1 << 60), "is damaged: it says that 1,152,921,504,606,846,976 entries"),
        (16, struct.pack("<Q", 1 << 60), "is damaged: it says that"),
        (24, struct.pack("<Q", 1 << 60), "is cut off or damaged"),
    ],
)
def test_headers_that_cannot_be(file, at, data, complaint):
    whole = bytearray(file.read_bytes())
    whole[at : at + len(data)] = data
    file.write_bytes(whole)
    with pytest.raises(UserError, match=rf"model\.gguf: {complaint}"):
        GGUFFile(file)


def made(path: Path, arch: str = "llama", values: dict | None = None, kind: str = "F32") -> Path:
    """A file of one tensor."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in (values or {}).items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(key, value)
    kinds = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[kinds]
    writer.add_tensor(
        "token_embd.weight", torch.zeros(8, 256 // block * size, dtype=torch.uint8).numpy(), raw_dtype=kinds
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["Q2_K", "IQ4_XS", "TQ1_0"])
def test_a_type_that_is_not_known_is_named(tmp_path, kind):
    with pytest.raises(UserError, match=rf"token_embd\.weight is of type {kind}, .*known are F32, F16, BF16, Q4_0"):
        GGUFFile(made(tmp_path / "x.gguf", kind=kind))


@pytest.mark.parametrize(
    ("arch", "values", "complaint"),
    [
        ("gemma2", {}, r"x\.gguf: the architecture gemma2 needs"),
        ("gptneox", {}, r"x\.gguf: the architecture gptneox needs .*rotations of a part"),
        ("qwen2moe", {}, "mixture of experts"),
        ("clip", {}, "the architecture clip is unknown"),
        ("llama", {"llama.expert_count": 8}, "num_local_experts 8 needs .* mixture of experts"),
        ("llama", {"llama.rope.scaling.type": "yarn"}, "the rope scaling 'yarn'"),
        ("llama", {"llama.embedding_length": 256, "llama.attention.head_count": 4, "llama.rope.dimension_count": 32},
         "partial_rotary_factor 0.5"),
        ("llama", {"llama.embedding_length": 256, "llama.attention.head_count": 4, "llama.attention.value_length": 32},
         "values have another length than keys"),
        ("llama", {"llama.context_length": 0}, "max_position_embeddings is 0"),
        ("llama", {"llama.context_length": 16}, "num_hidden_layers is missing"),
        ("llama", {"split.count": 3}, "is one of 3 parts"),
    ],
)  # fmt: skip
def test_models_that_cannot_be(tmp_path, arch, values, complaint):
    with pytest.raises(UserError, match=complaint):
        read(made(tmp_path / "x.gguf", arch, values))


def test_rotations_of_another_kind_are_refused(save, tmp_path):
    config, weights = of_folder(save("llama3").folder)
    path = write(tmp_path / "x.gguf", config, weights, **{"instructgpt.rope.original_context": 16})
    with pytest.raises(UserError, match=r"rope_freqs\.weight is no rope scaling of Llama 3"):
        read(path)
