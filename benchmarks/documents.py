"""Writes the figures of the documents anew from benchmarks/results: `python -m benchmarks.documents`, or `make docs`.

A table stands in README.md, README.zh.md or docs/*.md between `<!-- figures: NAME -->` and `<!-- end -->`, and NAME is
one of tables.py; in a file *.zh.md it is Chinese. Pictures are drawn whole.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import picture
from benchmarks.cells import Rows
from benchmarks.tables import TABLES, in_chinese
from instructgpt.atomic import write_text
from instructgpt.errors import UserError, suggestion
from instructgpt.flags import parse, run_main

ROOT = Path(__file__).parents[1]
RESULTS = "benchmarks/results"
_OPENING = re.compile(r"<!-- figures: *(\S*) *-->")
_CLOSING = "<!-- end -->"


@dataclass(frozen=True)
class DocumentsConfig:
    """Writes tables and pictures of the documents anew from benchmarks/results."""

    check: bool = False
    """Write nothing; say what is stale, with exit code 1."""


class Stale(NamedTuple):
    """Figures that are not what benchmarks/results says."""

    file: str
    line: int
    source: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: not what {self.source} says; run: make docs"


def documents(root: Path) -> list[Path]:
    """The files that may hold tables."""
    return [*sorted(root.glob("README*.md")), *sorted((root / "docs").glob("*.md"))]


def found(root: Path, file: str) -> dict[str, Any]:
    """What a benchmark wrote."""
    return json.loads((root / RESULTS / file).read_text(encoding="utf-8"))


def provenance(values: dict[str, Any], file: str, chinese: bool = False) -> str:
    """On what, of which versions and when a file's figures were measured, as far as it says so; and the file."""
    versions = values.get("versions", values)
    on_cpu = values.get("device") == "cpu"
    facts = [
        _processor(values) if on_cpu else values.get("device"),
        f"{values['cores']} {'核' if chinese else 'core' if values['cores'] == 1 else 'cores'}" if on_cpu else None,
        *(f"{name} {versions[name]}" for name in ("torch",) if versions.get(name)),
        f"{'提交' if chinese else 'commit'} {values['commit']}" if values.get("commit") else None,
        values.get("date"),
    ]
    said = ("，" if chinese else ", ").join(fact for fact in facts if fact)
    if chinese:
        return f"{f'测自：{said}。' if said else ''}数据：`{RESULTS}/{file}`。"
    return textwrap.fill(
        f"{f'Measured on {said}' if said else 'Figures'}: `{RESULTS}/{file}`.", 120, break_on_hyphens=False
    )


def _processor(values: dict[str, Any]) -> str:
    """`Intel Xeon (avx512_bf16)`: what it multiplies matrices with decides the figures."""
    name = re.sub(r"\(R\)| Processor", "", values["processor"])
    return f"{name} ({values['instructions'][0]})" if values.get("instructions") else name


def as_markdown(rows: Rows) -> str:
    header, *others = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([header, "|" + "---|" * len(rows[0]), *others])


def table(root: Path, name: str, chinese: bool) -> str:
    """A table and what it was measured on, as they stand between the marks."""
    one = TABLES[name]
    values = found(root, one.file)
    rows = one.rows(values)
    return f"{as_markdown(in_chinese(rows) if chinese else rows)}\n\n{provenance(values, one.file, chinese)}\n"


def rewritten(root: Path, file: Path) -> tuple[str, list[Stale]]:
    """The file's text with every table anew, and those that were stale.

    UserError for a table that does not exist, and for a mark that is not closed.
    """
    name = str(file.relative_to(root))
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    out: list[str] = []
    stale: list[Stale] = []
    at = 0
    while at < len(lines):
        out.append(lines[at])
        at += 1
        if not (mark := _OPENING.fullmatch(out[-1].strip())):
            continue
        if mark[1] not in TABLES:
            raise UserError(f"there is no table {mark[1]!r}{suggestion(mark[1], TABLES)}", name, at)
        end = next((i for i in range(at, len(lines)) if lines[i].strip() == _CLOSING), None)
        if end is None or any(_OPENING.fullmatch(line.strip()) for line in lines[at:end]):
            raise UserError(f"the table {mark[1]!r} is not closed; write {_CLOSING} below it", name, at)
        new = table(root, mark[1], chinese=name.endswith(".zh.md"))
        if "".join(lines[at:end]) != new:
            stale.append(Stale(name, at, f"{RESULTS}/{TABLES[mark[1]].file}"))
        out += [new, lines[end]]
        at = end + 1
    return "".join(out), stale


def pictures(root: Path) -> dict[Path, str]:
    """Each picture's file and contents."""
    train, rlhf = found(root, "cpu-train.json"), found(root, "cpu-rlhf.json")
    return {
        root / "docs/results.svg": picture.results(train, rlhf),
        root / "docs/results.zh.svg": picture.results(train, rlhf, picture.CHINESE),
    }


def all_rewritten(root: Path) -> Iterator[tuple[Path, str, list[Stale]]]:
    """Every document and picture: where it is, what it should hold, and what of it is stale."""
    for file in documents(root):
        yield file, *rewritten(root, file)
    for file, drawn in pictures(root).items():
        is_stale = not file.exists() or file.read_text(encoding="utf-8") != drawn
        yield file, drawn, [Stale(str(file.relative_to(root)), 1, RESULTS)] if is_stale else []


def run(config: DocumentsConfig, root: Path = ROOT) -> int:
    every = list(all_rewritten(root))  # a mistake in one file, before any is written
    stale = [one for _, _, found in every for one in found]
    for one in stale:
        print(one if config.check else f"{one.file}:{one.line}: written anew from {one.source}")
    if not config.check:
        for file, text, found in every:
            if found:
                write_text(file, text)
    return int(config.check and bool(stale))


if __name__ == "__main__":
    sys.exit(run_main(lambda: run(parse(DocumentsConfig, sys.argv[1:], "python -m benchmarks.documents"))))
