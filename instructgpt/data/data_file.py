"""One file of --data and how its records are read: flags for all files, and --map for those that are another way."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from instructgpt.data.templates import Template, Templates
from instructgpt.errors import UserError, suggestion
from instructgpt.settings import FilePath, Settings

_PARTS = tuple(one.name for one in fields(Templates))
_KEYS = (*_PARTS, "columns", "encoding")
_ENTRY = re.compile(rf"(?P<file>.+?):(?P<settings>\s*(?:{'|'.join(_KEYS)})\s*=.*)", re.DOTALL)
# A comma ends a setting only where another one follows, so that templates may have commas and equals signs.
_NEXT = re.compile(rf"(?:^|(?<!\\),)\s*({'|'.join(_KEYS)})\s*=")


@dataclass(frozen=True)
class DataFile:
    """A file of records, or line-aligned ones as `a.en+a.fr`."""

    path: str
    encoding: str = "utf-8"
    columns: tuple[str, ...] | None = None
    """Names of a table's columns, where it has no header."""
    templates: Templates = field(default_factory=Templates)
    """What makes prompt and answer of its records; by default they are found by their format."""

    @classmethod
    def of(cls, file: DataFile | str | Path) -> DataFile:
        """A path alone is a file that needs no more said."""
        return file if isinstance(file, DataFile) else cls(str(file))


@dataclass(frozen=True)
class Reading(Settings):
    """How the files of --data are read."""

    prompt: str = ""
    """Makes the prompt of a record's fields, such as "Translate to French: {en}". Nested: {answers.text[0]}; of a list
    {choices} puts each item on a line, {choices:, } commas between them; {input?} may be absent or null, and is empty
    then, where any other field that is missing drops the record. \\n and \\t are a line's end and a tab."""
    answer: str = ""
    """Makes the answer of a record's fields, such as "{fr}"."""
    chosen: str = ""
    """The same as --answer, for records that have a worse one, too."""
    rejected: str = ""
    """Makes the worse of two answers, beside --chosen."""
    system: str = ""
    """Makes the system message, such as "Answer in {language}."; also without --prompt, and in place of a record's."""
    columns: str = ""
    """Names of a table's columns, comma-separated, where the file has no header."""
    encoding: str = "utf-8"
    """How the files are encoded."""
    map: tuple[FilePath, ...] = ()
    """For single files, what the flags above say of all others: b.csv:'prompt=Good news? {text},answer={label}'. Also
    chosen, rejected, system, columns, encoding; a comma right before such a name and its = is written \\,."""
    strict: bool = False
    """Stop at the first unusable record, instead of dropping and counting it."""

    def files(self, names: Sequence[str]) -> list[DataFile]:
        """The files of these names (`world` is none), each with what is said of it.

        Raises UserError for templates that are wrong, and a --map that is malformed or of another file.
        """
        names = [name for name in names if name != "world"]
        own: dict[str, dict[str, str]] = {}
        for text in self.map:
            file, settings = _entry(text, names)
            if file in own:
                raise UserError(f"--map has two entries for {file}; put all that is to be said of it into one")
            own[file] = settings
        common = {key: value for key in _KEYS if (value := getattr(self, key))}
        return [_file(name, common, own.get(name, {})) for name in names]


def _file(name: str, common: dict[str, str], own: dict[str, str]) -> DataFile:
    """A file with what is said of all, but for what is said of it alone; templates of its own replace all others."""
    if own.keys() & set(_PARTS):
        common = {key: value for key, value in common.items() if key not in _PARTS}
    said = {**common, **own}
    prefix = {key: f"--map {name}:{key}=" if key in own else f"--{key} " for key in _PARTS}
    parts = {key: Template(text, prefix[key]) for key in _PARTS if (text := said.get(key))}
    try:
        templates = Templates(**parts)
    except UserError as error:
        raise UserError(f"--map {name}: {error}" if own.keys() & set(_PARTS) else str(error)) from None
    return DataFile(
        name,
        said.get("encoding", "utf-8"),
        tuple(column.strip() for column in said["columns"].split(",")) if said.get("columns") else None,
        templates,
    )


def _entry(text: str, names: Sequence[str]) -> tuple[str, dict[str, str]]:
    """A word of --map as the file that it is about and what it says of it."""
    found = _ENTRY.fullmatch(text)
    if found is None:
        raise UserError(
            f"--map {text!r} is no entry; write FILE:'prompt=...,answer=...' with any of {', '.join(_KEYS)}, and put "
            "it in quotes"
        )
    _, *parts = _NEXT.split(found["settings"])
    settings: dict[str, str] = {}
    for key, value in zip(parts[::2], parts[1::2]):
        if key in settings:
            raise UserError(f"--map {text!r} has {key} twice; write \\,{key}= where the comma is part of the template")
        settings[key] = value.replace("\\,", ",")
    return _named(found["file"], names), settings


def _named(file: str, names: Sequence[str]) -> str:
    """The file of --data that is called so, by its path or by its last part alone."""
    called = [name for name in names if name == file] or [name for name in names if Path(name).name == file]
    if len(set(called)) > 1:
        raise UserError(f"--map {file}: --data has {len(called)} files of that name; write the path as --data does")
    if not called:
        raise UserError(f"--map {file}: --data names no such file{suggestion(file, names) if names else ''}")
    return called[0]
