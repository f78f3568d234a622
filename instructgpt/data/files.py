"""Files to text and to records, streamed. What a file is, its content decides; its name only where both would do.

    read_text     decoded text in chunks        read_lines    numbered lines        read_records    (line, record)

Any file may be gzipped (told by its first bytes) and may begin with a byte order mark.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import itertools
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, cast

from instructgpt.data.json_stream import json_records
from instructgpt.errors import UserError

_CHUNK = 1 << 20  # bytes
_SAMPLE_LINES = 20  # from which a table of tabs is told from prose
_JSON_START = re.compile(r'\{\s*["}]|\[\s*[\[{"\]]')
# In a table of tabs these names make the first line a header; a .csv file always begins with one.
_HEADER_NAMES = frozenset(
    [
        *(
            "instruction",
            "input",
            "output",
            "prompt",
            "response",
            "completion",
            "question",
            "answer",
            "query",
            "system",
        ),
        *("text", "label", "label_desc", "sentence", "sentence1", "sentence2", "category", "id", "chosen", "rejected"),
        *("source", "target", "src", "tgt", "en", "zh", "fr", "de", "english", "chinese", "french", "german"),
    ]
)


@dataclass(frozen=True)
class Unreadable:
    """Stands for a record that a table could not give, with the reason."""

    reason: str


# ---- text


def read_text(path: str | Path, encoding: str = "utf-8") -> Iterator[str]:
    """The file's text, as it is, in chunks of about a megabyte that may end anywhere.

    Raises UserError when the file is missing, is no file, is damaged, or is not in `encoding` (naming byte and line).
    """
    decoder = _decoder(encoding, path)
    used, line = 0, 1  # bytes given to the decoder so far, and the line they reach
    for chunk in itertools.chain(_read_bytes(path), [b""]):
        if used == 0 and chunk.startswith(codecs.BOM_UTF8) and _is_utf8(encoding):
            used = len(codecs.BOM_UTF8)
            chunk = chunk[used:]
            if not chunk:
                continue
        pending = decoder.getstate()[0]
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            data = pending + chunk
            before = data[: error.start].decode(encoding, "ignore")
            advice = (
                "it begins like UTF-16; give --encoding utf-16" if _begins_like_utf16(path) else "give its --encoding"
            )
            raise UserError(
                f"byte {used - len(pending) + error.start} (0x{data[error.start]:02x}) is not {encoding}: {advice}",
                path,
                line + before.count("\n"),
            ) from None
        except UnicodeError as error:  # the few codecs that do not say where
            raise UserError(f"is not {encoding}: {error}", path, line) from None
        used += len(chunk)
        line += text.count("\n")
        if text:
            yield text


def read_lines(path: str | Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end) for each line; lines end with LF or CRLF. Errors as in `read_text`."""
    for number, line in _lines(read_text(path, encoding)):
        yield number, line.removesuffix("\n").removesuffix("\r")


def _lines(chunks: Iterator[str]) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends. Only LF ends a line: str.splitlines would also cut at U+2028, form feeds, …"""
    number, parts = 1, []
    for chunk in chunks:
        start = 0
        while (end := chunk.find("\n", start)) >= 0:
            parts.append(chunk[start : end + 1])
            yield number, "".join(parts)
            number, parts, start = number + 1, [], end + 1
        parts.append(chunk[start:])
    if last := "".join(parts):
        yield number, last


def _read_bytes(path: str | Path) -> Iterator[bytes]:
    with _open(path) as file:
        zipped = file.peek(2)[:2] == b"\x1f\x8b"  # peek, for what cannot seek: a pipe
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if zipped else file
        try:
            while chunk := stream.read(_CHUNK):
                yield chunk
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"the gzip file is damaged or cut off: {error}", path) from None
        except OSError as error:
            raise UserError(f"cannot be read: {error.strerror or error}", path) from None


def _open(path: str | Path) -> BufferedReader:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise UserError("no such file", path) from None
    except IsADirectoryError:
        raise UserError("is a directory; name the files in it", path) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"cannot be read: {getattr(error, 'strerror', None) or error}", path) from None


def _decoder(encoding: str, path: str | Path) -> codecs.IncrementalDecoder:
    try:
        b"a".decode(encoding, "ignore")  # refuses what is unknown, and codecs that are not of text
        return codecs.getincrementaldecoder(encoding)("strict")
    except (LookupError, ValueError):
        raise UserError(f"unknown encoding {encoding!r}; such as utf-8, utf-16, latin-1, gb18030", path) from None


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name == "utf-8"


def _begins_like_utf16(path: str | Path) -> bool:
    return next(_read_bytes(path), b"").startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


# ---- records


def read_records(
    path: str | Path, columns: Sequence[str] | None = None, encoding: str = "utf-8"
) -> Iterator[tuple[int, Any]]:
    """(line, record) for each record of a file, in order; the line is the one that the record begins on.

    JSON, whatever the file's name: the elements of an array, or the values of JSON lines, or one object. Any JSON value
    may come, not only objects.
    Tables: a dict of column to text for each row, or `Unreadable` for a row with another number of fields than the
    first. A .csv file begins with its header. In tables of tabs the first line is a header when it has a known name;
    else the columns are "1", "2", … `columns` names the columns of a table that has no header; where the first line
    gives just these names, it is one.
    Other text: {"text": line} for each line that is not blank, or another name from `columns`.
    `a.en.gz+a.fr.gz`, where no file is called so: line-aligned files, as columns named by `columns`, or by the last
    parts of their names ("en", "fr").

    Raises UserError, with the line where there is one, for a file that is missing, empty or damaged.
    """
    if (parallel := _parallel_files(path)) is not None:
        yield from _parallel(parallel, columns, encoding)
        return
    chunks = read_text(path, encoding)
    start = ""
    for chunk in chunks:
        start += chunk
        if start.strip():
            break
    else:
        raise UserError("is empty", path)
    records = _records(itertools.chain([start], chunks), start, path, columns)
    first = next(records, None)
    if first is None:
        raise UserError("has no records", path)
    yield first
    yield from records


def _records(
    chunks: Iterator[str], start: str, path: str | Path, columns: Sequence[str] | None
) -> Iterator[tuple[int, Any]]:
    suffix = _suffix(path)
    if suffix in (".json", ".jsonl") or _JSON_START.match(start.lstrip()):
        return json_records(chunks, path)
    first_line = start.lstrip("\r\n").split("\n", 1)[0]
    if suffix == ".csv":
        # The separator that the header has most of; a header of one column has none.
        separator = max(",\t;", key=first_line.count)
        return _table(_csv_rows(chunks, separator, path), columns, True, path)
    if suffix == ".tsv" or _looks_like_a_table(start):
        names = {name.strip().lower() for name in first_line.split("\t")}
        return _table(_tab_rows(chunks), columns, bool(names & _HEADER_NAMES), path)
    name = columns[0] if columns else "text"
    return ((number, {name: line.rstrip("\r\n")}) for number, line in _lines(chunks) if line.strip())


def _suffix(path: str | Path) -> str:
    suffixes = [suffix.lower() for suffix in Path(path).suffixes if suffix.lower() != ".gz"]
    return suffixes[-1] if suffixes else ""


def _looks_like_a_table(start: str) -> bool:
    """Whether the first lines have a tab, and most of them as many as the first."""
    lines = [line for line in start.lstrip("\r\n").split("\n", _SAMPLE_LINES)[:_SAMPLE_LINES] if line.strip()]
    tabs = lines[0].count("\t") if lines else 0
    return tabs > 0 and sum(line.count("\t") == tabs for line in lines) * 2 > len(lines)


def _table(
    rows: Iterator[tuple[int, list[str]]], columns: Sequence[str] | None, has_header: bool, path: str | Path
) -> Iterator[tuple[int, Any]]:
    if (start := next(rows, None)) is None:
        return
    line, first = start
    width = len(first)
    if columns is not None:
        if len(columns) > width:
            raise UserError(f"has {width} column(s), but {len(columns)} are named: {', '.join(columns)}", path, line)
        names, has_header = list(columns), [name.strip() for name in first[: len(columns)]] == list(columns)
    elif has_header:
        names = [name.strip() or str(i) for i, name in enumerate(first, start=1)]
    else:
        names = [str(i) for i in range(1, width + 1)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"has two columns named {twice[0]!r}", path, line)
    body = rows if has_header else itertools.chain([(line, first)], rows)
    for line, row in body:
        if len(row) == width:
            yield line, dict(zip(names, row))
        else:
            yield line, Unreadable(f"a row of {len(row)} field(s) in a table of {width}")


def _tab_rows(chunks: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """Tables of tabs know no quotes: a field is what stands between two tabs."""
    return ((number, line.rstrip("\r\n").split("\t")) for number, line in _lines(chunks) if line.strip())


def _csv_rows(chunks: Iterator[str], separator: str, path: str | Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader((line for _, line in _lines(chunks)), delimiter=separator, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"broken CSV: {error}; is a quote left open, or not doubled?", path, line) from None
        if row:
            yield line, row


# ---- line-aligned files


def _parallel_files(path: str | Path) -> list[Path] | None:
    if "+" not in str(path) or Path(path).exists():
        return None
    files = [Path(part) for part in str(path).split("+")]
    return files if any(file.exists() for file in files) else None


def _parallel(files: list[Path], columns: Sequence[str] | None, encoding: str) -> Iterator[tuple[int, dict[str, str]]]:
    if columns is not None and len(columns) != len(files):
        raise UserError(
            f"{len(files)} files, but {len(columns)} columns: {', '.join(columns)}", "+".join(map(str, files))
        )
    names = list(columns) if columns is not None else [_suffix(file)[1:] for file in files]
    if columns is None and ("" in names or len(set(names)) < len(names)):
        names = [str(i) for i in range(1, len(files) + 1)]
    streams = [read_lines(file, encoding) for file in files]
    count = 0
    for rows in itertools.zip_longest(*streams):
        if None in rows:
            short, long = (files[[row is None for row in rows].index(ended)] for ended in (True, False))
            raise UserError(
                f"ends after {count} lines, but {long} goes on; line-aligned files have equally many", short
            )
        count += 1
        yield count, {name: text for name, (_, text) in zip(names, rows)}
    if not count:
        raise UserError("is empty", files[0])
