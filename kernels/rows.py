"""What the kernels that normalise rows share: rows in memory, the launches, and the gradient of a weight.

The gradient of a weight is a sum over every row. Atomic additions would make its last digits depend on the order in
which programs finish. Here each of a few persistent programs, one for each multiprocessor, takes many rows, sums them
in registers, and writes one partial row. The partial rows are a few percent of what is read; torch
sums them, always in the same order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.launch import Launch, cdiv, chosen_once, generation, next_power_of_2, once_per_signature, require

SHARED_MEMORY = {80: 166_912, 90: 232_448, 100: 232_448}
"""Bytes that a program may have, by generation. Others have at least 65,536 (Turing)."""


def rows_of(x: Tensor) -> Tensor:
    """x (..., N) as (rows, N) with a last stride of 1: a view if its rows lie at one distance, else a copy."""
    flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    return flat if flat.stride(1) == 1 else flat.contiguous()


@once_per_signature
def require_rows(
    op: str, x: Tensor, residual: Tensor | None, weight: Tensor | None = None, bias: Tensor | None = None
) -> None:
    """Refuses what a norm does not take: ValueError for a shape or device, TypeError for a dtype."""
    given = {"x": x, "residual": residual, "weight": weight, "bias": bias}
    require(op, {name: tensor for name, tensor in given.items() if tensor is not None})
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"{op}: x is {tuple(x.shape)}; it must be (..., N) with N at least 1")
    for name, tensor in given.items():
        shape = x.shape if name in ("x", "residual") else x.shape[-1:]
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{op}: {name} is {tuple(tensor.shape)}; for x {tuple(x.shape)} it must be {tuple(shape)}")


def results_like(x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """Room for a norm's result and for x + residual, which is empty if nothing is added."""
    dtype = None if residual is None or residual.dtype == x.dtype else torch.promote_types(x.dtype, residual.dtype)
    y = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    return y, y.new_empty(0) if residual is None else torch.empty_like(y)


def longest_block(device: torch.device) -> int:
    """The longest row that one program holds in registers; longer ones are walked through in blocks of this width.

    16,384 float32 numbers are a quarter of a multiprocessor's registers, and the backward holds three such rows, with
    the next one on its way in shared memory, of which consumers' GPUs have too little. In the interpreter it is short,
    so that small inputs try both ways.
    """
    if generation(device) == 0:
        return 64
    return 16_384 if generation(device) in SHARED_MEMORY else 8_192


def forward_launch(n: int, device: torch.device) -> Launch:
    """For rows of n that fit a block: about 4,096 elements a program, 16 a thread."""
    block = next_power_of_2(n)
    if generation(device) == 0:
        return Launch({"ROWS": 4, "BLOCK": block})
    rows = max(1, 4096 // block)
    return Launch({"ROWS": rows, "BLOCK": block}, num_warps=max(8, block // 1024))


def backward_launch(n: int, bytes_loaded: int, device: torch.device) -> Launch:
    """For rows of n that fit a block, where `bytes_loaded` is what a program loads for each element of a tile, besides
    up to two float32 numbers for each row, which weigh as much as the elements where rows are short.

    Few programs run, so each must have much on its way from memory: a tile is loaded one or two tiles before it is
    computed (STAGES - 1), as far as shared memory holds it.
    """
    block = next_power_of_2(n)
    if generation(device) == 0:
        return Launch({"ROWS": 2, "BLOCK": block, "STAGES": 1})
    rows = max(1, 8192 // block)
    ahead = (SHARED_MEMORY.get(generation(device), 65_536) - 4096) // (rows * (block * bytes_loaded + 8))
    return Launch({"ROWS": rows, "BLOCK": block, "STAGES": 1 + min(2, ahead)}, num_warps=max(8, block // 512))


@chosen_once
def norm_forward_launch(rows: int, n: int, device: torch.device) -> tuple[Launch, tuple[int], bool]:
    """For a norm of rows of n: the launch, its grid, and whether a row fits a block."""
    if n > longest_block(device):
        return long_launch(device), (rows,), False
    launch = forward_launch(n, device)
    return launch, (cdiv(rows, launch.blocks["ROWS"]),), True


@chosen_once
def norm_backward_launch(
    rows: int, n: int, x: torch.dtype, weight: torch.dtype, loaded: int, device: torch.device
) -> tuple[Launch, int, bool]:
    """For the backward of a norm of rows of n, of which a program loads `loaded` tensors like x: the launch, its
    persistent programs, and whether each holds whole rows.

    A weight in float32 beside narrower rows, as under autocast, takes registers that the longest rows leave to nobody.
    """
    longest = longest_block(device)
    if n > (longest if weight == x else min(longest, 8_192)):
        return long_launch(device), persistent_programs(device, rows), False
    launch = backward_launch(n, loaded * x.itemsize, device)
    return launch, persistent_programs(device, cdiv(rows, launch.blocks["ROWS"])), True


def long_launch(device: torch.device) -> Launch:
    """For rows that do not fit a block."""
    if generation(device) == 0:
        return Launch({"BLOCK": longest_block(device)})
    return Launch({"BLOCK": 4096}, num_warps=8)


def persistent_programs(device: torch.device, tiles: int) -> int:
    """How many programs share `tiles`: one for each multiprocessor. In the interpreter 3, so that each has several, but
    as many as on a GPU where there are many tiles."""
    if device.type == "cuda":
        return min(tiles, torch.cuda.get_device_properties(device).multi_processor_count)
    return min(tiles, 132 if generation(device) or tiles > 64 else 3)
