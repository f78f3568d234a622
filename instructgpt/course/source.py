"""A function of this project as its source has it: where it stands, what its head is, how it reads with a change.

Also: another function put in its place, wherever it is used.
"""

from __future__ import annotations
import __future__

import ast
import importlib
import linecache
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import dedent, indent
from types import FunctionType, ModuleType
from typing import Any

from instructgpt.course.at_hand import targets

Function = Callable[..., Any]


class CallsOurs(Exception):
    """A function that stands in the place of ours calls ours."""


@dataclass(frozen=True)
class Source:
    """A function, or a method of a class."""

    module: ModuleType
    owner: Any
    """The module or class that has it."""
    name: str

    @staticmethod
    def of(target: str) -> Source:
        """By its dotted name. Raises LookupError where there is no such function."""
        parts = target.split(".")
        for end in range(len(parts) - 1, 0, -1):
            try:
                module = importlib.import_module(".".join(parts[:end]))
            except ModuleNotFoundError:
                continue
            owner: Any = module
            for part in parts[end:-1]:
                owner = getattr(owner, part, None)
            if hasattr(owner, parts[-1]):
                return Source(module, owner, parts[-1])
        raise LookupError(f"there is no function {target}")

    @property
    def function(self) -> Function:
        return getattr(self.owner, self.name)

    @property
    def path(self) -> Path:
        return Path(str(self.module.__file__))

    @property
    def place(self) -> str:
        """FILE:LINE, from the repository's root."""
        root = Path(str(sys.modules[self.module.__name__.split(".")[0]].__file__)).parents[1]
        return f"{self.path.relative_to(root).as_posix()}:{self.node.lineno}"

    @cached_property
    def _tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"))

    @cached_property
    def node(self) -> ast.FunctionDef:
        body: list[ast.stmt] = self._tree.body
        if isinstance(self.owner, type):
            for part in self.owner.__qualname__.split("."):
                body = next(each for each in body if isinstance(each, ast.ClassDef) and each.name == part).body
        return next(each for each in body if isinstance(each, ast.FunctionDef) and each.name == self.name)

    def _lines(self, begin: int, end: int) -> str:
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        return "".join(lines[begin - 1 : end])

    @property
    def text(self) -> str:
        """All of it, at the left margin; a decorator that says how it is called is left out."""
        return dedent(self._lines(self._begin, self.node.end_lineno or 0))

    @property
    def _begin(self) -> int:
        """The line where it begins: at @jit, which makes it a kernel, and below @staticmethod and the like."""
        is_kernel = any(isinstance(each, ast.Name) and each.id == "jit" for each in self.node.decorator_list)
        return self.node.decorator_list[0].lineno if is_kernel else self.node.lineno

    @property
    def head(self) -> str:
        """Decorator and signature."""
        text = dedent(self._lines(self._begin, self.node.body[0].lineno - 1))
        text = re.sub(r" *#(?! fmt).*$", "", text, flags=re.MULTILINE)
        return text.rstrip() + "\n"

    @property
    def docstring(self) -> str:
        return ast.get_docstring(self.node) or ""

    def empty(self, body: str = "raise NotImplementedError") -> str:
        """The function with its docstring and another body."""
        quote = 'r"""' if "\\" in self.docstring else '"""'
        end = "\n" if "\n" in self.docstring else ""
        return f'{self.head}{indent(f"{quote}{self.docstring}{end}", "    ")}{"    " * bool(end)}"""\n    {body}\n'

    def imports(self, without: tuple[str, ...] = (), helpers: tuple[str, ...] = ()) -> str:
        """What a file needs for it to stand there alone: the names that it uses, without some, with further ones."""
        plain, of = self._imported(without, helpers)
        lines = sorted(plain) + [f"from {module} import {', '.join(sorted(of[module]))}" for module in sorted(of)]
        return "\n".join(["from __future__ import annotations", "", *lines])

    def names(self, without: tuple[str, ...] = (), helpers: tuple[str, ...] = ()) -> list[tuple[str, str]]:
        """The same, as (module, name)."""
        _, of = self._imported(without, helpers)
        return [(module, name) for module in sorted(of) for name in sorted(of[module])]

    def _imported(self, without: tuple[str, ...], helpers: tuple[str, ...]) -> tuple[set[str], dict[str, set[str]]]:
        """Lines that import a module, and by module the names that are imported from it."""
        used = {node.id for node in ast.walk(self.node) if isinstance(node, ast.Name)} - set(without)
        used |= {"torch", "tl", "jit"} & {"tl" if "jit" in used else "torch"} if used & {"Tensor", "jit"} else set()
        plain: set[str] = set()
        of: dict[str, set[str]] = {}
        for helper in helpers:
            of.setdefault(helper.partition(":")[0], set()).add(helper.partition(":")[2])
        for node in self._tree.body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                for alias in node.names:
                    if (alias.asname or alias.name) not in used:
                        continue
                    written = f"{alias.name} as {alias.asname}" if alias.asname else alias.name
                    if isinstance(node, ast.Import):
                        plain.add(f"import {written}")
                    else:
                        of.setdefault(node.module or "", set()).add(written)
            elif own := _defined(node) & used - {self.name}:
                of.setdefault(self.module.__name__, set()).update(own)
        if "torch" in used:
            plain.add("import torch")
        return plain, of

    def changed(self, changes: Iterable[tuple[str, str]]) -> Function:
        """The function with texts in its source exchanged. ValueError unless each old one occurs exactly once."""
        text = self.text
        for old, new in changes:
            if (count := text.count(old)) != 1:
                raise ValueError(f"{old!r} occurs {count} times in {self.name}; it must occur once")
            text = text.replace(old, new)
        file = f"<{self.name} {zlib.crc32(text.encode())}>"
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)  # Triton reads the source
        names = dict(vars(self.module))
        exec(compile(text, file, "exec", __future__.annotations.compiler_flag), names)
        return names[self.name]

    @contextmanager
    def replaced_by(self, function: Function) -> Iterator[None]:
        """Inside, `function` stands wherever ours did: in its own place, and where others have imported it.

        Who has kept ours, and calls it, gets a CallsOurs.
        """
        ours = self.function
        held: list[tuple[Any, str, Any]] = [(self.owner, self.name, vars(self.owner)[self.name])]
        if not isinstance(self.owner, type):
            held += [
                (module, name, value)
                for path, module in list(sys.modules.items())
                if path.startswith(("instructgpt", "kernels")) and module is not self.module
                for name, value in list(vars(module).items())
                if value is ours
            ]
        before = set(sys.modules)
        try:
            for owner, name, value in held:
                setattr(owner, name, staticmethod(function) if isinstance(value, staticmethod) else function)
            with nullcontext() if function is ours else _out_of_reach(ours):
                yield
        finally:
            for owner, name, value in held:
                setattr(owner, name, value)
            # What was imported for the first time meanwhile has taken it for ours.
            for module in [module for name, module in list(sys.modules.items()) if name not in before]:
                for name, value in list(vars(module).items()):
                    if value is function:
                        setattr(module, name, ours)


@contextmanager
def _out_of_reach(ours: Any) -> Iterator[None]:
    """Inside, calling ours raises CallsOurs, under whatever name somebody holds it."""
    if isinstance(ours, FunctionType):
        code, ours.__code__ = ours.__code__, _refuse.__code__
        try:
            yield
        finally:
            ours.__code__ = code
    else:  # a kernel, which Triton's interpreter writes anew before it calls it
        ours.rewrite = _refuse
        try:
            yield
        finally:
            del ours.rewrite


def _refuse(*given: Any, **named: Any) -> None:
    """Its code runs as that of functions of other modules, so it brings its names itself."""
    import sys

    raise sys.modules["instructgpt.course.source"].CallsOurs


def _defined(node: ast.stmt) -> set[str]:
    """The names that a statement of a module gives a meaning to."""
    return {node.name} if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else targets(node)
