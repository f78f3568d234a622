"""An op called at a realistic case: its inputs on a device, its forward, its backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.lab.spec import DTYPES, Case, Spec


@dataclass(frozen=True)
class Call:
    """Arguments of an op, in the dtype and on the device of one case."""

    tensors: dict[str, Tensor]
    """Those to differentiate with respect to require gradients."""
    options: dict[str, Any]

    @property
    def leaves(self) -> list[Tensor]:
        return [tensor for tensor in self.tensors.values() if tensor.requires_grad]

    def forward(self, function: Callable[..., Any]) -> list[Tensor]:
        """All outputs."""
        outputs = function(**self.tensors, **self.options)
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)

    def backward(self, outputs: list[Tensor], cotangents: list[Tensor], again: bool = False) -> list[Tensor]:
        """Gradients of the leaves, none where there are no cotangents; `again` keeps the graph for another backward."""
        if not cotangents:
            return []
        return list(torch.autograd.grad(differentiable(outputs), self.leaves, cotangents, retain_graph=again))

    def copy(self, dtype: torch.dtype | None = None) -> Call:
        """The same values in memory of their own, floating-point ones in `dtype`."""
        copies = {}
        for name, tensor in self.tensors.items():
            wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            copies[name] = _placed(tensor.detach(), wanted, tensor.device).requires_grad_(tensor.requires_grad)
        return Call(copies, self.options)

    @property
    def bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def is_aligned(self) -> bool:
        """Whether each row of each floating-point tensor begins at a multiple of 16 bytes and has no gaps."""
        return all(
            tensor.stride(-1) == 1 and tensor.data_ptr() % 16 == 0 and all(
                n * tensor.element_size() % 16 == 0 for n in (tensor.size(-1), *tensor.stride()[:-1])
            )
            for tensor in self.tensors.values()
            if tensor.is_floating_point() and tensor.dim()
        )  # fmt: skip


def prepare(spec: Spec, case: Case, device: torch.device) -> Call:
    """The case's inputs with the strides that the spec gives them, floating-point ones in the case's dtype.

    Drawn on the device itself: a gigabyte of random numbers takes a CPU seconds."""
    inputs = spec.make(case, device)
    dtype = dtype_of(case)
    tensors = {}
    for name, tensor in inputs.tensors.items():
        wanted = tensor.dtype
        if tensor.is_floating_point():
            wanted = torch.float32 if name in inputs.float32 else dtype
        tensors[name] = _placed(tensor, wanted, device).requires_grad_(name in inputs.gradients)
    return Call(tensors, inputs.options)


def _placed(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A copy with the same strides; `to` would make the halves of a tensor contiguous."""
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=dtype, device=device).copy_(tensor)


def dtype_of(case: Case) -> torch.dtype:
    return DTYPES[case.get("dtype", "bfloat16")]


def differentiable(outputs: list[Tensor]) -> list[Tensor]:
    return [output for output in outputs if output.requires_grad]


def cotangents_for(outputs: list[Tensor]) -> list[Tensor]:
    """Random gradients of the outputs that have any."""
    return [torch.randn_like(output, memory_format=torch.contiguous_format) for output in differentiable(outputs)]


def describe(case: Case) -> str:
    """`rows=64 columns=128 bfloat16`."""
    sizes = [f"{key}={value}" for key, value in case.items() if key not in ("dtype", "seed")]
    return " ".join([*sizes, case.get("dtype", "bfloat16")])
