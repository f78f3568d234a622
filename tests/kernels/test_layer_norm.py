from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kernels import layer_norm_reference


@pytest.mark.parametrize("has_bias", [True, False])
def test_equals_torch(has_bias: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5, 3, 13, dtype=torch.float64) + 7.0, torch.randn(13, dtype=torch.float64)
    bias = torch.randn(13, dtype=torch.float64) if has_bias else None
    for eps in (1e-5, 0.1):
        torch.testing.assert_close(
            layer_norm_reference(x, weight, bias, eps), F.layer_norm(x, (13,), weight, bias, eps)
        )


def test_half_precision_rounds_once() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4, 64).bfloat16(), torch.randn(64)
    wide = layer_norm_reference(x.float(), weight, None, 1e-5)
    assert torch.equal(layer_norm_reference(x, weight, None, 1e-5), wide.bfloat16())


def test_gradient_of_the_docstring() -> None:
    torch.manual_seed(0)
    x, dy = torch.randn(5, 13, dtype=torch.float64, requires_grad=True), torch.randn(5, 13, dtype=torch.float64)
    weight = torch.randn(13, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(13, dtype=torch.float64, requires_grad=True)
    layer_norm_reference(x, weight, bias, 1e-5).backward(dy)
    r = (x.var(-1, keepdim=True, correction=0) + 1e-5).rsqrt()
    normed, g = (x - x.mean(-1, keepdim=True)) * r, dy * weight
    dx = r * (g - g.mean(-1, keepdim=True) - normed * (g * normed).mean(-1, keepdim=True))
    torch.testing.assert_close(x.grad, dx)
    torch.testing.assert_close(weight.grad, (dy * normed).sum(0))
    torch.testing.assert_close(bias.grad, dy.sum(0))
