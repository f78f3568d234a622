"""What must hold of README and docs/: what they name exists, what they show is up to date, and they can be read."""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import re
import shlex
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import tyro

from benchmarks import documents
from instructgpt import cli, stages
from instructgpt.flags import flag_types, parse
from kernels.lab import __main__ as lab
from tests.documents.reading import commands, fences, prose, spans, spoken

ROOT = Path(__file__).parents[1]
PAGES = documents.documents(ROOT)
ENGLISH = [page for page in PAGES if not page.name.endswith(".zh.md")]
CHINESE = [page for page in PAGES if page.name.endswith(".zh.md")]
ROOMS = tuple(path.name + "/" for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
LONGEST = 120
OTHERS = ("pip", "sed", "grep", "curl", "cd", "git")
"""Programs that are not ours."""

a_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


# ---- reading a page


def heads(text: str) -> set[str]:
    """Headings as GitHub links to them."""
    titles = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# ---- may a command be given?


class Accepted(BaseException):
    """The flags were read; nothing is run."""


@pytest.fixture
def only_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever reads flags ends once it has. `parse` looks at names and values itself, before it asks tyro, which
    takes a quarter of a second."""
    parse_args = argparse.ArgumentParser.parse_args

    def read_and_end(*words: Any, **settings: Any) -> None:
        parse_args(*words, **settings)
        raise Accepted

    def end(*words: Any, **settings: Any) -> None:
        raise Accepted

    monkeypatch.setattr(tyro, "cli", end)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", read_and_end)


def config_of(module: str) -> type:
    """What a benchmark is set by."""
    found = [
        each
        for name, each in vars(importlib.import_module(module)).items()
        if name.endswith("Config") and each.__module__ == module
    ]
    assert len(found) == 1, f"{module} should have one Config, not {found}"
    return found[0]


def read(command: str) -> None:
    """Reads a command as its program would. Whatever is wrong is raised; SystemExit and Accepted are right."""
    words = shlex.split(command)
    program, *rest = [os.path.basename(words[0]), *words[1:]]
    rest = ["sft" if word == "STAGE" else word for word in rest]
    if program == "make":
        read_make(rest)
    elif program == "python" and not rest[0].startswith("-"):
        assert rest[0] == "train.py", command
        stages.main(rest[1:] or ["--help"])
    elif program == "instructgpt":
        cli.run_command(rest)
    elif program == "python":
        assert rest[0] == "-m", command
        read_module(rest[1], rest[2:])
    elif program == "pytest":
        read_module("pytest", rest)
    else:
        assert program in OTHERS, f"what is {program!r}?"


def read_make(words: list[str]) -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, equals, _ = word.partition("=")
        assert re.search(rf"^{name} \?=" if equals else rf"^{name}:.* ## ", text, re.MULTILINE), f"make has no {name}"


def read_module(module: str, words: list[str]) -> None:
    if module == "instructgpt":
        cli.run_command(words)
    elif module == "kernels.lab":
        lab.main(words)
    elif module == "pytest":
        assert all((ROOT / word).exists() for word in words if not word.startswith("-") and not word.isdigit())
    elif module == "benchmarks.gpu":
        importlib.import_module(module).main(words)
    elif module != "pip":
        parse(config_of(module), words, module)


TEXTS = [page.read_text(encoding="utf-8") for page in PAGES]
EVERY = list(dict.fromkeys(command for text in TEXTS for command in commands(text) + spoken(text)))


@pytest.mark.parametrize("command", EVERY)
def test_a_command_is_one_that_its_program_takes(command: str, only_read: None) -> None:
    try:
        read(command)
    except (Accepted, SystemExit) as end:
        assert not getattr(end, "code", 0), command


@pytest.mark.parametrize(
    "command",
    [
        "make trian", "make train PRESTE=tiny", "python train.py sft --dtaa x", "python train.py stf --out x",
        "instructgpt chat --modle x", "python -m instructgpt export --model a --to b --format tar", "python tarin.py",
        "python -m benchmarks.decode --round 3", "python -m benchmarks.nothing", "python -m kernels.lab chekc all",
        "python -m kernels.lab compile all --arch 81", "python -m instructgpt data shwo a.json", "pytest tests/none.py",
    ],
)  # fmt: skip
def test_one_that_it_does_not_take_is_seen(command: str, only_read: None) -> None:
    with pytest.raises((Exception, SystemExit)) as raised:
        read(command)
    assert getattr(raised.value, "code", 1), command


def all_flags() -> set[str]:
    """Every flag of the stages, the commands, the lab and the benchmarks."""
    configs = [stage.config for stage in stages.STAGES.values()]
    for file in (ROOT / "instructgpt" / "commands").glob("*.py"):
        named = vars(importlib.import_module(f"instructgpt.commands.{file.stem}"))
        configs += [each for name, each in named.items() if name.endswith("Config") and isinstance(each, type)]
    flags = {flag for config in configs for flag in flag_types(config)} | {"--help", "--minutes", "--json"}
    for name in lab.COMMANDS:
        parser = argparse.ArgumentParser()
        importlib.import_module(f"kernels.lab.{name}").add_arguments(parser)
        flags |= set(parser._option_string_actions)
    flags |= set(flag_types(config_of("benchmarks.train_step")))
    return flags | {"--no-" + flag[2:] for flag in flags}


def test_a_flag_that_prose_names_exists() -> None:
    known = all_flags()
    named = {
        (page.name, flag)
        for page in PAGES
        for text in [page.read_text(encoding="utf-8")]
        for span in set(spans(text)) - set(spoken(text))
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)
    }
    assert len(named) > 50 and "--temprature" not in known
    assert {(page, flag) for page, flag in named if flag not in known} == set()


# ---- what a page names and shows


@a_page
def test_a_path_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = {span for span in spans(text) if re.fullmatch(r"[\w./*-]+", span) and span.startswith(ROOMS)}
    named -= {span for span in named if span.startswith(("runs/", "data/"))}
    assert [span for span in named if not list(ROOT.glob(span.rstrip("/")))] == []


@a_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        file, _, head = target.partition("#")
        to = (page.parent / file).resolve() if file else page
        assert to.exists(), f"{page.name} links to {target}, which is not there"
        assert not head or head in heads(to.read_text(encoding="utf-8")), f"{page.name} links to {target}: no such head"


@a_page
def test_figures_are_what_the_benchmarks_wrote(page: Path) -> None:
    _, stale = documents.rewritten(ROOT, page)
    assert [str(each) for each in stale] == []


def test_pictures_are_what_the_benchmarks_wrote() -> None:
    for file, drawn in documents.pictures(ROOT).items():
        assert file.read_text(encoding="utf-8") == drawn, f"{file.relative_to(ROOT)} is stale; run: make docs"


@a_page
def test_python_that_a_page_shows_is_python(page: Path) -> None:
    blocks = [block for language, block in fences(page.read_text(encoding="utf-8")) if language == "python"]
    assert [block for block in blocks if not is_python(dedent(block))] == []


def is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


# ---- can it be read?


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_readme_is_short(name: str) -> None:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > LONGEST] == []


@a_page
def test_lines_are_short(page: Path) -> None:
    """Tables and shown output, which cannot be folded, are left out."""
    text = re.sub(r"^```(text|)\n.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert [line for line in text.splitlines() if len(line) > LONGEST and not line.startswith("|")] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent != ROOT], ids=lambda page: page.name)
def test_a_page_begins_with_what_people_come_for(page: Path) -> None:
    title, empty, first = page.read_text(encoding="utf-8").splitlines()[:3]
    assert title.startswith("# ") and not empty and re.fullmatch(r"```(sh|python)", first)


def test_readme_leads_to_every_page() -> None:
    for readme, pages in (("README.md", ENGLISH), ("README.zh.md", CHINESE)):
        text = (ROOT / readme).read_text(encoding="utf-8")
        assert [page.name for page in pages if page.parent != ROOT and f"(docs/{page.name})" not in text] == []


@pytest.mark.parametrize("page", CHINESE, ids=lambda page: page.name)
def test_a_chinese_page_has_the_commands_and_tables_of_the_english_one(page: Path) -> None:
    chinese = page.read_text(encoding="utf-8")
    english = page.with_name(page.name.replace(".zh.md", ".md")).read_text(encoding="utf-8")
    assert commands(chinese) == commands(english)
    marks = r"<!-- figures: (\S+) -->"
    assert re.findall(marks, chinese) == re.findall(marks, english)
    for name in re.findall(marks, chinese):
        header, *_ = documents.table(ROOT, name, chinese=True).splitlines()
        assert re.search(r"[\u4e00-\u9fff]", header), f"the table {name} has no Chinese; see benchmarks/tables.py"


def test_a_term_of_the_glossary_leads_to_a_file_that_is_there() -> None:
    rows = re.findall(
        r"^\| (.+?) \| (.+?) \| `(.+?)` \|$", (ROOT / "docs/glossary.md").read_text("utf-8"), re.MULTILINE
    )
    assert len(rows) > 60
    terms = [term for term, _, _ in rows]
    assert terms == sorted(terms, key=str.casefold) and len(set(terms)) == len(terms)
    assert [term for term, _, file in rows if not (ROOT / file).is_file()] == []
