"""What the kernels over rows promise beyond their specs: errors, far rows, and launches that fit their GPUs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels import add_layer_norm, add_rms_norm, cross_entropy, layer_norm, rms_norm
from kernels.launch import INTERPRETED, building_for
from kernels.rows import SHARED_MEMORY, backward_launch, rows_of

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
needs_kernels = pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="kernels cannot run here")


def norms() -> dict[str, Callable[[Tensor], Tensor]]:
    """Each op as a function of x alone."""
    return {
        "rms_norm": lambda x: rms_norm(x, x.new_ones(x.shape[-1]), 1e-5),
        "add_rms_norm": lambda x: add_rms_norm(x, x, x.new_ones(x.shape[-1]), 1e-5)[0],
        "layer_norm": lambda x: layer_norm(x, x.new_ones(x.shape[-1]), None, 1e-5),
        "add_layer_norm": lambda x: add_layer_norm(x, x, x.new_ones(x.shape[-1]), None, 1e-5)[0],
        "cross_entropy": lambda x: cross_entropy(x, torch.arange(len(x), device=x.device)),
    }


@needs_kernels
@pytest.mark.parametrize("columns", [5, 70])  # a row in one block, and in several
@pytest.mark.parametrize("name", norms())
def test_offsets_beyond_31_bits(name: str, columns: int, tmp_path: Path) -> None:
    """Rows 2^30 elements apart: the third starts at 2^31. The file under them has holes instead of 4 GiB."""
    apart = 2**30
    size = 2 * apart + columns
    memory = torch.from_file(str(tmp_path / "rows"), shared=True, size=size, dtype=torch.float16)
    x = memory.as_strided((3, columns), (apart, 1)).to(DEVICE)
    torch.manual_seed(0)
    near = torch.randn(3, columns, dtype=torch.float16)
    x.copy_(near)
    assert rows_of(x).data_ptr() == x.data_ptr()
    x, near = x.requires_grad_(), near.to(DEVICE).requires_grad_()
    y, right = norms()[name](x), norms()[name](near)
    assert torch.equal(y, right)
    dx, right_dx = (torch.autograd.grad(result.square().sum(), leaf)[0] for result, leaf in ((y, x), (right, near)))
    assert torch.equal(dx, right_dx)


@needs_kernels
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x, w: rms_norm(x, w[:3], 1e-5),
            ValueError,
            r"rms_norm: weight is \(3,\); for x \(2, 4\) it must be \(4",
        ),
        (lambda x, w: rms_norm(x.double(), w, 1e-5), TypeError, "rms_norm: x is float64"),
        (lambda x, w: rms_norm(x[0, 0], w, 1e-5), ValueError, r"rms_norm: x is \(\)"),
        (lambda x, w: rms_norm(x[:, :0], w[:0], 1e-5), ValueError, "with N at least 1"),
        (lambda x, w: add_rms_norm(x, x[:1], w, 1e-5), ValueError, r"add_rms_norm: residual is \(1, 4\)"),
        (lambda x, w: layer_norm(x, w, w[:2], 1e-5), ValueError, r"layer_norm: bias is \(2,\)"),
        (lambda x, w: layer_norm(x, w.to("meta"), None, 1e-5), ValueError, "layer_norm: weight is on meta"),
        (lambda x, w: add_layer_norm(x, x.long(), w, w, 1e-5), TypeError, "add_layer_norm: residual is int64"),
    ],
)
def test_bad_input_is_refused(call: Callable[[Tensor, Tensor], Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(torch.ones(2, 4, device=DEVICE), torch.ones(4, device=DEVICE))


@pytest.mark.parametrize("generation", [75, 80, 90, 100])
@pytest.mark.parametrize("n", [1, 64, 4096, 12_288, 16_384])
@pytest.mark.parametrize("bytes_loaded", [4, 6, 8, 12])
def test_tiles_on_their_way_fit_in_shared_memory(generation: int, n: int, bytes_loaded: int) -> None:
    with building_for(generation):
        launch = backward_launch(n, bytes_loaded, torch.device("cpu"))
    tile = launch.blocks["ROWS"] * (launch.blocks["BLOCK"] * bytes_loaded + 8)  # two float32 numbers a row
    assert (launch.blocks["STAGES"] - 1) * tile < SHARED_MEMORY.get(generation, 65_536)
    assert launch.blocks["STAGES"] == 3 or launch.blocks["STAGES"] * tile > SHARED_MEMORY.get(generation, 65_536) - 4096


@needs_kernels
@pytest.mark.parametrize("name", ["rms_norm", "layer_norm"])
def test_gradient_of_the_weight_is_the_same_every_time(name: str) -> None:
    """Sums over 50 rows by 3 programs; rows in another order give other roundings, the same rows never."""
    torch.manual_seed(0)
    x, dy = torch.randn(50, 40, device=DEVICE), torch.randn(50, 40, device=DEVICE)
    weight = torch.randn(40, device=DEVICE, requires_grad=True)
    op = rms_norm if name == "rms_norm" else lambda x, weight, eps: layer_norm(x, weight, None, eps)

    def gradient(order: Tensor) -> Tensor:
        return torch.autograd.grad(op(x[order], weight, 1e-5), weight, dy[order])[0]

    straight = torch.arange(50, device=DEVICE)
    assert torch.equal(gradient(straight), gradient(straight))
    torch.testing.assert_close(gradient(straight.flip(0)), gradient(straight))


@needs_kernels
def test_only_what_is_used_is_differentiated() -> None:
    """Of the norm and the sum either may be unused, and a weight may be frozen."""
    x, residual = (torch.randn(3, 5, device=DEVICE, requires_grad=True) for _ in range(2))
    weight = torch.ones(5, device=DEVICE)
    y, total = add_rms_norm(x, residual, weight, 1e-5)
    dx, dresidual = torch.autograd.grad(total.sum(), (x, residual), retain_graph=True)
    assert dx.eq(1).all() and dresidual.eq(1).all()
    dx, dresidual = torch.autograd.grad(y.sum(), (x, residual))
    assert torch.equal(dx, dresidual) and dx.abs().sum() > 0
