"""Writes a kernel file to start from: `template.py` under another name, which passes `check` as it is."""

from __future__ import annotations

import argparse
from pathlib import Path

from kernels.lab.find import UsageError
from kernels.lab.output import program

TEMPLATE = Path(__file__).with_name("template.py")
TEMPLATE_NAME = "squared_relu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of the op; the file is NAME.py in the working directory")


def run(options: argparse.Namespace) -> int:
    name, path = options.name, Path(f"{options.name}.py")
    if not name.isidentifier() or name != name.lower():
        raise UsageError(f"{name!r} cannot be an op's name; it must be like my_softmax")
    if path.exists():
        raise UsageError(f"{path} exists already; choose another name, or move it")
    path.write_text(TEMPLATE.read_text(encoding="utf-8").replace(TEMPLATE_NAME, name), encoding="utf-8")
    print(
        f"{path} computes a squared ReLU, for you to replace: reference, kernels, and the spec at its end.\n"
        + "\n".join(f"  {program()} {command} {path}" for command in ("check", "mutants", "compile"))
    )
    return 0
