"""What a student's function may use, as its own source describes it: functions, classes with their fields, constants.

# At hand:
#   Pairs(better, worse, weight): Which answer of a batch beats which; every tensor is (P,).
#       better: Number of the better answer, int64.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from textwrap import wrap

OURS = ("instructgpt", "kernels")
KNOWN = ("jit", "tl")
"""Triton's names, which our launcher hands on."""
WIDTH = 116
LONGEST = 200
"""Characters of a constant's value that are shown."""


@dataclass(frozen=True)
class Definition:
    """Where a name gets its meaning."""

    node: ast.stmt
    docstring: str
    """Its own, on one line, of a class only the first paragraph; for a constant the text that follows it."""
    module: str


def comment(imported: Iterable[tuple[str, str]], own: Iterable[tuple[str, str]]) -> str:
    """Comment lines for the names that a file imports from this project, as (module, name), and for what `self` has, as
    (name, description), behind an empty line; nothing where there is nothing to be said."""
    told = list(own)
    waiting = [(module, name) for module, name in imported if name not in KNOWN]
    seen: set[tuple[str, str]] = set()
    for module, name in waiting:  # grows by what a function returns
        if (found := definition(module, name)) is None or (found.module, name) in seen:
            continue
        seen.add((found.module, name))  # where it is defined: another module may hand it on
        told += described(name, found)
        if isinstance(found.node, ast.FunctionDef) and found.node.returns is not None:
            returned = {(found.module, each.id) for each in ast.walk(found.node.returns) if isinstance(each, ast.Name)}
            waiting += sorted(returned - set(waiting))
    lines = [line for name, says in told for line in _wrapped(name, says)]
    return "".join(f"{line}\n" for line in ["", "# At hand:", *lines]) if lines else ""


def _wrapped(name: str, says: str) -> list[str]:
    inner = len(name) - len(name.lstrip())
    text = f"{name.lstrip()}: {says}" if says else name.lstrip()
    return wrap(text, WIDTH, initial_indent=f"#   {' ' * inner}", subsequent_indent=f"#   {' ' * (inner + 6)}",
                break_long_words=False, break_on_hyphens=False)  # fmt: skip


def described(name: str, found: Definition) -> Iterator[tuple[str, str]]:
    """(what it is called, what it is) of a definition, and of each field of a class, which is moved in."""
    node = found.node
    if isinstance(node, ast.FunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        yield f"{name}({ast.unparse(node.args)}){returns}", found.docstring
    elif isinstance(node, ast.ClassDef):
        fields = list(_fields(node, found.module))
        yield f"{name}({', '.join(field for field, _ in fields)})" if fields else name, found.docstring
        yield from ((f"    {field}", says) for field, says in fields if says)
    elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
        value = ast.unparse(node.value)
        yield f"{name} = {value if len(value) <= LONGEST else value[:LONGEST] + '…'}", found.docstring


def definition(module: str, name: str) -> Definition | None:
    """Where the name is defined, in this project: in the module, or in the one that it has it from."""
    if module.split(".")[0] not in OURS:
        return None
    body = _tree(module).body
    for node, says in _with_text(body):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            text = ast.get_docstring(node) or ""
            return Definition(
                node, " ".join(text.split()) if isinstance(node, ast.FunctionDef) else _first(text), module
            )
        if name in targets(node):
            return Definition(node, says, module)
    for node in body:
        if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            return definition(node.module or "", name)
    return None


def targets(node: ast.stmt) -> set[str]:
    """The names that an assignment gives a value to."""
    found = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in found if isinstance(target, ast.Name)}


def _fields(node: ast.ClassDef, module: str) -> Iterator[tuple[str, str]]:
    """What a record is made of, with what is said of it: of its own class and of those that it extends."""
    for base in node.bases:
        of = definition(module, base.id) if isinstance(base, ast.Name) else None
        if of and isinstance(of.node, ast.ClassDef):
            yield from _fields(of.node, of.module)
    for each, says in _with_text(node.body):
        is_made = isinstance(each, ast.AnnAssign) and each.value is not None and "init=False" in ast.unparse(each.value)
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and not is_made:
            yield each.target.id, says


def _with_text(body: list[ast.stmt]) -> Iterator[tuple[ast.stmt, str]]:
    """Statements, each with the text that stands behind it."""
    for node, after in zip(body, [*body[1:], None]):
        match after:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield node, _first(text)
            case _:
                yield node, ""


def _first(text: str) -> str:
    """The first paragraph, on one line."""
    return " ".join(text.split("\n\n")[0].split())


@lru_cache(maxsize=64)
def _tree(module: str) -> ast.Module:
    return ast.parse(Path(str(importlib.import_module(module).__file__)).read_text(encoding="utf-8"))
