from __future__ import annotations

import torch
import torch.nn.functional as F

from kernels import swiglu_reference


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
