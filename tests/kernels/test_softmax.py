from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import softmax, softmax_reference
from kernels.launch import INTERPRETED, building_for
from kernels.softmax import softmax_launch

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of NaN in the interpreter
needs_kernels = pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="kernels cannot run here")


@given(
    rows=st.integers(1, 5), columns=st.integers(1, 40), scale=st.sampled_from([0.0, 1.0, 1e4]), seed=st.integers(0, 99)
)
def test_equals_torch(rows: int, columns: int, scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    x = scale * torch.randn(rows, columns, dtype=torch.float64)
    torch.testing.assert_close(softmax_reference(x), torch.softmax(x, -1))


def test_masked_entries_weigh_nothing() -> None:
    y = softmax_reference(torch.tensor([[0.0, -torch.inf, 0.0]]))
    assert y.tolist() == [[0.5, 0.0, 0.5]]


def test_half_precision_rounds_once() -> None:
    torch.manual_seed(0)
    x = 5 * torch.randn(4, 300).bfloat16()
    assert torch.equal(softmax_reference(x), softmax_reference(x.float()).bfloat16())


def test_gradient_of_the_docstring() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(3, 7, dtype=torch.float64)
    y = softmax_reference(x)
    y.backward(dy)
    torch.testing.assert_close(x.grad, y * (dy - (dy * y).sum(-1, keepdim=True)))


def test_causal_is_a_mask_before_and_scale_a_factor() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, dtype=torch.float64)  # the last of 3 queries stands at the last of 5 keys
    may_attend = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    right = torch.softmax((0.5 * x).masked_fill(~may_attend, -torch.inf), -1)
    torch.testing.assert_close(softmax_reference(x, 0.5, causal=True), right)


@needs_kernels
def test_a_query_without_a_key_gives_zeros_and_a_gradient_of_zeros() -> None:
    for function in (softmax_reference, softmax):
        x = torch.randn(1, 4, 2, device=DEVICE).requires_grad_()
        y = function(x, causal=True)
        (dx,) = torch.autograd.grad(y.square().sum(), x)
        assert y[0, :2].eq(0).all() and y[0, 2].tolist() == [1, 0] and dx.isfinite().all() and dx[0, :2].eq(0).all()


@needs_kernels
def test_empty_tensors_stay_empty() -> None:
    for shape in ((0, 3), (3, 0), (2, 0, 4)):
        x = torch.empty(shape, device=DEVICE, requires_grad=True)
        y = softmax(x, causal=True)
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert y.shape == dx.shape == shape


@needs_kernels
def test_refuses_what_it_cannot_compute() -> None:
    with pytest.raises(TypeError, match="softmax: x is float64; it must be one of float32, float16, bfloat16"):
        softmax(torch.zeros(3, dtype=torch.float64, device=DEVICE))
    with pytest.raises(ValueError, match=r"x has shape \(3,\); it must be \(\.\.\., queries, keys\)"):
        softmax(torch.zeros(3, device=DEVICE), causal=True)
    with pytest.raises(ValueError, match=r"x has shape \(\); it must be \(\.\.\., N\)"):
        softmax(torch.zeros((), device=DEVICE))


@needs_kernels
def test_leading_dimensions_are_rows() -> None:
    x = torch.randn(2, 3, 4, 5, 130, device=DEVICE)
    torch.testing.assert_close(softmax(x, 2.0, causal=True), softmax_reference(x, 2.0, causal=True))


def test_a_launch_holds_a_row_or_loops() -> None:
    for generation in (0, 80, 90, 100):
        for columns in (1, 3, 64, 65, 1000, 4096, 16384, 16385, 131072):
            with building_for(generation):
                launch, _, is_one_block = softmax_launch("softmax", 1000, columns, torch.float32, torch.device("cpu"))
            block = launch.blocks["COLUMNS"]
            assert block & (block - 1) == 0 and (block >= columns) == is_one_block
            assert launch.blocks["ROWS"] * block <= 32 * 32 * launch.num_warps  # at most 32 elements a thread


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.mem_get_info()[1] < 2**34, reason="needs a CUDA device with 16 GB"
)
def test_offsets_beyond_31_bits() -> None:
    x = torch.zeros(2**16 + 1, 2**15 + 64, device="cuda", dtype=torch.bfloat16)
    x[-1, 7] = 20.0
    y = softmax(x)
    assert y[-1, 7] > 0.99 and y[0, 0] < 1e-4
