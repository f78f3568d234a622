from __future__ import annotations

import torch
import torch.nn.functional as F

from kernels import rms_norm_reference


def test_equals_torch() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5, 3, 13, dtype=torch.float64), torch.randn(13, dtype=torch.float64)
    for scale, eps in ((1.0, 1e-5), (1e-3, 1e-5), (0.0, 1e-6)):
        torch.testing.assert_close(
            rms_norm_reference(scale * x, weight, eps), F.rms_norm(scale * x, (13,), weight, eps)
        )


def test_half_precision_rounds_once() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4, 64).bfloat16(), torch.randn(64)
    assert torch.equal(rms_norm_reference(x, weight, 1e-5), rms_norm_reference(x.float(), weight, 1e-5).bfloat16())


def test_gradient_of_the_docstring() -> None:
    torch.manual_seed(0)
    x, dy = torch.randn(5, 13, dtype=torch.float64, requires_grad=True), torch.randn(5, 13, dtype=torch.float64)
    weight = torch.randn(13, dtype=torch.float64, requires_grad=True)
    rms_norm_reference(x, weight, 1e-5).backward(dy)
    r = (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    normed, g = x * r, dy * weight
    torch.testing.assert_close(x.grad, r * (g - normed * (g * normed).mean(-1, keepdim=True)))
    torch.testing.assert_close(weight.grad, (dy * normed).sum(0))
