"""The bench where a kernel is judged: right, compilable, fast. `python -m kernels.lab --help`."""

from kernels.lab.spec import Inputs, Mutant, Spec, Tolerance, Work

__all__ = ["Inputs", "Mutant", "Spec", "Tolerance", "Work"]
