"""GGUF, llama.cpp's files: settings, vocabulary and weights in one, the weights often in blocks of few bits.

The header is read here rather than by the package `gguf`, whose reader maps the whole file into memory and takes the
numbers in it as they are; the package unpacks and packs the blocks, and writes.

A file: "GGUF", version, counts of tensors and settings; the settings, each with its type; per tensor its name, shape
(the fastest dimension first), type and place; the tensors. Little-endian, strings with their length in front.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from instructgpt.atomic import replacing
from instructgpt.config import ModelConfig
from instructgpt.errors import UserError
from instructgpt.pretrained.families import FAMILIES, Family, unknown_architecture
from instructgpt.tensors import Spec, Tensors, is_finite, read_bytes
from kernels import RopeScaling

VERSIONS = (2, 3)
PLAIN = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}
"""Number formats by their number in a file."""
PACKED = {2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K"}
"""Blocks of few bits, unpacked to float32."""
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST = 1 << 26  # tensors, settings, entries of a list: no file has as many
_ROWS = 1 << 22  # numbers that are unpacked at once


def gguf_package() -> Any:
    """The package `gguf`. UserError where it is not installed."""
    try:
        import gguf
    except ImportError:
        raise UserError("GGUF files need the package gguf: pip install 'instructgpt[pretrained]'") from None
    return gguf


class _Place(NamedTuple):
    kind: int
    start: int
    size: int


class GGUFFile:
    """A GGUF file, of which only the header is in memory; `values` are its settings by name."""

    def __init__(self, path: Path):
        """Raises UserError when it is missing, cut off, of another version, or holds a type that is not known here."""
        self.path = path
        self.values: dict[str, Any] = {}
        self.specs: dict[str, Spec] = {}
        self._places: dict[str, _Place] = {}
        try:
            with path.open("rb") as file:
                self._size = path.stat().st_size
                self._read_header(file)
        except FileNotFoundError:
            raise UserError("no such file", path) from None
        except (OSError, struct.error, UnicodeDecodeError, OverflowError) as error:
            raise UserError(f"is damaged or no GGUF file: {error}", path) from None

    def _read_header(self, file: BinaryIO) -> None:
        if file.read(4) != b"GGUF":
            raise UserError("is no GGUF file: it does not begin with GGUF", self.path)
        (version,) = self._unpack(file, "<I")
        if version not in VERSIONS:
            order = "big-endian" if version.bit_length() > 16 else f"of version {version}"
            raise UserError(f"is {order}; known are versions {VERSIONS[0]} and {VERSIONS[1]}, little-endian", self.path)
        tensors, settings = (self._count(file) for _ in range(2))
        for _ in range(settings):
            name = self._string(file)
            (kind,) = self._unpack(file, "<I")
            self.values[name] = self._value(file, kind)
        if self.values.get("split.count", 0) > 1:
            raise UserError(f"is one of {self.values['split.count']} parts; join them with llama-gguf-split", self.path)
        found = [self._tensor(file) for _ in range(tensors)]
        alignment = self.values.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment < _MOST:
            raise UserError(f"general.alignment is {alignment!r}", self.path)
        data = -(-file.tell() // alignment) * alignment
        for name, spec, place in found:
            self._add(name, spec, place._replace(start=data + place.start))

    def _take(self, file: BinaryIO, size: int) -> bytes:
        # Never more than there is: a length of 2^60 in a damaged file would be asked of the memory.
        data = file.read(size) if size <= self._size else b""
        if len(data) < size:
            raise UserError(f"is cut off or damaged: {size:,} bytes were to follow byte {file.tell():,}", self.path)
        return data

    def _unpack(self, file: BinaryIO, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self._take(file, struct.calcsize(layout)))

    def _count(self, file: BinaryIO) -> int:
        (n,) = self._unpack(file, "<Q")
        if n > _MOST:
            raise UserError(f"is damaged: it says that {n:,} entries follow byte {file.tell():,}", self.path)
        return n

    def _string(self, file: BinaryIO) -> str:
        return self._take(file, self._unpack(file, "<Q")[0]).decode("utf-8", "strict")

    def _value(self, file: BinaryIO, kind: int) -> Any:
        if kind in _SCALARS:
            (value,) = self._unpack(file, "<" + _SCALARS[kind])
            # The shortest decimal that is this float32: 1e-05, not 9.999999747378752e-06.
            return float(str(np.float32(value))) if _SCALARS[kind] == "f" else value
        if kind == _STRING:
            return self._string(file)
        if kind != _ARRAY:
            raise UserError(f"a setting is of the unknown type {kind}, before byte {file.tell():,}", self.path)
        (inner,) = self._unpack(file, "<I")
        n = self._count(file)
        if inner in _SCALARS:
            layout = np.dtype("<" + _SCALARS[inner])
            return np.frombuffer(self._take(file, n * layout.itemsize), layout).tolist()
        return [self._value(file, inner) for _ in range(n)]

    def _tensor(self, file: BinaryIO) -> tuple[str, Spec, _Place]:
        name = self._string(file)
        (dimensions,) = self._unpack(file, "<I")
        if not 1 <= dimensions <= 4:
            raise UserError(f"{name} has {dimensions} dimensions; 1 to 4 are possible", self.path)
        shape = self._unpack(file, f"<{dimensions}Q")[::-1]
        kind, start = self._unpack(file, "<IQ")
        n = math.prod(shape)
        if kind in PLAIN:
            return name, Spec(PLAIN[kind], shape), _Place(kind, start, n * PLAIN[kind].itemsize)
        if kind not in PACKED:
            known = ", ".join(["F32", "F16", "BF16", *PACKED.values()])
            raise UserError(
                f"{name} is of type {_type_name(kind)}, which is not known here; known are {known}", self.path
            )
        block, size = _block(kind)
        if shape[-1] % block:
            raise UserError(f"{name} has rows of {shape[-1]}; {PACKED[kind]} packs {block} at a time", self.path)
        return name, Spec(torch.float32, shape), _Place(kind, start, n // block * size)

    def _add(self, name: str, spec: Spec, place: _Place) -> None:
        if name in self.specs:
            raise UserError(f"{name} stands there twice", self.path)
        if (end := place.start + place.size) > self._size:
            raise UserError(f"is cut off: {name} ends at byte {end:,} of {self._size:,}", self.path)
        self.specs[name], self._places[name] = spec, place

    def read(self, name: str) -> Tensor:
        spec, place = self.specs[name], self._places[name]
        data = read_bytes(self.path, place.start, place.size)
        if place.kind in PLAIN:
            return data.view(spec.dtype).view(spec.shape)
        gguf = gguf_package()
        block, size = _block(place.kind)
        row = spec.shape[-1] // block * size  # bytes
        packed, kind = data.view(-1, row), gguf.GGMLQuantizationType(place.kind)
        values = torch.empty(len(packed), spec.shape[-1])
        step = max(1, _ROWS // spec.shape[-1])
        for i in range(0, len(packed), step):
            values[i : i + step] = torch.from_numpy(gguf.dequantize(packed[i : i + step].numpy(), kind))
        return values.view(spec.shape)


def _block(kind: int) -> tuple[int, int]:
    """Numbers in a block, and its bytes."""
    gguf = gguf_package()
    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]


def _type_name(kind: int) -> str:
    try:
        return gguf_package().GGMLQuantizationType(kind).name
    except ValueError:
        return str(kind)


_SCALING = {
    "rope_low_factor": "instructgpt.rope.low_freq_factor",
    "rope_high_factor": "instructgpt.rope.high_freq_factor",
    "rope_original_context": "instructgpt.rope.original_context",
}
"""GGUF has the rotations' factors, not what they were made of: what we write of that, for our own reading."""


def folder_settings(file: GGUFFile) -> dict[str, Any]:
    """A GGUF file's settings as a folder's config.json has them. Raises UserError for an unknown architecture."""
    values, path = file.values, file.path
    name = values.get("general.architecture")
    family = next((family for family in FAMILIES.values() if family.gguf == name), None)
    if family is None:
        raise UserError(unknown_architecture(str(name)) if name else "names no architecture", path)
    own = {key.removeprefix(f"{name}."): value for key, value in values.items() if key.startswith(f"{name}.")}
    if "token_embd.weight" not in file.specs:
        raise UserError("token_embd.weight is missing", path)
    found: dict[str, Any] = {theirs: own[key] for _, theirs, key in family.keys if key in own}
    found["model_type"] = "mistral" if name == "llama" and "attention.sliding_window" in own else family.name
    found["vocab_size"] = file.specs["token_embd.weight"].shape[0]
    found["tie_word_embeddings"] = "output.weight" not in file.specs
    found["num_local_experts"] = own.get("expert_count", 0)
    found["sliding_window"] = own.get("attention.sliding_window")
    heads, width = own.get("attention.head_count"), own.get("embedding_length")
    if isinstance(heads, int) and isinstance(width, int) and heads > 0:
        head_dim = own.get("attention.key_length", width // heads)
        if own.get("attention.value_length", head_dim) != head_dim:
            raise UserError("values have another length than keys, which the Transformer here lacks", path)
        if (turned := own.get("rope.dimension_count", head_dim)) != head_dim and family.name != "gpt2":
            found["partial_rotary_factor"] = turned / max(head_dim, 1)
    if (kind := own.get("rope.scaling.type", "none")) != "none":
        found["rope_scaling"] = {"rope_type": kind}
    if own.get("rope.scale_linear", 1.0) != 1.0:
        found["rope_scaling"] = {"rope_type": "linear"}
    return found


def with_rope_scaling(file: GGUFFile, config: ModelConfig) -> ModelConfig:
    """The config with Llama 3's scaling where the file has its factors. Raises UserError for other factors."""
    if "rope_freqs.weight" not in file.specs:
        return config
    factors = file.read("rope_freqs.weight").double()
    given = {ours: file.values[key] for ours, key in _SCALING.items() if key in file.values}
    scaled = replace(config, rope_factor=float(factors.max()), **given)
    wanted = rope_factors(scaled)
    if wanted.shape != factors.shape or not torch.allclose(wanted, factors, rtol=1e-4):
        raise UserError("rope_freqs.weight is no rope scaling of Llama 3, the only one known here", file.path)
    return scaled


def rope_factors(config: ModelConfig) -> Tensor:
    """(D/2,), what each rotation is slowed down by."""
    config = config.resolved()
    plain = config.rope_theta ** -(torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim)
    scaling = RopeScaling(
        config.rope_factor, config.rope_low_factor, config.rope_high_factor, config.rope_original_context
    )
    return plain / scaling.slow_down(plain)


FORMATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
"""What --dtype calls the number formats that are written."""


def write_gguf(
    path: Path, source: Tensors, config: ModelConfig, family: Family, dtype: str, values: Mapping[str, Any]
) -> None:
    """Writes a model, its parameters under GGUF's names, whole or not at all.

    dtype: of the matrices, as in FORMATS, or "keep"; vectors are float32 in any case, as llama.cpp wants them.
    values: further settings, the vocabulary's.
    """
    if config.rope_factor > 1 and not family.interleaved:
        raise UserError(f"cannot leave as GGUF: llama.cpp's {family.gguf} has no rope_factor, it scales no rotations")
    gguf = gguf_package()
    kinds = {name: _kind(name, spec, dtype) for name, spec in source.specs.items()}
    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, family.gguf)
        try:
            for key, value in {**_settings(config, family, source, dtype), **values}.items():
                _add_value(writer, key, value)
            scaled = {"rope_freqs.weight": rope_factors(config).float()} if config.rope_factor > 1 else {}
            for name, tensor in scaled.items():
                writer.add_tensor_info(name, tuple(tensor.shape), np.dtype("f4"), tensor.nbytes)
            for name, spec in source.specs.items():
                kind = gguf.GGMLQuantizationType[kinds[name]]
                block, size = gguf.GGML_QUANT_SIZES[kind]
                shape = (*spec.shape[:-1], spec.shape[-1] // block * size)  # in bytes, as raw data are described
                writer.add_tensor_info(name, shape, np.dtype("u1"), math.prod(shape), kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            file = writer.fout[0]
            writer.write_padding(file, file.tell())
            for tensor in (*scaled.values(), *source.specs):
                data = tensor.numpy() if isinstance(tensor, Tensor) else _packed(source.read(tensor), kinds[tensor])
                file.write(data.data)  # the package writes through numpy, which does not say that a disk is full
                writer.write_padding(file, data.nbytes)
        finally:
            writer.close()


def _kind(name: str, spec: Spec, dtype: str) -> str:
    """The type in which a tensor is written."""
    if len(spec.shape) < 2 or name == "position_embd.weight":
        return "F32"
    if dtype == "keep":
        return {torch.float16: "F16", torch.bfloat16: "BF16"}.get(spec.dtype, "F32")
    wanted = FORMATS[dtype]
    if not wanted.startswith("Q"):
        return wanted
    if spec.shape[-1] % 32:
        return "F16"  # as llama.cpp does where a row is not made of whole blocks
    # The head's errors go into the logits undamped.
    return "Q8_0" if name in ("token_embd.weight", "output.weight") else wanted


def _packed(tensor: Tensor, kind: str) -> np.ndarray[Any, Any]:
    """The bytes of a tensor in a type of GGUF."""
    plain = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    if kind in plain:
        converted = tensor.to(plain[kind])
        if not is_finite(converted):
            raise UserError(f"a weight of {float(tensor.abs().max()):g} is too much for {kind}; choose another --dtype")
        return converted.contiguous().view(torch.uint8).numpy()
    gguf = gguf_package()
    rows = tensor.float().reshape(-1, tensor.size(-1))
    step = max(1, _ROWS // rows.size(1))
    kinds = gguf.GGMLQuantizationType[kind]
    return np.concatenate([gguf.quantize(rows[i : i + step].numpy(), kinds) for i in range(0, len(rows), step)])


def _settings(config: ModelConfig, family: Family, source: Tensors, dtype: str) -> dict[str, Any]:
    config, before = config.resolved(), f"{family.gguf}."
    files = {"float32": 0, "float16": 1, "q4_0": 2, "q8_0": 7, "bfloat16": 32}  # llama.cpp's numbers
    kept = {torch.float16: "float16", torch.bfloat16: "bfloat16"}.get(
        source.specs["token_embd.weight"].dtype, "float32"
    )
    found: dict[str, Any] = {before + key: getattr(config, ours) for ours, _, key in family.keys}
    found[before + "vocab_size"] = config.vocab_size
    found["general.file_type"] = files[kept if dtype == "keep" else dtype]
    found["general.quantization_version"] = 2
    if config.position == "rope":
        found[before + "rope.dimension_count"] = config.head_dim
        found[before + "attention.value_length"] = config.head_dim
    if config.rope_factor > 1:
        found |= {key: getattr(config, ours) for ours, key in _SCALING.items()}
    return found


def _add_value(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value:  # the package takes a list's type from its first entry, and knows no empty ones
        writer.add_array(key, value)
