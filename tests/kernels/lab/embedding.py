"""An index op for the lab's tests: y = weight[index], its gradient added up by atomics."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from kernels.lab import Inputs, Spec
from kernels.launch import jit, tl


def embedding_reference(weight: Tensor, index: Tensor) -> Tensor:
    return weight[index]


@jit
def gather_kernel(weight, index, y, columns, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    value = tl.load(weight + tl.load(index + row) * columns + column, mask=column < columns)
    tl.store(y + row * columns + column, value, mask=column < columns)


@jit
def scatter_kernel(dy, index, dweight, columns, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    value = tl.load(dy + row * columns + column, mask=column < columns).to(tl.float32)
    tl.atomic_add(dweight + tl.load(index + row) * columns + column, value, mask=column < columns)


class Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, index: Tensor) -> Tensor:
        weight, index = weight.contiguous(), index.contiguous()
        ctx.save_for_backward(weight, index)
        y = weight.new_empty(len(index), weight.size(1))
        gather_kernel[(len(index),)](weight, index, y, weight.size(1), 16)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        weight, index = ctx.saved_tensors
        dweight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        dy = gradients[0].contiguous()
        scatter_kernel[(len(index),)](dy, index, dweight, weight.size(1), 16)
        return dweight.to(weight.dtype), None


def embedding(weight: Tensor, index: Tensor) -> Tensor:
    return Embedding.apply(weight, index)  # pyright: ignore[reportReturnType]


def spec(**changes: Any) -> Spec:
    def inputs(generator: torch.Generator, rows: int, columns: int) -> Inputs:
        weight = torch.randn(3, columns, generator=generator, dtype=torch.float64)
        return Inputs(
            {"weight": weight, "index": torch.randint(3, (rows,), generator=generator)}, gradients=("weight",)
        )

    declared = Spec(
        name="embedding",
        op=embedding,
        reference=embedding_reference,
        cases=st.fixed_dictionaries({"rows": st.integers(1, 40), "columns": st.integers(1, 16)}),
        inputs=inputs,
        order="atomics",
    )
    return replace(declared, **changes)
