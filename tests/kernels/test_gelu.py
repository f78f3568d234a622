from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from kernels import gelu_reference
from kernels.gelu import FORMS, gelu
from kernels.launch import INTERPRETED

needs_kernels = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="no Triton, no CUDA device"
)
DEVICE = "cpu" if INTERPRETED else "cuda"


@pytest.mark.parametrize("form", FORMS)
def test_equals_torch(form: str) -> None:
    x = torch.linspace(-12, 12, 1001, dtype=torch.float64)
    torch.testing.assert_close(gelu_reference(x, form), F.gelu(x, approximate=form))


def test_tanh_is_the_default() -> None:
    x = torch.linspace(-4, 4, 101)
    assert torch.equal(gelu_reference(x), gelu_reference(x, "tanh"))
    assert not torch.equal(gelu_reference(x), gelu_reference(x, "none"))


def test_half_precision_rounds_once() -> None:
    x = torch.linspace(-4, 4, 101).bfloat16()
    assert torch.equal(gelu_reference(x), gelu_reference(x.float()).bfloat16())


def test_gradient_of_the_docstring() -> None:
    x = torch.linspace(-4, 4, 101, dtype=torch.float64, requires_grad=True)
    gelu_reference(x).sum().backward()
    slope = math.sqrt(2 / math.pi)
    tanh = torch.tanh(slope * (x + 0.044715 * x**3))
    dx = (1 + tanh) / 2 + x / 2 * (1 - tanh**2) * slope * (1 + 3 * 0.044715 * x**2)
    torch.testing.assert_close(x.grad, dx)


@needs_kernels
@pytest.mark.parametrize("form", FORMS)
def test_far_from_zero(form: str) -> None:
    # Nothing passes on the left and everything on the right; -0.0 counts as 0.
    x = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4], device=DEVICE, requires_grad=True)
    y = gelu(x, form)
    y.sum().backward()
    assert y.tolist() == [0.0, 0.0, 0.0, 100.0, 1e4]
    assert x.grad is not None and x.grad.tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


@needs_kernels
def test_the_far_left_is_not_cancelled() -> None:
    # 1 + tanh u is a difference of numbers near 1; the logistic form keeps all digits of what little passes.
    x = torch.linspace(-6, -3, 50, device=DEVICE)
    torch.testing.assert_close(gelu(x), gelu_reference(x.double()).float(), rtol=2e-5, atol=0.0)


@needs_kernels
def test_refuses_what_it_cannot_compute() -> None:
    with pytest.raises(ValueError, match='gelu: approximate is "erf"; it must be "tanh" or "none"'):
        gelu(torch.ones(2, device=DEVICE), "erf")
    with pytest.raises(TypeError, match="gelu: x is float64"):
        gelu(torch.ones(2, device=DEVICE, dtype=torch.float64))


@needs_kernels
def test_the_slope_keeps_its_digits_where_nearly_all_of_x_passes() -> None:
    """There 1 - P has few digits left, if it is computed as that difference."""
    x = torch.linspace(2, 4, 201, dtype=torch.float64)
    x32, x64 = (x.to(DEVICE, dtype).requires_grad_() for dtype in (torch.float32, torch.float64))
    x64.data.copy_(x32)  # the same rounded numbers
    gelu(x32, "tanh").sum().backward()
    gelu_reference(x64, "tanh").sum().backward()
    assert x32.grad is not None and x64.grad is not None
    assert float((x32.grad - x64.grad).abs().max()) < 2.5e-7  # two of float32's spacings at 1
