"""Tables to records: comma-separated values and their relatives, tables of tabs, Parquet.

A row becomes (line, {column: value}), or (line, `Unreadable`) where it has another number of fields than the first.
"""

from __future__ import annotations

import csv
import importlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from instructgpt.errors import UserError

_SAMPLE_LINES = 20  # from which a table of tabs is told from prose
_LONGEST_FIELD = 1 << 27  # characters; csv's own limit of 131,072 is shorter than many a document
_SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n?\Z", re.IGNORECASE)  # what Excel writes before the header
_BATCH = 256  # rows of a Parquet file that are held in memory at once
# In a table of tabs these names make the first line a header; a .csv file always begins with one.
_HEADER_NAMES = frozenset(
    "instruction input output prompt response completion question answer query system context text label label_desc "
    "sentence sentence1 sentence2 category id chosen rejected source target src tgt english chinese french german "
    "title content body passage premise hypothesis user assistant".split()
)
_LANGUAGE = re.compile(r"[a-z]{2,3}([-_]\w{2,8})*")  # such as en, zh-Hans, pt_BR
# A field that is rightly quoted, and has to be.
_NEEDS_QUOTES = re.compile(r'(?:^|(?<=\t))"(?:[^"]|"")*(?:""|[\t\n])(?:[^"]|"")*"(?=\t|\r?\n|\Z)', re.MULTILINE)


@dataclass(frozen=True)
class Unreadable:
    """Stands for a record that a table could not give, with the reason."""

    reason: str


Rows = Iterator[tuple[int, list[str]]]
Lines = Iterator[tuple[int, str]]
"""Numbered lines with their ends."""


def csv_records(
    lines: Lines, columns: Sequence[str] | None, path: str | Path, separator: str = ""
) -> Iterator[tuple[int, Any]]:
    """The rows of a .csv file, which begins with its header, or has the columns that `columns` names.

    The separator is the one that a first line such as `sep=;` names, or else that the header has most of. Raises
    UserError, with the line, for quotes that are broken.
    """
    first = next(lines, None)
    if first is not None and (named := _SEPARATOR_LINE.match(first[1])):
        separator, first = named[1], next(lines, None)
    if first is None:
        return iter(())
    # A header of one column has no separator at all.
    separator = separator or max(",\t;|", key=first[1].count)
    return _table(_quoted_rows(itertools.chain([first], lines), separator, path), columns, True, path)


def tab_records(lines: Lines, start: str, columns: Sequence[str] | None, path: str | Path) -> Iterator[tuple[int, Any]]:
    """The rows of a table of tabs. Its first line is a header when it has a known name, or one for each language.

    Such tables know no quotes, a field is what stands between two tabs, unless `start`, the beginning of the file,
    shows that fields were quoted, as pandas does where one holds a tab, a quote or a line end.
    """
    rows = _quoted_rows(lines, "\t", path) if _is_quoted(start) else _plain_rows(lines)
    if (first := next(rows, None)) is None:
        return iter(())
    return _table(itertools.chain([first], rows), columns, _is_header(first[1]), path)


def parquet_records(stream: BufferedReader, path: str | Path) -> Iterator[tuple[int, Any]]:
    """(row from 1, record) for each row of a Parquet file. Raises UserError without pyarrow, or for a damaged file."""
    try:
        parquet, arrow = importlib.import_module("pyarrow.parquet"), importlib.import_module("pyarrow")
    except ImportError:
        raise UserError("is a Parquet file, which needs pyarrow (extra `parquet`)", path) from None
    try:
        source = stream if stream.seekable() else arrow.BufferReader(stream.read())
        batches = parquet.ParquetFile(source).iter_batches(batch_size=_BATCH)
        yield from enumerate(itertools.chain.from_iterable(batch.to_pylist() for batch in batches), start=1)
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"the Parquet file is damaged or cut off: {_first_line(error)}", path) from None


def looks_like_tabs(start: str) -> bool:
    """Whether the first lines have a tab, and most of them as many as the first."""
    lines = [line for line in start.lstrip("\r\n").split("\n", _SAMPLE_LINES)[:_SAMPLE_LINES] if line.strip()]
    tabs = lines[0].count("\t") if lines else 0
    return tabs > 0 and sum(line.count("\t") == tabs for line in lines) * 2 > len(lines)


def _table(rows: Rows, columns: Sequence[str] | None, has_header: bool, path: str | Path) -> Iterator[tuple[int, Any]]:
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


def _is_header(fields: list[str]) -> bool:
    names = [name.strip() for name in fields]
    is_known = not _HEADER_NAMES.isdisjoint(name.lower() for name in names)
    return is_known or (len(names) > 1 and all(map(_LANGUAGE.fullmatch, names)))


def _plain_rows(lines: Lines) -> Rows:
    return ((number, line.rstrip("\r\n").split("\t")) for number, line in lines if line.strip(" \r\n"))


def _quoted_rows(lines: Lines, separator: str, path: str | Path) -> Rows:
    """Rows whose fields may stand in quotes; an empty line is none. The line of a row is that on which it begins."""
    csv.field_size_limit(_LONGEST_FIELD)
    begins = 1

    def texts() -> Iterator[str]:
        nonlocal begins
        for number, line in lines:
            begins = min(begins, number)
            yield line

    reader = csv.reader(texts(), delimiter=separator, strict=True)
    while True:
        begins = 1 << 62  # the first line that the reader asks for next
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"broken CSV: {error}; is a quote left open, or not doubled?", path, begins) from None
        if row:
            yield begins, row


def _is_quoted(start: str) -> bool:
    """Whether the beginning of a table of tabs quotes its fields.

    It does if some field needs its quotes, for it holds a tab, a line end or a doubled quote, or if the whole header is
    quoted; and if reading it so gives equally many fields in each row. A text that merely begins with a quotation needs
    none.
    """
    header = start.split("\n", 1)[0].rstrip("\r").split("\t")
    all_quoted = all(len(field) > 1 and field[0] == field[-1] == '"' for field in header)
    if not (all_quoted or _NEEDS_QUOTES.search(start)):
        return False
    widths: list[int] = []
    try:
        for row in csv.reader((line + "\n" for line in start.split("\n")), delimiter="\t", strict=True):
            widths += [len(row)] if row else []
    except csv.Error:
        if len(widths) < _SAMPLE_LINES:  # more rows than that: only the last one, at which the beginning ends
            return False
    return len(set(widths)) == 1


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
