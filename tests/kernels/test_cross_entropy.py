from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kernels import cross_entropy_reference


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1000.0])
def test_equals_torch(smoothing: float, scale: float) -> None:
    torch.manual_seed(0)
    logits, targets = scale * torch.randn(9, 31, dtype=torch.float64), torch.randint(31, (9,))
    expected = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy_reference(logits, targets, smoothing), expected)


def test_z_loss_adds_the_squared_log_partition() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(9, 31, dtype=torch.float64), torch.randint(31, (9,))
    added = cross_entropy_reference(logits, targets, z_loss=0.5) - cross_entropy_reference(logits, targets)
    torch.testing.assert_close(added, 0.5 * logits.exp().sum(-1).log() ** 2)


def test_half_precision_gives_float32() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(9, 31).bfloat16(), torch.randint(31, (9,))
    losses = cross_entropy_reference(logits, targets)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, cross_entropy_reference(logits.float(), targets))


def test_gradient_of_the_docstring() -> None:
    torch.manual_seed(0)
    logits = torch.randn(9, 31, dtype=torch.float64, requires_grad=True)
    targets, dloss = torch.randint(31, (9,)), torch.randn(9, dtype=torch.float64)
    cross_entropy_reference(logits, targets, label_smoothing=0.1, z_loss=0.01).backward(dloss)
    lse = logits.logsumexp(-1, keepdim=True)
    dx = (1 + 2 * 0.01 * lse) * torch.softmax(logits, -1) - 0.9 * F.one_hot(targets, 31) - 0.1 / 31
    torch.testing.assert_close(logits.grad, dloss[:, None] * dx)
