"""What the element-wise ops share: tensors seen as rows, rows cut into tiles, one program a tile."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.launch import Launch, cdiv, chosen_once, generation, jit, next_power_of_2, tl, tuned
from kernels.rows import rows_of


@jit
def tile_of(rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows (ROWS, 1) and columns (1, COLUMNS) of this program's tile, in int64, and which of its elements exist."""
    tiles = tl.cdiv(columns, COLUMNS)  # in a row
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = (program % tiles).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return row, column, (row < rows) & (column < columns)


def as_rows(*tensors: Tensor) -> tuple[Sequence[Tensor], tuple[int, ...], tuple[int, int]]:
    """Tensors of one shape (..., N), each of whose rows is contiguous; how far apart their rows are; rows and columns.

    Where all are contiguous they are one long row. Else they are seen as (rows, N): in place where strides allow it, as
    those of the two halves of a tensor's last dimension do, copied elsewhere.
    """
    if all(x.is_contiguous() for x in tensors):
        size = tensors[0].numel()
        return tensors, (size,) * len(tensors), (1, size)
    tensors = tuple([rows_of(x) for x in tensors])
    rows, columns = tensors[0].shape
    return tensors, tuple([x.stride(0) for x in tensors]), (rows, columns)


@chosen_once
def tiles_launch(
    op: str, rows: int, columns: int, dtype: torch.dtype, device: torch.device
) -> tuple[Launch, tuple[int]]:
    """How an op is launched on rows of `columns` elements: the tile, and the grid of one program a tile."""

    def launch(elements: int, num_warps: int) -> Launch:
        width = min(next_power_of_2(max(columns, 1)), elements)
        return Launch({"ROWS": elements // width, "COLUMNS": width}, num_warps)

    size, itemsize = rows * columns, dtype.itemsize
    if generation(device) == 0:  # the interpreter: small, so that small tests have several tiles, some cut
        chosen = launch(64 if size <= 4096 else 4096, num_warps=1)
    else:
        # Each warp reads 1,024 bytes of an operand: two 16-byte loads a thread, both in flight.
        default = launch(4 * 1024 // itemsize, num_warps=4)
        others = [launch(warps * n // itemsize, warps) for warps in (2, 4, 8) for n in (512, 1024, 2048)]
        chosen = tuned(op, f"{dtype} {next_power_of_2(max(size, 1))}", default, others, device)
    return chosen, (cdiv(rows, chosen.blocks["ROWS"]) * cdiv(columns, chosen.blocks["COLUMNS"]),)
