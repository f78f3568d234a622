"""Reads README and docs/: their blocks of code, the commands in them, and marks that say what a test makes of them.

Marks are comments, which a reader of the page does not see:

    <!-- not run: WHY -->                 before a block: none of it is run
    <!-- not run (BEGINNING): WHY -->     anywhere: commands that begin so are not
    <!-- in FILE instead of: TEXT -->     before a block: it is what a reader writes there, for all of TEXT

What a reader sees, too: `# exit code N` behind a command that ends with N on purpose, and a block of Python that begins
with `# FILE.py`, which is that file.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!--(.*?)-->", re.DOTALL)
_NOT_RUN = re.compile(r"\s*not run(?: \(([^)]*)\))?:(.*)", re.DOTALL)
_INSTEAD = re.compile(r"\s*in (\S+) instead of:(.*)", re.DOTALL)
_COMMAND = re.compile(r"(python|make|instructgpt|pytest|pip|\.venv/bin/\w+) ")


class Mark(NamedTuple):
    """Says that commands are not run."""

    beginning: str
    """Of the commands that it is about; empty for all of a block."""
    why: str


class Edit(NamedTuple):
    """Says that a block is what a reader writes into a file."""

    file: str
    old: str


class Step(NamedTuple):
    """Something that a page asks its reader to do."""

    page: str
    line: int
    kind: str
    """`command`, `python`, `file` (a block that names its file) or `edit` (one that is to stand in a file)."""
    text: str
    exit_code: int = 0
    not_run: str = ""
    """Why, if a mark says so."""
    edit: Edit | None = None
    is_spoken: bool = False
    """Whether it stands in prose."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text.strip().splitlines()[0]}"


def fences(text: str) -> Iterator[tuple[str, str]]:
    """Language and contents of every block of code."""
    return ((found[1], found[2]) for found in _FENCE.finditer(text))


def prose(text: str) -> str:
    """The text without its blocks of code."""
    return _FENCE.sub("", text)


def spans(text: str) -> Iterator[str]:
    """What stands in backticks in the prose, on one line."""
    return (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(text)))


def lines_of(language: str, block: str) -> list[str]:
    """The command lines of a block, with their comments; in shown output they begin with a dollar."""
    lines = block.replace("\\\n", " ").splitlines()
    if language == "text":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    elif language != "sh":
        return []
    return [line for line in lines if shlex.split(line, comments=True)]


def commands(text: str) -> list[str]:
    """The command lines of blocks, comments left out."""
    return [plain(line) for language, block in fences(text) for line in lines_of(language, block)]


def plain(line: str) -> str:
    """A command line without comment and odd spacing."""
    return shlex.join(shlex.split(line, comments=True))


def spoken(text: str) -> list[str]:
    """The command lines that prose names in backticks."""
    return [span for span in spans(text) if _COMMAND.match(span)]


def same(command: str) -> str:
    """What two spellings of a command share: `.venv/bin/python` is `python`."""
    first, *rest = command.split(" ", 1)
    return " ".join([os.path.basename(first), *rest])


def written(command: str) -> list[str]:
    """The runs that a command says it writes."""
    words = shlex.split(command, comments=True)
    by_flag = [value for flag, value in itertools.pairwise(words) if flag == "--out"]
    return by_flag + [word.removeprefix("OUT=") for word in words if word.startswith("OUT=")]


def marks(text: str) -> list[Mark]:
    """What the comments of a text say is not run."""
    found = (_NOT_RUN.fullmatch(comment) for comment in _COMMENT.findall(text))
    return [Mark(mark[1] or "", " ".join(mark[2].split())) for mark in found if mark]


def _before(text: str, position: int) -> str:
    """The comments right above a position."""
    found = re.search(r"(?:<!--(?:(?!-->).)*-->\s*)+\Z", text[:position], re.DOTALL)
    return found[0] if found else ""


def steps(page: Path, root: Path) -> list[Step]:
    """What a page asks its reader to do: its blocks in order, then what its prose names."""
    text = page.read_text(encoding="utf-8")
    name = str(page.relative_to(root))
    found: list[Step] = []
    by_name = [mark for mark in marks(text) if mark.beginning]
    for block in _FENCE.finditer(text):
        line = text.count("\n", 0, block.start()) + 2
        above = _before(text, block.start())
        given = [*by_name, *(mark for mark in marks(above) if not mark.beginning)]
        edits = [Edit(each[1], each[2]) for each in map(_INSTEAD.fullmatch, _COMMENT.findall(above)) if each]
        if edits:
            found.append(Step(name, line, "edit", block[2], edit=edits[0]))
        elif block[1] == "python" and re.match(r"# \S+\.py\n", block[2]):
            found.insert(0, Step(name, line, "file", block[2]))  # commands further up may name it
        elif block[1] == "python":
            found.append(Step(name, line, "python", block[2], not_run=_reason(block[2], given)))
        found += [
            Step(name, line, "command", each.strip(), _exit_code(each), _reason(plain(each), given))
            for each in lines_of(block[1], block[2])
        ]
    without = _FENCE.sub(lambda block: "\n" * block[0].count("\n"), text)
    for paragraph in re.finditer(r"(?:^.*\S.*\n?)+", without, re.MULTILINE):
        line = without.count("\n", 0, paragraph.start()) + 1
        found += [
            Step(name, line, "command", command, not_run=_reason(command, by_name), is_spoken=True)
            for command in spoken(paragraph[0])
        ]
    return found


def _reason(text: str, given: list[Mark]) -> str:
    return next((mark.why for mark in given if same(text).startswith(same(mark.beginning))), "")


def _exit_code(line: str) -> int:
    found = re.search(r"#.*\bexit code (\d+)", line)
    return int(found[1]) if found else 0


def plan(pages: list[Path], root: Path) -> list[Step]:
    """The steps of all pages, each command once: in the block where it stands first, or else in prose.

    A mark holds wherever the command stands.
    """
    every = [step for page in pages for step in steps(page, root)]
    once: dict[str, Step] = {}
    for step in sorted((step for step in every if step.kind == "command"), key=lambda step: step.is_spoken):
        once.setdefault(same(plain(step.text)), step)
    kept = set(once.values())
    why = {same(plain(step.text)): step.not_run for step in every if step.not_run}
    return [
        step._replace(not_run=why.get(same(plain(step.text)), "")) if step.kind == "command" else step
        for step in every
        if step.kind != "command" or step in kept
    ]
