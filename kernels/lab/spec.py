"""What the lab knows of a kernel: one record. From it the kernel is checked, compiled, mutated and measured.

A kernel file ends with a function `spec() -> Spec`, which imports the lab (and so hypothesis) only when it is called.
A file may hold several ops, with one function `<op>_spec` each; the lab takes every function whose name is `spec` or
ends in `_spec`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Case = dict[str, Any]
"""One input described in JSON's values (sizes, options): it can be shrunk, printed and typed in again.

Two keys are the lab's own, and are not handed to `Spec.inputs`: "seed" of the random numbers, which the lab draws where
a case has none, and "dtype", one of `DTYPES`."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""By the name that cases and command lines use."""


@dataclass(frozen=True)
class Inputs:
    """What an op and its reference are called with: `op(**tensors, **options)`."""

    tensors: dict[str, Tensor]
    """By parameter name, on the CPU; floating-point ones in float64, which the lab rounds to the dtype it tests and
    lays out in several ways."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments."""
    gradients: tuple[str, ...] = ()
    """Tensors to differentiate with respect to; each gradient is judged by itself."""
    float32: tuple[str, ...] = ()
    """Tensors that stay float32 whatever dtype is tested, such as a table of cosines."""
    contiguous: tuple[str, ...] = ()
    """Tensors that the op documents as contiguous; all others come with strides of every kind."""

    def __post_init__(self) -> None:
        """ValueError for names of tensors that there are not."""
        for field_name in ("gradients", "float32", "contiguous"):
            if unknown := [name for name in getattr(self, field_name) if name not in self.tensors]:
                raise ValueError(f"Inputs' {field_name} name {unknown[0]!r}; the tensors are {', '.join(self.tensors)}")


@dataclass(frozen=True)
class Work:
    """What a forward, or a backward, must at least do; the roofline is drawn from it."""

    bytes: float
    """Read and written, each operand once."""
    flops: float


@dataclass(frozen=True)
class Tolerance:
    """What a kernel may lose besides float32's arithmetic and one rounding of each result, which `limits.py` knows by
    itself: nothing, unless its documentation says that it rounds something on the way."""

    floor: Callable[[str, Inputs, Mapping[str, Tensor], float], float] | None = None
    """(quantity, inputs, results, eps) -> an absolute error, of the Frobenius norm, allowed besides. `quantity` is an
    output's name or "d" + a tensor's; `inputs` are the tested ones, in float64; `results` are the float64 outputs,
    gradients, and cotangents "d" + output; eps is that of the tested dtype. What is not finite in these counts as 0."""


@dataclass(frozen=True)
class Mutant:
    """A bug to plant: one line of the kernel's file, or of one beside it, changed. `check` must catch it."""

    name: str
    old: str
    """Text that occurs exactly once in the file, above its spec."""
    new: str
    file: str = ""
    """Name of the file that has the line, where it is not the spec's own but another one of the same kernel."""


@dataclass(frozen=True)
class Spec:
    """All that is to be known of one op."""

    name: str
    op: Callable[..., Any]
    """The public function; it returns a tensor or a tuple of them."""
    reference: Callable[..., Any]
    """Plain PyTorch with the same parameters and results, good in float64."""
    exact: Callable[..., Any] | None = field(default=None, kw_only=True)
    """(as_stored, **tensors, **options) -> the same results, where the op's definition itself rounds on the way, as a
    norm of a stored sum does: as_stored(t, "total") is t in the dtype of the output `total`. None: the reference."""
    cases: SearchStrategy[Case]
    """Small inputs: edges, odd sizes, options. The lab adds dtype, layouts and padding."""
    inputs: Callable[..., Inputs]
    """(generator: torch.Generator, **case) -> Inputs; random numbers come from the generator alone."""
    outputs: tuple[str, ...] = ("y",)
    """Names of the results, in order."""
    tolerance: Tolerance = Tolerance()
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float16, torch.bfloat16)
    builds: tuple[Case, ...] = ()
    """Realistic cases that are compiled for every target: what ships. The op runs on them, forward and backward, with
    its launches compiled instead of run; "dtype" in a case chooses its dtype (bfloat16 by default)."""
    max_spill_bytes: int = 0
    """Most bytes of registers spilled that a build may have; above 0 the kernel's docstring says why."""
    needs_tensor_cores: bool = False
    """Fail a build whose kernels hold no tensor-core instruction."""
    benchmarks: tuple[Case, ...] = ()
    """Cases that are measured on a GPU, besides "dtype" as in `builds`."""
    work: Callable[..., tuple[Work, Work]] | None = None
    """(element_size, **case) -> what its forward and its backward must do."""
    peers: Callable[[], dict[str, Callable[..., Any]]] | None = None
    """Other implementations with the op's parameters, by name; those that cannot be imported are left out. `eager` (the
    reference) and `compile` (torch.compile of it) are always measured."""
    mutants: tuple[Mutant, ...] = ()

    order: Literal["fixed", "atomics"] = field(default="fixed", kw_only=True)
    """"atomics" where programs add to the same numbers in whatever order they come: then each run is within its limit,
    instead of having the same bits as the others."""

    def __post_init__(self) -> None:
        """TypeError or ValueError for what cannot be judged."""
        for name in ("op", "reference", "inputs"):
            if not callable(value := getattr(self, name)):
                raise TypeError(f"Spec's {name} is {value!r}; it must be a function")
        if not self.outputs or isinstance(self.outputs, str) or len(set(self.outputs)) < len(self.outputs):
            raise ValueError(f"Spec's outputs are {self.outputs!r}; they must be a tuple of names, each of one result")
        if not self.dtypes or not set(self.dtypes) <= set(DTYPES.values()):
            raise ValueError(f"Spec's dtypes are {self.dtypes!r}; they must be some of {', '.join(DTYPES)}, of torch")
        if self.order not in ("fixed", "atomics"):
            raise ValueError(f"Spec's order is {self.order!r}; it must be 'fixed' or 'atomics'")

    def make(self, case: Case, device: torch.device | str = "cpu") -> Inputs:
        """The inputs of one case: the same ones each time, of one kind of device."""
        generator = torch.Generator(device).manual_seed(case.get("seed", 0))
        settings = {key: value for key, value in case.items() if key not in ("seed", "dtype")}
        with torch.device(device):
            made = self.inputs(generator, **settings)
        if not isinstance(made, Inputs):
            raise TypeError(f"Spec's inputs made {type(made).__name__} of a case; it must be Inputs")
        return made
