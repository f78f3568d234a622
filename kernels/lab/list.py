"""The kernels that are here, and what their specs declare."""

from __future__ import annotations

import argparse

from kernels.lab.find import package_kernels
from kernels.lab.output import table
from kernels.lab.spec import DTYPES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(options: argparse.Namespace) -> int:
    """The command: a line for each op."""
    rows = []
    for kernel in package_kernels():
        spec = kernel.spec
        dtypes = " ".join(name for name, dtype in DTYPES.items() if dtype in spec.dtypes)
        counts = (str(len(declared)) for declared in (spec.builds, spec.benchmarks, spec.mutants))
        rows.append((kernel.target, " ".join(spec.outputs), dtypes, *counts))
    print(table(("kernel", "results", "dtypes", "builds", "benchmarks", "mutants"), rows))
    return 0
