"""What a file is packed in, and what holds no text, told by its first bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import sqlite3
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from instructgpt.data.files import read_records, read_text
from instructgpt.data.unpack import unpacked, without_packing
from instructgpt.errors import UserError

TEXT = "say 猫\nand on\n" * 50


def zipped(files: Mapping[str, str | bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target.getvalue()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zip": lambda data: zipped({"a.txt": data}),
}


def content(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return "".join(read_text(path))


# ---- packed


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("named", [True, False])
def test_what_is_packed_is_unpacked_whatever_its_name(tmp_path: Path, packer: str, named: bool) -> None:
    pack = PACKERS[packer]
    assert content(tmp_path / (f"a.txt.{packer}" if named else "a.txt"), pack(TEXT.encode())) == TEXT
    assert content(tmp_path / "b", pack(b"")) == ""
    assert content(tmp_path / "c", pack(gzip.compress(TEXT.encode()))) == TEXT, "one within another"
    assert content(tmp_path / "d", gzip.compress(pack(TEXT.encode()))) == TEXT


@pytest.mark.parametrize("packer", ["gz", "bz2", "xz"])
def test_members_one_after_another_are_one_text(tmp_path: Path, packer: str) -> None:
    pack = PACKERS[packer]
    assert content(tmp_path / "a", pack(b"first\n") + pack(b"second\n")) == "first\nsecond\n"


@pytest.mark.parametrize(("packer", "name"), [("gz", "gzip"), ("bz2", "bzip2"), ("xz", "xz"), ("zip", "zip")])
def test_a_packed_file_that_is_damaged(tmp_path: Path, packer: str, name: str) -> None:
    whole = PACKERS[packer](np.random.default_rng(0).bytes(5000).hex().encode())
    middle = len(whole) // 2
    for data in (whole[:middle], whole[:-9], whole[:middle] + b"\xff" * 50 + whole[middle + 50 :]):
        with pytest.raises(UserError, match=rf"a: the {name} file is damaged or cut off"):
            content(tmp_path / "a", data)


def test_zstandard(tmp_path: Path) -> None:
    frame = bytes.fromhex("28b52ffd0458510000736179206869210a00000000")  # its checksum is made wrong on purpose
    try:
        packed = compressed_by_zstandard(b"hello\n" * 100)
    except ImportError:
        with pytest.raises(UserError, match=r"packed by zstandard, which needs .*extra `parquet`"):
            content(tmp_path / "a.zst", frame)
        pytest.skip("neither Python 3.14 nor pyarrow is here")
    assert content(tmp_path / "a.zst", packed + packed) == "hello\n" * 200
    with pytest.raises(UserError, match="the zstandard file is damaged or cut off"):
        content(tmp_path / "a.zst", packed[:-3])


def compressed_by_zstandard(data: bytes) -> bytes:
    if sys.version_info >= (3, 14):
        import compression.zstd

        return compression.zstd.compress(data)
    import pyarrow

    return pyarrow.compress(data, codec="zstd", asbytes=True)


def test_names_without_what_packed_them() -> None:
    names = {"a.csv.gz": "a.csv", "a.CSV.GZ": "a.CSV", "b.json.zst.xz": "b.json", "c.gz": "c", "d.txt": "d.txt"}
    assert {name: without_packing(name) for name in names} == names


def test_the_one_file_in_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    path.write_bytes(
        zipped(
            {
                "data/train.csv": "text,label\na,b\n",
                "README.md": "read me",
                "__MACOSX/._train.csv": "x",
                ".DS_Store": "x",
            }
        )
    )
    assert list(read_records(path)) == [(2, {"text": "a", "label": "b"})], "the name within says that it is a table"
    path.write_bytes(zipped({"train.csv": gzip.compress(b"text\na\n")}))
    assert list(read_records(path)) == [(2, {"text": "a"})]
    for files, complaint in [
        ({"a.csv": "a", "b.csv": "b"}, r"set\.zip: is a zip archive of 2 files \(a\.csv, b\.csv\); unpack it"),
        ({f"{i}.csv": "a" for i in range(9)}, r"9 files \(0\.csv, 1\.csv, 2\.csv, …\)"),
        ({"LICENSE": "a"}, "is a zip archive without a data file"),
        ({}, "is a zip archive without a data file"),
    ]:
        path.write_bytes(zipped(files))
        with pytest.raises(UserError, match=complaint):
            list(read_records(path))


# ---- what holds no text


def tar() -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        info = tarfile.TarInfo("data/a.txt")
        info.size = 5
        archive.addfile(info, io.BytesIO(b"hello"))
    return target.getvalue()


def sqlite(path: Path) -> bytes:
    connection = sqlite3.connect(path)
    connection.execute("create table t (a text)")
    connection.close()
    return path.read_bytes()


def array() -> bytes:
    target = io.BytesIO()
    np.save(target, np.arange(5))
    return target.getvalue()


FOREIGN: dict[str, tuple[bytes, str]] = {
    "tar": (tar(), "a tar archive; unpack it"),
    "tar.gz": (gzip.compress(tar()), "a tar archive; unpack it"),
    "tar.xz": (lzma.compress(tar()), "a tar archive; unpack it"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4" + b"\1" * 30, "a 7z archive"),
    "xlsx": (zipped({"xl/workbook.xml": "<x/>", "[Content_Types].xml": ""}), "Office"),
    "odt": (zipped({"mimetype": "application/vnd.oasis.opendocument.text", "content.xml": "<x/>"}), "Office"),
    "xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 500, "an old Office document"),
    "pt": (zipped({"archive/data.pkl": b"x", "archive/version": "3"}), "PyTorch checkpoint"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        r"a Git LFS pointer, .*git lfs pull",
    ),
    "html": (b"\n<!DOCTYPE html>\n<html lang='en'><body>404</body></html>", "an HTML page"),
    "html without doctype": (b"\xef\xbb\xbf<!-- x -->\n<HTML><p>Sign in</p>", "an HTML page"),
    "png": (b"\x89PNG\r\n\x1a\n" + b"\0" * 30, "an image"),
    "jpeg": (b"\xff\xd8\xff\xe0\0\x10JFIF" + b"\0" * 30, "an image"),
    "gif": (b"GIF89a\1\0\1\0", "an image"),
    "webp": (b"RIFF\x24\0\0\0WEBPVP8 ", "an image"),
    "wav": (b"RIFF\x24\0\0\0WAVEfmt ", "sound or film"),
    "mp4": (b"\0\0\0\x18ftypmp42\0\0\0\0", "sound or film"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF document"),
    "pickle": (pickle.dumps({"a": [1, 2]}), "a Python pickle"),
    "npy": (array(), "a NumPy array"),
    "gguf": (b"GGUF\3\0\0\0" + b"\0" * 20, r"weights \(GGUF\)"),
    "safetensors": (b'\x40\0\0\0\0\0\0\0{"a":{"dtype":"F32"}}', r"weights \(safetensors\)"),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_what_holds_no_text_is_refused_by_what_it_is(tmp_path: Path, name: str, encoding: str) -> None:
    data, what = FOREIGN[name]
    for file in (tmp_path / "a.txt", tmp_path / "a.json"):
        file.write_bytes(data)
        for read in (read_text, lambda path, encoding: read_records(path, None, encoding)):
            with pytest.raises(UserError, match=rf"{file.name}: is .*{what}"):
                list(read(file, encoding))


def test_a_database_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="SQLite database"):
        content(tmp_path / "a.txt", sqlite(tmp_path / "a.db"))


@pytest.mark.parametrize(
    "text",
    ["BM is a maker", "PK said", "ID3 tags", "MZ", "GGUF is", "BZhang wrote", "id,html\n1,<html>\n", "II*", "<p>a</p>"],
)
def test_text_that_begins_nearly_so_is_text(tmp_path: Path, text: str) -> None:
    assert content(tmp_path / "a.txt", text.encode()) == text


def test_the_records_of_what_is_packed_have_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.xz"
    path.write_bytes(lzma.compress(b'{"a": 1}\n\n{"a": 2}\n'))
    assert list(read_records(path)) == [(1, {"a": 1}), (3, {"a": 2})]


# ---- pipes


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("packer", [None, *PACKERS])
def test_a_pipe_is_read_once_and_kept(tmp_path: Path, packer: str | None) -> None:
    data = PACKERS[packer](TEXT.encode()) if packer else TEXT.encode()
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(data,))
    writer.start()
    for _ in range(3):
        assert "".join(read_text(tmp_path / "pipe")) == TEXT
    writer.join()


def test_a_shells_pipe_can_be_gone_over_again() -> None:
    program = (
        "import sys; from pathlib import Path; from instructgpt.data.corpus import read_split\n"
        "path = Path(sys.argv[1])\n"
        "print(len(''.join(read_split(path, 'train'))), len(''.join(read_split(path, 'val'))))"
    )
    command = f"{sys.executable} -c \"{program}\" <(for i in $(seq 100); do echo 'a line of text'; done)"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("1365 135\n", "")


def test_an_open_file_is_closed_when_the_reader_stops_early(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(TEXT.encode()))
    with unpacked(path) as file:
        stream = file.stream
        stream.read(3)
    assert stream.closed
