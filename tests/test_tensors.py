from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from instructgpt.errors import UserError
from instructgpt.tensors import DTYPES, Held, SafetensorsFile, Spec, write_safetensors

EXAMPLE = {
    "half": torch.arange(3, dtype=torch.bfloat16),  # 6 bytes: what follows would not lie at a multiple of 8
    "wide": torch.randn(2, 3, dtype=torch.float64),
    "flag": torch.tensor([True, False, True]),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "ids": torch.arange(5),
}
SPECS = st.tuples(st.sampled_from(list(DTYPES.values())), st.lists(st.integers(0, 3), max_size=3))


def contents(path: Path) -> dict[str, torch.Tensor]:
    file = SafetensorsFile(path)
    return {name: file.read(name) for name in file.specs}


def edited(path: Path, change) -> None:
    """The file with its header changed, and nothing else."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.fixture
def path(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", Held(EXAMPLE), {"values": "{}"})
    return tmp_path / "x.safetensors"


def test_the_library_reads_what_is_written(path):
    with safe_open(str(path), framework="pt") as file:
        assert file.metadata()["format"] == "pt" and file.metadata()["values"] == "{}"
        assert set(file.keys()) == EXAMPLE.keys()
        for name, tensor in EXAMPLE.items():
            assert torch.equal(file.get_tensor(name), tensor) and file.get_tensor(name).dtype == tensor.dtype, name


def test_what_the_library_writes_is_read(tmp_path):
    save_file(EXAMPLE, str(tmp_path / "x"), {"format": "pt", "sha256": "0" * 64})  # not digests of ours
    found = contents(tmp_path / "x")
    assert found.keys() == EXAMPLE.keys() and all(torch.equal(found[name], EXAMPLE[name]) for name in found)
    digest = SafetensorsFile(tmp_path / "x").digest
    save_file({**EXAMPLE, "ids": torch.arange(5) + 1}, str(tmp_path / "x"))
    assert len(digest) == 64 and SafetensorsFile(tmp_path / "x").digest != digest


@given(st.dictionaries(st.text(min_size=1).filter(lambda name: name != "__metadata__" and name.isprintable()), SPECS))
def test_any_tensors_come_back(tmp_path_factory, specs):
    path = tmp_path_factory.mktemp("t") / "x"
    tensors = {name: (3 * torch.rand(shape)).to(dtype) for name, (dtype, shape) in specs.items()}
    write_safetensors(path, Held(tensors))
    found = contents(path)
    assert SafetensorsFile(path).specs == {name: Spec(dtype, tuple(shape)) for name, (dtype, shape) in specs.items()}
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_an_altered_tensor_is_named(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # the last written: the narrowest format
    path.write_bytes(data)
    file = SafetensorsFile(path)
    assert torch.equal(file.read("ids"), EXAMPLE["ids"])
    with pytest.raises(UserError, match="do not match its checksum: flag was altered"):
        file.read("flag")


def of_before(path: Path, tensors: dict[str, torch.Tensor], altered: dict[str, torch.Tensor]) -> None:
    """A file as runs had it when one digest stood for all tensors; what is in it may be something else."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    save_file({**tensors, **altered}, str(path), {"format": "pt", "sha256": digest.hexdigest(), "values": "{}"})


@pytest.mark.parametrize(
    "altered",
    [
        {"scalar": torch.tensor(2.6)},
        {"ids": torch.arange(1, 6)},
        {"half": EXAMPLE["half"].half()},
        {"more": torch.ones(1)},
    ],
)
def test_a_file_with_one_digest_for_all_is_checked_whole(tmp_path, altered):
    of_before(tmp_path / "x", EXAMPLE, {})
    found = contents(tmp_path / "x")
    assert all(torch.equal(found[name], EXAMPLE[name]) for name in EXAMPLE)
    of_before(tmp_path / "x", EXAMPLE, altered)
    with pytest.raises(UserError, match="do not match its checksum: the file was altered"):
        contents(tmp_path / "x")


def test_digest_is_of_names_shapes_and_bytes(tmp_path):
    def digest(tensors):
        write_safetensors(tmp_path / "x", Held(tensors))
        return SafetensorsFile(tmp_path / "x").digest

    a = torch.arange(4.0)
    digests = [digest(t) for t in ({"a": a}, {"b": a}, {"a": a.view(2, 2)}, {"a": a + 1}, {"a": a.view(torch.int32)})]
    assert len(set(digests)) == 5 and digests[0] == digest({"a": a.clone()})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda h: h["ids"].update(dtype="F8_E4M3"), "ids is in F8_E4M3; known are F64"),
        (lambda h: h["ids"].update(shape=[6]), r"ids, \(6,\), cannot be from byte"),
        (lambda h: h["ids"].update(shape=[-5]), r"ids, \(-5,\), cannot be"),
        (lambda h: h["ids"].update(data_offsets=[40, 0]), "cannot be from byte 40 to 0"),
        (lambda h: h["wide"].update(shape=[1 << 40], data_offsets=[0, 8 << 40]), "cut off: wide ends at byte"),
        (lambda h: h["ids"].pop("dtype"), "is damaged or not a safetensors file"),
        (lambda h: h.update(ids=3), "is damaged or not a safetensors file"),
    ],
)
def test_headers_that_cannot_be(path, change, complaint):
    edited(path, change)
    with pytest.raises(UserError, match=complaint):
        SafetensorsFile(path)


@pytest.mark.parametrize("data", [b"", b"abc", b"\xff" * 64, (1 << 60).to_bytes(8, "little") + b"{}", b"PK\3\4" * 9])
def test_what_is_no_safetensors_file(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(UserError, match="x: is damaged or not a safetensors file"):
        SafetensorsFile(tmp_path / "x")


def test_cut_off_at_any_byte(path):
    data = path.read_bytes()
    for end in range(0, len(data), 37):
        path.write_bytes(data[:end])
        with pytest.raises(UserError, match="is damaged or not a safetensors file"):
            SafetensorsFile(path)


def test_a_source_that_fails_half_way_leaves_the_old_file(path):
    class Failing(Held):
        def read(self, name):
            raise UserError("no more") if name == "flag" else OSError(28, "No space left on device")

    before = path.read_bytes()
    with pytest.raises(UserError, match=r"x\.safetensors: cannot be written: No space left.*is kept"):
        write_safetensors(path, Failing(EXAMPLE))
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["x.safetensors"]
