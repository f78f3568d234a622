"""What the element-wise ops share: tensors seen as rows, rows cut into tiles, one program a tile."""

from __future__ import annotations

from torch import Tensor

from kernels.launch import Launch, cdiv, jit, next_power_of_2, tl, tuned
from kernels.rows import rows_of


@jit
def tile_of(rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows (ROWS, 1) and columns (1, COLUMNS) of this program's tile, in int64, and which of its elements exist."""
    tiles = tl.cdiv(columns, COLUMNS)  # in a row
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = (program % tiles).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return row, column, (row < rows) & (column < columns)


def as_rows(*tensors: Tensor) -> list[Tensor]:
    """Tensors of one shape (..., N) as (rows, N) with stride 1 in a row, or as one long row where all are contiguous.

    Views where strides allow it, as those of the two halves of a tensor's last dimension do; copies elsewhere.
    """
    if all(x.is_contiguous() for x in tensors):
        return [x.view(1, -1) for x in tensors]
    return [rows_of(x) for x in tensors]


def tiles_launch(op: str, x: Tensor, generation: int) -> tuple[Launch, tuple[int]]:
    """How an op is launched on x (rows, columns): the tile, and the grid of one program a tile."""
    rows, columns = x.shape

    def launch(elements: int, num_warps: int) -> Launch:
        width = min(next_power_of_2(max(columns, 1)), elements)
        return Launch({"ROWS": elements // width, "COLUMNS": width}, num_warps)

    if generation == 0:  # the interpreter: small, so that small tests have several tiles, whole ones and cut ones
        chosen = launch(64 if x.numel() <= 4096 else 4096, num_warps=1)
    else:
        # Each warp reads 1,024 bytes of an operand: two 16-byte loads a thread, both in flight.
        default = launch(4 * 1024 // x.element_size(), num_warps=4)
        others = [launch(warps * n // x.element_size(), warps) for warps in (2, 4, 8) for n in (512, 1024, 2048)]
        chosen = tuned(op, f"{x.dtype} {next_power_of_2(max(x.numel(), 1))}", default, others, x.device)
    return chosen, (cdiv(rows, chosen.blocks["ROWS"]) * cdiv(columns, chosen.blocks["COLUMNS"]),)
