from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from kernels import cross_entropy, cross_entropy_reference
from kernels.cross_entropy import cross_entropy_forward
from kernels.launch import INTERPRETED

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
needs_kernels = pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="kernels cannot run here")


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


def test_ignored_rows_cost_nothing() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    losses = cross_entropy_reference(logits, torch.tensor([1, -100, 2]), 0.1, 0.01)
    assert losses[1] == 0 and (losses[[0, 2]] > 0).all()
    (dlogits,) = torch.autograd.grad(losses.sum(), logits)
    assert dlogits[1].eq(0).all()


@pytest.mark.parametrize("function", [cross_entropy_reference, pytest.param(cross_entropy, marks=needs_kernels)])
def test_a_masked_vocabulary(function: Callable[..., torch.Tensor]) -> None:
    """Tokens that may not occur have probability 0; with smoothing, which gives them a share, the loss is infinite."""
    logits = torch.zeros(1, 70, device=DEVICE)
    logits[0, :68] = -torch.inf
    logits.requires_grad_()
    losses = function(logits, torch.tensor([69], device=DEVICE))
    assert losses.item() == pytest.approx(0.6931472)
    (dlogits,) = torch.autograd.grad(losses.sum(), logits)
    assert dlogits[0, 68:].tolist() == pytest.approx([0.5, -0.5]) and dlogits[0, :68].eq(0).all()
    assert function(logits, torch.tensor([69], device=DEVICE), 0.1).item() == torch.inf


@needs_kernels
@pytest.mark.parametrize("scale", [0.0, 1.0, -2.5])
def test_rows_that_need_no_scaling(scale: float) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(4, 70, device=DEVICE, requires_grad=True), torch.randint(70, (4,), device=DEVICE)
    dlosses = torch.tensor([scale, 1.0, 0.0, 3.0], device=DEVICE)
    got, right = (
        torch.autograd.grad(f(logits, targets, 0.1), logits, dlosses)[0]
        for f in (cross_entropy, cross_entropy_reference)
    )
    torch.testing.assert_close(got, right)


@needs_kernels
def test_nothing_of_the_callers_is_overwritten_and_a_second_backward_is_refused() -> None:
    logits = torch.randn(4, 70, device=DEVICE, requires_grad=True)
    before = logits.detach().clone()
    loss = 2 * cross_entropy(logits, torch.arange(4, device=DEVICE)).sum()
    loss.backward(retain_graph=True)
    assert torch.equal(logits, before)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@needs_kernels
def test_a_target_outside_of_the_vocabulary_is_nan() -> None:
    logits = torch.randn(4, 70, device=DEVICE, requires_grad=True)
    losses = cross_entropy(logits, torch.tensor([70, -1, 69, -100], device=DEVICE))
    assert losses.isnan().tolist() == [True, True, False, False]
    (dlogits,) = torch.autograd.grad(losses.sum(), logits)
    assert dlogits.isnan().any(-1).tolist() == [True, True, False, False]


@needs_kernels
def test_no_gradient_is_stored_that_nobody_asked_for() -> None:
    logits, targets = torch.randn(4, 70, device=DEVICE), torch.arange(4, device=DEVICE)
    losses, gradient = cross_entropy_forward(logits, targets, 0.0, 0.0, -100, False)
    assert gradient.shape == (0, 70)
    assert torch.equal(losses, cross_entropy(logits.requires_grad_(), targets))


@needs_kernels
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(2, 3, 4), torch.zeros(2).long()), ValueError, r"logits are \(2, 3, 4\)"),
        ((torch.ones(2, 4), torch.zeros(3).long()), ValueError, r"targets \(3,\)"),
        ((torch.ones(2, 0), torch.zeros(2).long()), ValueError, "V at least 1"),
        ((torch.ones(2, 4), torch.zeros(2)), TypeError, "targets is float32; it must be one of int64"),
        ((torch.ones(2, 4).double(), torch.zeros(2).long()), TypeError, "logits is float64"),
        ((torch.ones(2, 4), torch.zeros(2).long(), 1.5), ValueError, "label_smoothing is 1.5"),
    ],
)
def test_bad_input_is_refused(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cross_entropy(*(t.to(DEVICE) if isinstance(t, torch.Tensor) else t for t in arguments))
