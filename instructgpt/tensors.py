"""Named tensors, each made when it is asked for, and safetensors files written and read one tensor at a time.

So a checkpoint never has to fit in memory: reader, renaming and writer hand each other one tensor after the other.
Files are read, not mapped into memory, where every page that was touched would count as the process's own.

A file: 8 bytes, the length of the header; the header, JSON, with each tensor's dtype, shape and place; the tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from instructgpt.atomic import replacing
from instructgpt.errors import UserError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""By the name that safetensors gives them."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # bytes, as safetensors allows
_DIGESTS = "sha256"


class Spec(NamedTuple):
    """What is known of a tensor before it is read."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class Tensors(Protocol):
    """Tensors by name, wherever they come from."""

    @property
    def specs(self) -> Mapping[str, Spec]: ...

    def read(self, name: str) -> Tensor:
        """The tensor, on the CPU, as its spec says. Raises UserError where its source is damaged."""
        ...


class Held:
    """Tensors that are in memory."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = tensors
        self.specs = {name: Spec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}

    def read(self, name: str) -> Tensor:
        return self.tensors[name].detach().cpu()


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are; without a mask of them, which would be as large as a tensor."""
    return tensor.numel() == 0 or all(math.isfinite(bound) for bound in map(float, tensor.aminmax()))


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def write_safetensors(
    path: Path, source: Tensors, metadata: Mapping[str, str] | None = None, *, with_digests: bool = True
) -> None:
    """Writes all tensors of `source` to `path`, whole or not at all, with a SHA-256 of each unless others are to read
    the file. Equal contents give equal files.
    """
    # Wide formats first, as safetensors does it: each tensor then begins at a multiple of its own element.
    order = sorted(source.specs, key=lambda name: (-source.specs[name].dtype.itemsize, name))
    digests = dict.fromkeys(sorted(order), "0" * 64)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(_header(source.specs, order, metadata, digests if with_digests else None))
        for name in order:
            data = _bytes(source.read(name))
            if data.nbytes != source.specs[name].size:
                raise ValueError(f"{name} is not as its spec says: {data.nbytes} bytes, not {source.specs[name].size}")
            digests[name] = _digest(name, source.specs[name], data)
            file.write(data)
        file.seek(0)  # now that the digests are known, the header again, as long as it was
        file.write(_header(source.specs, order, metadata, digests if with_digests else None))


def _digest(name: str, spec: Spec, data: memoryview) -> str:
    digest = hashlib.sha256(f"{name} {_NAMES[spec.dtype]} {spec.shape}\n".encode())
    digest.update(data)
    return digest.hexdigest()


def _header(
    specs: Mapping[str, Spec], order: list[str], metadata: Mapping[str, str] | None, digests: dict[str, str] | None
) -> bytes:
    told = {"format": "pt", **(metadata or {})}
    if digests is not None:
        told[_DIGESTS] = json.dumps(digests, separators=(",", ":"), ensure_ascii=False)
    entries: dict[str, Any] = {"__metadata__": dict(sorted(told.items()))}
    place = 0
    for name in order:
        spec = specs[name]
        entries[name] = {
            "dtype": _NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [place, place + spec.size]
        }  # fmt: skip
        place += spec.size
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class SafetensorsFile:
    """A safetensors file, of which only the header is in memory."""

    def __init__(self, path: Path):
        """Raises UserError when it is missing, cut off, or no safetensors file."""
        self.path = path
        self.specs: dict[str, Spec] = {}
        self.metadata: dict[str, str] = {}
        self._places: dict[str, int] = {}
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                size = path.stat().st_size
                if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
                    raise ValueError(f"its header cannot be {length:,} bytes of {size:,}")
                entries = json.loads(file.read(length))
            self.metadata = dict(entries.pop("__metadata__", {}))
            for name, entry in entries.items():
                self._add(name, entry, 8 + length, size)
            stated = self.metadata.get(_DIGESTS, "")
            self._digests: dict[str, str] = json.loads(stated) if stated.startswith("{") else {}
            # Ours have `values`; before each tensor had a digest there was one for all.
            self._unchecked = stated if "values" in self.metadata and not self._digests else ""
        except FileNotFoundError:
            raise UserError("no such file", path) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"is damaged or not a safetensors file ({error}); restore it from a copy", path) from None

    def _add(self, name: str, entry: dict[str, Any], start: int, size: int) -> None:
        if entry["dtype"] not in DTYPES:
            raise UserError(f"{name} is in {entry['dtype']}; known are {', '.join(DTYPES)}", self.path)
        spec = Spec(DTYPES[entry["dtype"]], tuple(int(n) for n in entry["shape"]))
        first, last = entry["data_offsets"]
        if not 0 <= first <= last or last - first != spec.size or min(spec.shape, default=0) < 0:
            raise ValueError(f"{name}, {spec.shape}, cannot be from byte {first} to {last}")
        if start + last > size:
            raise ValueError(f"cut off: {name} ends at byte {start + last:,} of {size:,}")
        self.specs[name] = spec
        self._places[name] = start + first

    def read(self, name: str) -> Tensor:
        if self._unchecked:
            stated, self._unchecked = self._unchecked, ""
            if self._digest_of_all() != stated:
                raise UserError(
                    "its contents do not match its checksum: the file was altered; restore it from a copy", self.path
                )
        spec = self.specs[name]
        data = self._read_bytes(name)
        if name in self._digests and _digest(name, spec, data.numpy().data) != self._digests[name]:
            raise UserError(
                f"its contents do not match its checksum: {name} was altered; restore it from a copy", self.path
            )
        return data.view(spec.dtype).view(spec.shape)

    @property
    def digest(self) -> str:
        """SHA-256 of names, formats, shapes and bytes; a file without a digest for each tensor is read for it."""
        return hashlib.sha256(self.metadata[_DIGESTS].encode()).hexdigest() if self._digests else self._digest_of_all()

    def _read_bytes(self, name: str) -> Tensor:
        return read_bytes(self.path, self._places[name], self.specs[name].size)

    def _digest_of_all(self) -> str:
        digest = hashlib.sha256()
        for name in sorted(self.specs):
            digest.update(f"{name} {self.specs[name].dtype} {self.specs[name].shape}\n".encode())
            digest.update(self._read_bytes(name).numpy().data)
        return digest.hexdigest()


def read_bytes(path: Path, start: int, size: int) -> Tensor:
    """`size` bytes of a file, as a tensor of uint8. Raises UserError when they are not there."""
    data = torch.empty(size, dtype=torch.uint8)
    view, have = data.numpy().data, 0
    try:
        with path.open("rb") as file:
            file.seek(start)
            while have < size and (n := file.readinto(view[have:])):  # at most 2 GB come at once
                have += n
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", path) from None
    if have < size:
        raise UserError(f"is cut off after {start + have:,} bytes; {start + size:,} are needed", path)
    return data
