"""`python -m kernels.lab COMMAND [KERNEL] [flags]`: is a kernel right, compilable, fast?

A KERNEL is a file of kernels/ without its ending, an op in one of them, or the path of your own file (my_softmax.py, or
my_file.py:op where it declares several). `python -m kernels.lab COMMAND --help` lists a command's flags.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import torch

from kernels.lab.find import UsageError

COMMANDS = {
    "check": "property tests of values and gradients, in Triton's interpreter or on a CUDA device",
    "mutants": "plant known bugs and show that `check` catches each",
    "compile": "build for A100, H100 and B200 without a GPU: registers, spills, shared memory",
    "bench": "measure on a CUDA device, against other implementations and the roofline",
    "tune": "find the fastest launches on a CUDA device and keep them in a file",
    "list": "the kernels that are here",
    "new": "write a kernel file to start from, which passes `check`",
}
"""Each is a module of the lab with `add_arguments(parser)` and `run(options) -> exit code`, imported when it is used.
UsageError becomes one line and exit code 2."""

INTERPRETED = ("check", "mutants")
"""Run in Triton's interpreter where there is no CUDA device, or where their flag --interpret is given."""
COMPILED = ("compile", "bench", "tune")
"""Never run in it. The commands in neither list launch no kernel."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def main(arguments: Sequence[str]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what its encoding lacks is spelt, as \u2013
    parser = Parser("python -m kernels.lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    name = next((word for word in arguments if not word.startswith("-")), "")
    if near := difflib.get_close_matches(name, COMMANDS, n=1) if name not in COMMANDS else []:
        parser.error(f"no command {name!r}; did you mean {near[0]!r}?")
    module = None
    for command, summary in COMMANDS.items():
        added = commands.add_parser(command, help=summary, description=summary)
        if command == name:  # the others' imports would cost seconds
            module = importlib.import_module(f"kernels.lab.{command}")
            module.add_arguments(added)
    options = parser.parse_args(arguments)
    assert module is not None
    begin_anew_where_triton_must(options, arguments)
    try:
        return module.run(options)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def begin_anew_where_triton_must(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Replaces this process where it has the interpreter and must not, or the other way round.

    Triton decides when it is imported, and a package is imported before its __main__.
    """
    if options.command not in (*INTERPRETED, *COMPILED):
        return
    interpreted = options.command in INTERPRETED and (options.interpret or not torch.cuda.is_available())
    if interpreted != (os.environ.get("TRITON_INTERPRET") == "1"):
        environment = {**os.environ, "TRITON_INTERPRET": "1" if interpreted else "0"}
        os.execve(sys.executable, [sys.orig_argv[0], "-m", "kernels.lab", *arguments], environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
