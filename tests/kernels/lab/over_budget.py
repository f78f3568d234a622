"""Kernels that the compile check must refuse, each for a reason of its own, and two that it must not."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.lab import Inputs, Spec


@triton.jit
def copy_kernel(x, y, n, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + index, tl.load(x + index, mask=index < n), mask=index < n)


@triton.jit
def backwards_kernel(x, y, n, BLOCK: tl.constexpr):
    """Elements come in falling order: no two can be loaded at once."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + index, tl.load(x + n - 1 - index, mask=index < n), mask=index < n)


@triton.jit
def softmax_kernel(x, y, BLOCK: tl.constexpr):
    """512 elements a thread stay alive across the sum, and a thread has 255 registers."""
    index = tl.arange(0, BLOCK)
    value = tl.exp(tl.load(x + index).to(tl.float32))
    tl.store(y + index, value / tl.sum(value))


@triton.jit
def product_kernel(x, y, n, BLOCK: tl.constexpr, DEPTH: tl.constexpr):
    """y = x @ x for x (n, n), one tile; what is loaded ahead goes to shared memory."""
    row, column, depth = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :], tl.arange(0, DEPTH)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, n, DEPTH):
        left = tl.load(x + row * n + (start + depth)[None, :])
        total += tl.dot(left, tl.load(x + (start + depth)[:, None] * n + column))
    tl.store(y + row * n + column, total)


@triton.jit
def misspelt_kernel(x, y, BLOCK: tl.constexpr):
    tl.store(y + tl.arange(0, BLOCK), tl.load(x + tl.arange(0, BLOKC)))  # noqa: F821


def launching(kernel, *numbers: int, **options: int):
    def op(x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        kernel[(1,)](x, y, *numbers, **options)
        return y

    return op


def declare(name: str, kernel, *numbers: int, columns: int = 4096, needs_tensor_cores: bool = False, **options: int):
    def inputs(generator: torch.Generator, rows: int, columns: int) -> Inputs:
        return Inputs({"x": torch.randn(rows, columns, generator=generator, dtype=torch.float64)})

    return Spec(
        name=name, op=launching(kernel, *numbers, **options), reference=torch.clone, cases=None, inputs=inputs,
        builds=({"rows": 1, "columns": columns},), needs_tensor_cores=needs_tensor_cores,
    )  # fmt: skip


def good_copy_spec() -> Spec:
    return declare("good_copy", copy_kernel, 4096, BLOCK=4096)


def ragged_copy_spec() -> Spec:
    return declare("ragged_copy", copy_kernel, 4095, columns=4095, BLOCK=4096)


def good_product_spec() -> Spec:
    return declare("good_product", product_kernel, 4096, needs_tensor_cores=True, BLOCK=64, DEPTH=64)


def backwards_spec() -> Spec:
    return declare("backwards", backwards_kernel, 4096, BLOCK=4096)


def spilling_spec() -> Spec:
    return declare("spilling", softmax_kernel, columns=16384, BLOCK=16384, num_warps=1)


def greedy_spec() -> Spec:
    return declare("greedy", product_kernel, 4096, needs_tensor_cores=True, BLOCK=128, DEPTH=128, num_stages=5)


def without_products_spec() -> Spec:
    return declare("without_products", copy_kernel, 4096, needs_tensor_cores=True, BLOCK=4096)


def misspelt_spec() -> Spec:
    return declare("misspelt", misspelt_kernel, BLOCK=4096)
