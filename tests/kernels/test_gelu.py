from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from kernels import gelu_reference


def test_equals_torch() -> None:
    x = torch.linspace(-12, 12, 1001, dtype=torch.float64)
    torch.testing.assert_close(gelu_reference(x), F.gelu(x, approximate="tanh"))


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
