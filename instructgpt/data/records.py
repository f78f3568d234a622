"""The records of files, one after the other, converted and accounted for: what all readers of --data share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from instructgpt.data.account import Account, OtherFormat, Unusable, kind_of
from instructgpt.data.data_file import DataFile
from instructgpt.data.fields import Fields
from instructgpt.data.files import read_records
from instructgpt.data.shapes import records_in
from instructgpt.data.tables import Unreadable
from instructgpt.data.templates import Templates
from instructgpt.data.turns import is_bare_message
from instructgpt.errors import UserError

T = TypeVar("T")

# A file whose first so many records have no field that anyone knows is another format: do not read 10 GB to say so.
# Records that are of a known format and cannot be used may be many: a sorted file has them first.
_PATIENCE = 50_000


def convert_files(
    files: Iterable[DataFile | str | Path],
    account: Account,
    strict: bool,
    convert: Callable[[Fields, Templates], Iterable[T | Unusable]],
    unique: bool = False,
) -> Iterator[T]:
    """What `convert` makes of each record of the files, in order, with every record accounted for.

    unique: what is exactly equal to something before, by `account.seen`, is left out; else it is kept and noted.
    Raises UserError with FILE:LINE where a file has nothing usable, if `strict`, at the first unusable record, and for
    a template with a field that no record has.
    """
    for file in map(DataFile.of, files):
        path, names = file.path, set[str]()
        seen, usable, strange, first = 0, 0, 0, None
        for line, record in _records(file):
            account.read += 1
            seen += 1
            fields, results = _results(record, file.templates, convert)
            names.update(fields.names)
            if not all(isinstance(result, Unusable) for result in results):
                account.not_used.update(fields.unused())
            for result in results:
                if isinstance(result, Unusable):
                    complaint = f"{result.reason}{result.detail and f'; {result.detail}'}"
                    if strict:
                        raise UserError(complaint, path, line)
                    first = first or (complaint, line)
                    strange += isinstance(result, OtherFormat)
                    account.drop(result.reason, path, line)
                    continue
                usable += 1
                key = hash(repr(result))
                if key in account.seen and unique:
                    account.drop("exact duplicate", path, line)
                    continue
                if key in account.seen:
                    account.note("exact duplicate, kept")
                account.seen.add(key)
                account.kept += 1
                yield result
            if strange == seen == _PATIENCE:
                break
        if not usable:
            complaint, line = first or ("holds nothing", 1)
            raise UserError(f"{complaint}; none of the first {seen:,} record(s) is usable", path, line)
        file.templates.require_known(names, path)


def _records(file: DataFile) -> Iterator[tuple[int, Any]]:
    """A file's records with their lines. Those in lists and wrappers too, unless a template names what wraps them.

    Messages that are no part of a record are one conversation, up to the next record.
    """
    messages: list[Any] = []
    first_line = 0
    for line, entry in read_records(file.path, file.columns, file.encoding):
        if isinstance(entry, dict) and file.templates.find_any(Fields(entry)):
            yield line, entry
        elif is_bare_message(entry):
            first_line = first_line if messages else line
            messages.append(entry)
        else:
            if messages:
                yield first_line, {"messages": messages}
                messages = []
            for record in records_in(entry):
                yield line, record
    if messages:
        yield first_line, {"messages": messages}


def _results(
    record: Any, templates: Templates, convert: Callable[[Fields, Templates], Iterable[T | Unusable]]
) -> tuple[Fields, list[T | Unusable]]:
    """A record's fields, and what `convert` makes of them."""
    fields = Fields(record if isinstance(record, dict) else {})
    try:
        if isinstance(record, Unreadable):
            raise Unusable(record.reason)
        if not isinstance(record, dict):
            raise OtherFormat(f"{kind_of(record)} where a record should be")
        return fields, list(convert(fields, templates))
    except Unusable as unusable:
        return fields, [unusable]
