"""A file's bytes, unpacked. What packed them, and what holds no text at all, is told by the first bytes, not by names.

gzip, bzip2, xz, zstandard and a zip archive with one data file are unpacked, also one within another. Archives of many
files, documents, images, pointers to data and the like are refused by what they are. A pipe is read once and kept.
"""

from __future__ import annotations

import atexit
import bz2
import gzip
import importlib
import io
import lzma
import os
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from instructgpt.errors import UserError

_HEAD = 1 << 12  # bytes at the beginning that tell what a file is
_PARQUET = b"PAR1"
_ENDINGS = (".gz", ".bz2", ".xz", ".lzma", ".zst", ".zip")

# What is no text: how it begins, what it is, and what would be right. In this order: the first that fits is told.
_FOREIGN: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(begins, re.DOTALL), what)
    for begins, what in (
        (rb".{257}ustar", "a tar archive; unpack it and name the files in it"),
        (rb"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it and name the files in it"),
        (rb"Rar!\x1a\x07", "a RAR archive; unpack it and name the files in it"),
        (
            rb"version https://git-lfs",
            "a Git LFS pointer, which stands for the data; fetch them with `git lfs pull`",
        ),
        (
            rb"(?i:(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html[\s>]))",
            "an HTML page; was an error or a preview downloaded in the place of the file?",
        ),
        (rb"%PDF-", "a PDF document; convert it to text"),
        (rb"\{\\rtf", "an RTF document; save it as plain text"),
        (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document; save it as .csv or as text"),
        (rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|RIFF.{4}WEBP|II\*\0|MM\0\*|BM.{4}\0{4}|\0\0\x01\0", "an image"),
        (
            rb"ID3[\x02-\x04]\0|\xff[\xfb\xf3\xf2]|OggS\0|fLaC|RIFF.{4}(WAVE|AVI )|\0\0\0.ftyp|\x1aE\xdf\xa3",
            "sound or film",
        ),
        (rb"SQLite format 3\0", "an SQLite database; export its tables as .csv"),
        (rb"ARROW1\0\0|\xff{4}.{4}\x10\0\0\0", "an Arrow file; convert it to Parquet or JSON lines"),
        (rb"Obj\x01", "an Avro file; convert it to JSON lines"),
        (rb"\x89HDF\r\n", "an HDF5 file; export it as .csv or JSON lines"),
        (rb"\x93NUMPY", "a NumPy array; export it as .csv"),
        (
            rb"\x80[\x02-\x05][\x80-\xff}\]c(]",
            "a Python pickle, which could run code; save it as JSON",
        ),
        (rb"GGUF[\x01-\x09]\0", "a model's weights (GGUF)"),
        (rb".{6}\0\0\{\"", "a model's weights (safetensors)"),
        (rb"\x7fELF|MZ\x90\0|\xcf\xfa\xed\xfe", "a program"),
    )
)


def without_packing(name: str) -> str:
    """A file's name without the endings that say what packed it: "a.csv.gz" is "a.csv"."""
    while name.lower().endswith(_ENDINGS):
        name = name[: name.rindex(".")]
    return name


@dataclass(frozen=True)
class Unpacked:
    """A file's content as a stream of bytes."""

    name: str
    """The name without the endings of what was unpacked; in a zip archive, that of the one file within."""
    stream: io.BufferedReader

    @property
    def is_parquet(self) -> bool:
        return self.stream.peek(_HEAD).startswith(_PARQUET)


@contextmanager
def unpacked(path: str | Path) -> Iterator[Unpacked]:
    """Opens a file and all that it is packed in, for the time of a `with`.

    Raises UserError, also while the stream is read inside, for what is missing, damaged, or refused for what it is.
    """
    packing = "file"
    try:
        with ExitStack() as stack:
            stream = stack.enter_context(_open(path))
            name = Path(path).name
            while (packer := _packer(stream.peek(_HEAD))) is not None:
                packing, open_inner = packer
                name, inner = open_inner(stream, without_packing(name), path)
                # The layer below stays open: closing this one does not close it.
                stream = stack.enter_context(io.BufferedReader(cast(Any, stack.enter_context(inner)), _HEAD * 16))
            if (what := _foreign(stream.peek(_HEAD))) is not None:
                raise UserError(f"is {what}", path)
            yield Unpacked(name, stream)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"the {packing} file is damaged or cut off: {error}", path) from None
    except OSError as error:
        if error.errno is None and packing != "file":  # how bzip2 and zstandard say it
            raise UserError(f"the {packing} file is damaged or cut off: {error}", path) from None
        raise UserError(f"cannot be read: {error.strerror or error}", path) from None


def _foreign(head: bytes) -> str | None:
    """What a file is that holds no text; None for what may."""
    return next((what for begins, what in _FOREIGN if begins.match(head)), None)


# ---- layers

_Opener = Callable[[io.BufferedReader, str, "str | Path"], tuple[str, BinaryIO]]


def _packer(head: bytes) -> tuple[str, _Opener] | None:
    """What packed a file that begins so, and what opens it."""
    return next(((kind, opener) for begins, kind, opener in _PACKERS if begins.match(head)), None)


def _simple(opener: Callable[[io.BufferedReader], Any]) -> _Opener:
    return lambda stream, name, path: (name, opener(stream))


def _open_zstandard(stream: io.BufferedReader, name: str, path: str | Path) -> tuple[str, BinaryIO]:
    try:
        return name, importlib.import_module("compression.zstd").ZstdFile(stream)  # in Python from 3.14
    except ImportError:
        pass
    try:
        pyarrow = importlib.import_module("pyarrow")
    except ImportError:
        raise UserError(
            "is packed by zstandard, which needs Python 3.14 or pyarrow (extra `parquet`); or unpack it", path
        ) from None
    return name, pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, mode="r"), "zstd")


def _open_zip(stream: io.BufferedReader, name: str, path: str | Path) -> tuple[str, BinaryIO]:
    """The one data file in an archive."""
    if not stream.seekable():  # an archive within something packed
        stream = cast(io.BufferedReader, io.BytesIO(stream.read()))
    archive = zipfile.ZipFile(stream)
    names = archive.namelist()
    if "[Content_Types].xml" in names or "mimetype" in names:
        raise UserError("is an Office document, such as .xlsx or .docx; save it as .csv or as text", path)
    if any(each.endswith("/data.pkl") for each in names):
        raise UserError("is a PyTorch checkpoint, no text", path)
    files = [each for each in names if _is_data(PurePosixPath(each), each)]
    if not files:
        raise UserError("is a zip archive without a data file", path)
    if len(files) > 1:
        shown = ", ".join(files[:3]) + (", …" if len(files) > 3 else "")
        raise UserError(f"is a zip archive of {len(files)} files ({shown}); unpack it and name those to read", path)
    try:
        return PurePosixPath(files[0]).name, cast(BinaryIO, archive.open(files[0]))
    except RuntimeError:
        raise UserError("is a zip archive with a password; unpack it", path) from None


def _is_data(inside: PurePosixPath, name: str) -> bool:
    """Whether a file in an archive is data, and not what archivers and authors put beside them."""
    beside = re.fullmatch(r"(readme|licen[cs]e|copying|source|citation|notice)(\..*)?", inside.name, re.IGNORECASE)
    hidden = any(part.startswith((".", "__MACOSX")) for part in inside.parts)
    return not (name.endswith("/") or hidden or beside)


_PACKERS: tuple[tuple[re.Pattern[bytes], str, _Opener], ...] = tuple(
    (re.compile(begins, re.DOTALL), kind, opener)
    for begins, kind, opener in (
        (rb"\x1f\x8b", "gzip", _simple(lambda stream: gzip.GzipFile(fileobj=stream, mode="rb"))),
        (rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", "bzip2", _simple(bz2.BZ2File)),
        (rb"\xfd7zXZ\0", "xz", _simple(lzma.LZMAFile)),
        (rb"\x28\xb5\x2f\xfd", "zstandard", _open_zstandard),
        (rb"PK(\x03\x04|\x05\x06)", "zip", _open_zip),
    )
)


# ---- files and pipes


def _open(path: str | Path) -> io.BufferedReader:
    try:
        if stat.S_ISDIR((found := os.stat(path)).st_mode):
            raise UserError("is a directory; name the files in it", path)
        source = path if stat.S_ISREG(found.st_mode) else _kept(str(path), found.st_dev, found.st_ino)
        return open(source, "rb")
    except FileNotFoundError:
        raise UserError("no such file", path) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"cannot be read: {getattr(error, 'strerror', None) or error}", path) from None


_pipes: dict[tuple[str, int, int], str] = {}


def _kept(path: str, device: int, inode: int) -> str:
    """A file with what a pipe gave. A pipe can be read once, and its readers go over it several times."""
    key = (path, device, inode)
    if key not in _pipes:
        with open(path, "rb") as pipe, tempfile.NamedTemporaryFile(prefix="instructgpt-", delete=False) as copy:
            atexit.register(Path(copy.name).unlink, missing_ok=True)
            shutil.copyfileobj(pipe, copy)
        _pipes[key] = copy.name
    return _pipes[key]
