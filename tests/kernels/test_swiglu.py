from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kernels import elementwise, swiglu_reference
from kernels.launch import INTERPRETED, building_for
from kernels.swiglu import swiglu

needs_kernels = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="no Triton, no CUDA device"
)
DEVICE = "cpu" if INTERPRETED else "cuda"


def test_equals_torch() -> None:
    torch.manual_seed(0)
    gate, up = 10 * torch.randn(2, 5, 13, dtype=torch.float64)
    torch.testing.assert_close(swiglu_reference(gate, up), F.silu(gate) * up)


def test_half_precision_rounds_once() -> None:
    torch.manual_seed(0)
    gate, up = torch.randn(2, 5, 13).bfloat16()
    assert torch.equal(swiglu_reference(gate, up), swiglu_reference(gate.float(), up.float()).bfloat16())


def test_gradient_of_the_docstring() -> None:
    torch.manual_seed(0)
    gate = torch.randn(5, 13, dtype=torch.float64, requires_grad=True)
    up = torch.randn(5, 13, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(5, 13, dtype=torch.float64)
    swiglu_reference(gate, up).backward(dy)
    sigma = torch.sigmoid(gate)
    torch.testing.assert_close(gate.grad, dy * up * sigma * (1 + gate * (1 - sigma)))
    torch.testing.assert_close(up.grad, dy * gate * sigma)


def test_halves_of_a_tensor_are_read_where_they_lie() -> None:
    both = torch.randn(2, 3, 2 * 8)
    gate, up = both.chunk(2, dim=-1)
    rows, strides, size = elementwise.as_rows(gate, up)
    assert [row.data_ptr() for row in rows] == [gate.data_ptr(), up.data_ptr()]
    assert (strides, size) == ((16, 16), (6, 8)) and [row.stride() for row in rows] == [(16, 1)] * 2
    whole, strides, size = elementwise.as_rows(both, both)
    assert all(x is both for x in whole) and (strides, size) == ((96, 96), (1, 96))
    # Rows at uneven distances are copied.
    (copied,), strides, size = elementwise.as_rows(both[:, :2, :8])
    assert torch.equal(copied, both[:, :2, :8].reshape(4, 8)) and (strides, size) == ((8,), (4, 8))


def test_tiles_cover_all_and_their_loads_are_wide() -> None:
    for rows, columns in ((1, 1), (1, 10**7), (64, 11008), (1000, 70), (7, 4097)):
        with building_for(90):
            launch, (programs,) = elementwise.tiles_launch("swiglu", rows, columns, torch.bfloat16, torch.device("cpu"))
        tile = launch.blocks["ROWS"] * launch.blocks["COLUMNS"]
        assert rows * columns <= programs * tile
        assert tile * 2 == 4 * 32 * 32  # two 16-byte loads for each of 4 warps' threads


@needs_kernels
def test_a_row_begins_beyond_two_to_the_31() -> None:
    # The second row's offset does not fit 32 bits; pages between the rows are never touched, so memory is not needed.
    storage = torch.empty(2**31 + 2**20, dtype=torch.float16, device=DEVICE)
    gate = torch.as_strided(storage, (2, 8), (2**31 + 16, 1))
    gate[0], gate[1] = 1.0, 2.0
    up = torch.ones(2, 8, dtype=torch.float16, device=DEVICE)
    torch.testing.assert_close(swiglu(gate, up), swiglu_reference(gate, up))


@needs_kernels
def test_refuses_what_it_cannot_compute() -> None:
    x = torch.ones(2, 4, device=DEVICE)
    with pytest.raises(ValueError, match=r"swiglu: gate is \(2, 4\) and up \(2, 3\); they must be of one shape"):
        swiglu(x, x[:, :3])
    with pytest.raises(TypeError, match=r"swiglu: gate is torch\.float32 and up torch\.float16"):
        swiglu(x, x.half())
    with pytest.raises(TypeError, match="swiglu: gate is float64"):
        swiglu(x.double(), x)
