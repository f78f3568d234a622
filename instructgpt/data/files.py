"""Files to text and to records, streamed. What a file is, its content decides; its name only where both would do.

    read_text     decoded text in chunks        read_lines    numbered lines        read_records    (line, record)

Any file may be packed (see `unpack`) and may begin with a byte order mark.
"""

from __future__ import annotations

import codecs
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from instructgpt.data.json_stream import json_records
from instructgpt.data.tables import Lines, csv_records, looks_like_tabs, parquet_records, tab_records
from instructgpt.data.unpack import unpacked, without_packing
from instructgpt.errors import UserError

_CHUNK = 1 << 20  # bytes
_JSON_START = re.compile(r'\{\s*["}]|\[\s*[\[{"\]]')
_RECORD_ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
# What no text holds, and a few of them betray what is no text at all: control characters that are no white space.
_CONTROL = re.compile(rb"[\x00-\x06\x0e-\x1a\x1c-\x1f\x7f]")
# So many letters do not happen to be UTF-8; the first may: 学 in GB 18030 is ѧ.
_NO_CHANCE = 8


# ---- text


def read_text(path: str | Path, encoding: str = "utf-8") -> Iterator[str]:
    """The file's text, as it is, in chunks of about a megabyte that may end anywhere.

    Raises UserError when the file is missing, is no file, is damaged, holds no text (naming what it is), or is not in
    `encoding` (naming byte and line).
    """
    with unpacked(path) as file:
        if file.is_parquet:
            raise UserError("is a Parquet file, a table; here text is read", path)
        yield from _decoded(iter(lambda: file.stream.read(_CHUNK), b""), encoding, path)


def _decoded(chunks: Iterator[bytes], encoding: str, path: str | Path) -> Iterator[str]:
    decoder = _decoder(encoding, path)
    used, line = 0, 1  # bytes given to the decoder so far, and the line they reach
    letters = 0  # not in ASCII, decoded so far
    for chunk in itertools.chain(chunks, [b""]):
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
            place = f"byte {used - len(pending) + error.start} (0x{data[error.start]:02x})"
            advice = _advice(data, error.start, letters + _letters(before), encoding)
            raise UserError(f"{place} is not {encoding}: {advice}", path, line + before.count("\n")) from None
        except UnicodeError as error:  # the few codecs that do not say where
            raise UserError(f"is not {encoding}: {error}", path, line) from None
        if (nul := text.find("\0")) >= 0:
            wide = _wide_encoding(pending + chunk)
            advice = f"it looks like {wide}; give --encoding {wide}" if wide else "it is not text"
            raise UserError(f"holds a NUL byte: {advice}", path, line + text.count("\n", 0, nul))
        used += len(chunk)
        line += text.count("\n")
        letters = letters if letters >= _NO_CHANCE else letters + _letters(text)
        if text:
            yield text


def _letters(text: str) -> int:
    """How many characters are not in ASCII."""
    return len(text) - len(text.encode("ascii", "ignore"))


def _advice(data: bytes, place: int, letters: int, encoding: str) -> str:
    """What to do about bytes that are not in `encoding` from `place` on, before which so many `letters` are."""
    if wide := _wide_encoding(data):
        return f"it looks like {wide}; give --encoding {wide}"
    around = data[max(place - 4096, 0) : place + 4096]
    if len(_CONTROL.findall(around)) * 100 > len(around):
        return "it is not text"
    wrong = data[place : place + 4096].decode("utf-8", "replace").count("\ufffd")
    if letters >= min(wrong, _NO_CHANCE) and _is_utf8(encoding):
        return "the text before it is, so the file is damaged or cut off there"
    return "if the file is text in another encoding, such as latin-1 or gb18030, give its --encoding"


def _wide_encoding(data: bytes) -> str | None:
    """UTF-16 or UTF-32, by its mark or by where the zeros are; None for anything else."""
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    sample = data[: min(len(data), 4096) // 2 * 2]
    for name, zeros in (("utf-16-le", sample[1::2].count(0)), ("utf-16-be", sample[::2].count(0))):
        # At least a third of the characters are ASCII, such as spaces and line ends; and read so it is text.
        if zeros >= 4 and zeros * 6 >= len(sample) and not _CONTROL.search(sample.decode(name, "ignore").encode()):
            return name
    return None


def read_lines(path: str | Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end) for each line; see `_lines`. Errors as in `read_text`."""
    for number, line in _lines(read_text(path, encoding)):
        yield number, line.removesuffix("\n").removesuffix("\r")


def _lines(chunks: Iterator[str]) -> Lines:
    """Numbered lines with their ends: LF, CRLF, or CR where the text begins without any LF.

    Nothing else ends a line: str.splitlines would also cut at U+2028, form feeds, …
    """
    first = next(chunks, "")
    end_of_line = _line_end(first)
    number, parts = 1, []
    for chunk in itertools.chain([first], chunks):
        start = 0
        while (end := chunk.find(end_of_line, start)) >= 0:
            parts.append(chunk[start : end + 1])
            yield number, "".join(parts)
            number, parts, start = number + 1, [], end + 1
        parts.append(chunk[start:])
    if last := "".join(parts):
        yield number, last


def _line_end(start: str) -> str:
    # A chunk may end between the two characters of a CRLF.
    return "\r" if "\n" not in start and "\r" in start[:-1] else "\n"


def _decoder(encoding: str, path: str | Path) -> codecs.IncrementalDecoder:
    try:
        b"a".decode(encoding, "ignore")  # refuses what is unknown, and codecs that are not of text
        return codecs.getincrementaldecoder(encoding)("strict")
    except (LookupError, ValueError):
        raise UserError(f"unknown encoding {encoding!r}; such as utf-8, utf-16, latin-1, gb18030", path) from None


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name == "utf-8"


# ---- records


def holds_records(path: str | Path) -> bool:
    """Whether a file is one of records rather than of raw text: by its name, unpacked, or because it is Parquet."""
    with unpacked(path) as file:
        return file.is_parquet or file.name.lower().endswith(_RECORD_ENDINGS)


def read_records(
    path: str | Path, columns: Sequence[str] | None = None, encoding: str = "utf-8"
) -> Iterator[tuple[int, Any]]:
    """(line, record) for each record of a file, in order; the line is the one that the record begins on.

    JSON, whatever the file's name: the elements of an array, or the values of JSON lines, or one object. Any JSON value
    may come, not only objects.
    Tables: see `tables`; `columns` names the columns of a table that has no header; where the first line gives just
    these names, it is one. Of Parquet files the line is the row's number.
    Other text: {"text": line} for each line that is not blank, or another name from `columns`.
    `a.en.gz+a.fr.gz`, where no file is called so: line-aligned files, as columns named by `columns`, or by what
    differs in their names ("en", "fr").

    Raises UserError, with the line where there is one, for a file that is missing, empty or damaged.
    """
    if (parallel := _parallel_files(path)) is not None:
        yield from _parallel(parallel, columns, encoding)
        return
    records = _file_records(path, columns, encoding)
    first = next(records, None)
    if first is None:
        raise UserError("has no records", path)
    yield first
    yield from records


def _file_records(path: str | Path, columns: Sequence[str] | None, encoding: str) -> Iterator[tuple[int, Any]]:
    with unpacked(path) as file:
        if file.is_parquet:
            yield from parquet_records(file.stream, path)
            return
        chunks = _decoded(iter(lambda: file.stream.read(_CHUNK), b""), encoding, path)
        start = ""
        for chunk in chunks:
            start += chunk
            if start.strip():
                break
        else:
            raise UserError("is empty", path)
        yield from _text_records(itertools.chain([start], chunks), start, file.name.lower(), path, columns)


def _text_records(
    chunks: Iterator[str], start: str, name: str, path: str | Path, columns: Sequence[str] | None
) -> Iterator[tuple[int, Any]]:
    if name.endswith((".json", ".jsonl", ".ndjson")) or _JSON_START.match(start.lstrip()):
        return json_records(chunks, path)
    if name.endswith(".csv"):
        return csv_records(_lines(chunks), columns, path)
    start = start.replace(_line_end(start), "\n")
    if name.endswith(".tsv") or looks_like_tabs(start):
        return tab_records(_lines(chunks), start, columns, path)
    field = columns[0] if columns else "text"
    return ((number, {field: line.rstrip("\r\n")}) for number, line in _lines(chunks) if line.strip())


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
    names = list(columns) if columns is not None else _distinct_parts(files)
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


def _distinct_parts(files: list[Path]) -> list[str]:
    """What tells the files' names apart: "train.en.txt.gz" and "train.cs.txt.gz" are "en" and "cs"; else numbers."""
    names = [without_packing(file.name).split(".") for file in files]
    for parts in zip(*map(reversed, names)):
        if len(set(parts)) == len(files) and all(parts):
            return list(parts)
    return [str(i) for i in range(1, len(files) + 1)]
