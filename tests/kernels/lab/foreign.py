"""Kernels that are right, and that Triton's interpreter cannot run; and one that raises by its own fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from hypothesis import strategies as st
from torch import Tensor
from triton.language.extra import libdevice

from kernels.lab import Inputs, Spec

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false


@triton.jit
def libdevice_kernel(x, y, N: tl.constexpr):
    tl.store(y + tl.arange(0, N), libdevice.tanh(tl.load(x + tl.arange(0, N))))


@triton.jit
def cuda_kernel(x, y, N: tl.constexpr):
    tl.store(y + tl.arange(0, N), tl.extra.cuda.libdevice.tanh(tl.load(x + tl.arange(0, N))))


@triton.jit
def assembly_kernel(x, y, N: tl.constexpr):
    value = tl.load(x + tl.arange(0, N))
    value = tl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [value], dtype=tl.float32, is_pure=True, pack=1
    )
    tl.store(y + tl.arange(0, N), value)


@triton.autotune(configs=[triton.Config({}, num_warps=1), triton.Config({}, num_warps=2)], key=["N"])
@triton.jit
def tuned_kernel(x, y, N: tl.constexpr):
    tl.store(y + tl.arange(0, N), tl.load(x + tl.arange(0, N)))


@triton.jit
def misspelt_kernel(x, y, N: tl.constexpr):
    tl.store(y + tl.arange(0, N), tl.load(x + tl.arange(0, M)))  # noqa: F821  # pyright: ignore


def declare(kernel: Any, reference: Callable[[Tensor], Tensor] = torch.tanh) -> Spec:
    def op(x: Tensor) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        kernel[(1,)](x, y, x.numel())
        return y

    def inputs(generator: torch.Generator, columns: int) -> Inputs:
        return Inputs({"x": torch.randn(columns, generator=generator, dtype=torch.float64)})

    return Spec(
        "foreign", op, reference, st.fixed_dictionaries({"columns": st.just(16)}), inputs, dtypes=(torch.float32,)
    )


def libdevice_spec() -> Spec:
    return declare(libdevice_kernel)


def cuda_spec() -> Spec:
    return declare(cuda_kernel)


def assembly_spec() -> Spec:
    return declare(assembly_kernel)


def tuned_spec() -> Spec:
    return declare(tuned_kernel, torch.clone)


def device_spec() -> Spec:
    def op(x: Tensor) -> Tensor:
        return x * torch.cuda.get_device_properties(x.device).multi_processor_count

    return Spec(**{**vars(declare(tuned_kernel)), "op": op})


def misspelt_spec() -> Spec:
    return declare(misspelt_kernel)
