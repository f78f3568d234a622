"""Kernels by name: a file of this package, an op of one of its files, or a path to anybody's own file."""

from __future__ import annotations

import argparse
import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType

import kernels
from kernels.lab.interpreter import Unsupported
from kernels.lab.processes import Ended, in_order
from kernels.lab.spec import Spec


class UsageError(ValueError):
    """What was asked of the lab cannot be done; told in one line, exit code 2."""


@dataclass(frozen=True)
class Kernel:
    """One op that has a spec."""

    target: str
    """How the command line names it."""
    path: Path
    declare: Callable[[], Spec]
    """The function of the kernel's file that returns its spec."""
    specs_begin: int
    """The line (1-based) where the first spec of the file begins: what stands above is the kernel."""

    @cached_property
    def spec(self) -> Spec:
        """UsageError where declaring it fails."""
        with told_in_one_line(self.path, f"{self.declare.__name__}()"):
            spec = self.declare()
        if not isinstance(spec, Spec):
            raise UsageError(f"{self.path}: {self.declare.__name__}() returned {type(spec).__name__}, not a Spec")
        return spec


def add_kernel_argument(parser: argparse.ArgumentParser) -> None:
    """The positional argument `kernel`, for `find`."""
    parser.add_argument("kernel", metavar="KERNEL", help="softmax, say, all, or the path of your own file")


def find(target: str) -> list[Kernel]:
    """The kernels that `target` names: softmax (a file of the package, or an op in one), all (of the package), or
    my_softmax.py; file:op or my_file.py:op is one of several in a file."""
    name, _, op = target.partition(":")
    if names_a_file(target):
        in_file = kernels_of(load(Path(name)), name)
        if not in_file:
            raise UsageError(f"{name} has no function `spec` and none that ends in `_spec`")
    else:
        known = package_kernels()
        if name == "all":
            return known
        in_file = [k for k in known if k.path.stem == name] or [k for k in known if op_name(k) == name]
        if not in_file:
            names = sorted({k.path.stem for k in known} | {op_name(k) for k in known})
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}, or a path that ends in .py"
            raise UsageError(f"no kernel {name!r}; {hint}")
    chosen = [kernel for kernel in in_file if op in ("", op_name(kernel))]
    if not chosen:
        raise UsageError(f"{name} has no op {op!r}; it has {', '.join(map(op_name, in_file))}")
    return chosen


def targets_of(target: str) -> list[str]:
    """The names of the kernels that `target` names. Who reaches a verdict does not load somebody else's file, which
    might reach another one: a process of its own does."""
    if not names_a_file(target):
        return named(target)
    (answer,) = in_order(named, [(target,)])
    if isinstance(answer, Ended):
        raise UsageError(f"{target}: its process died when it was imported (exit code {answer.exit_code})")
    return answer


def named(target: str) -> list[str]:
    return [kernel.target for kernel in find(target)]


def names_a_file(target: str) -> bool:
    name = target.partition(":")[0]
    return name.endswith(".py") or Path(name).is_dir()


def package_kernels() -> list[Kernel]:
    """Every op of `kernels/` that has a spec, by name of file."""
    modules = sorted(module.name for module in pkgutil.iter_modules(kernels.__path__) if not module.ispkg)
    return [kernel for name in modules for kernel in kernels_of(_of_package(name), name)]


def _of_package(name: str) -> ModuleType:
    with told_in_one_line(Path(kernels.__path__[0], f"{name}.py"), "importing it"):
        return importlib.import_module(f"{kernels.__name__}.{name}")


@contextmanager
def told_in_one_line(path: Path, what: str) -> Iterator[None]:
    """Any error of somebody's file becomes a UsageError that names its last line there."""
    try:
        yield
    except (UsageError, Unsupported):
        raise
    except SyntaxError as error:
        raise UsageError(f"{error.filename or path}:{error.lineno or 1}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        inside = [at for at in traceback.extract_tb(error.__traceback__) if Path(at.filename).name == path.name]
        where = f"{path}:{inside[-1].lineno}" if inside else str(path)
        said = " ".join(str(error).split())  # in one line
        raise UsageError(f"{where}: {what} raised {type(error).__name__}{said and ': '}{said}") from error


def op_name(kernel: Kernel) -> str:
    """The op that a spec function speaks of: the file's name for `spec`, what stands before `_spec` for others."""
    return kernel.declare.__name__.removesuffix("_spec") if kernel.declare.__name__ != "spec" else kernel.path.stem


def kernels_of(module: ModuleType, target: str) -> list[Kernel]:
    """What a module declares itself, in the order of its lines."""
    path = Path(inspect.getfile(module))
    declared = [
        function
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if (name == "spec" or name.endswith("_spec")) and function.__module__ == module.__name__
    ]
    declared.sort(key=lambda function: function.__code__.co_firstlineno)
    begin = min((function.__code__.co_firstlineno for function in declared), default=0)
    found = [Kernel(target, path, function, begin) for function in declared]
    return found if len(found) == 1 else [replace(kernel, target=f"{target}:{op_name(kernel)}") for kernel in found]


def load(path: Path, name: str = "", neighbours: Path | None = None) -> ModuleType:
    """A file as a module of its own, which can import the files beside it (or those in `neighbours`)."""
    if not path.is_file():
        raise UsageError(f"{path} is a folder; name a file in it" if path.is_dir() else f"no file {path}")
    name = name or f"kernel_{path.stem}"
    declaration = importlib.util.spec_from_file_location(name, path)
    assert declaration is not None and declaration.loader is not None
    module = importlib.util.module_from_spec(declaration)
    sys.modules[name] = module
    folder = str((neighbours or path.parent).resolve())
    if folder not in sys.path:
        sys.path.append(folder)
    with told_in_one_line(path, "importing it"):
        declaration.loader.exec_module(module)
    return module
