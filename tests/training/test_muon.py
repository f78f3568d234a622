import pytest
import torch
from torch import nn

from instructgpt.training.muon import Muon, orthogonalize


@pytest.mark.parametrize(("iterations", "low", "high"), [(5, 0.85, 1.15), (3, 0.18, 1.9)])
@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_orthogonalize_brings_singular_values_near_one(shape, iterations, low, high):
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape)
    singular = torch.linalg.svdvals(orthogonalize(matrices, iterations))
    assert low < singular.min() and singular.max() < high
    # It changes lengths, not directions: the result is the polar factor's neighbour.
    u, _, v = torch.linalg.svd(torch.randn(1, *shape), full_matrices=False)
    orthogonal = u @ v
    moved = orthogonalize(orthogonal, iterations)
    cosine = (moved * orthogonal).sum() / moved.norm() / orthogonal.norm()
    assert cosine > 0.999


def test_muon_step_by_hand():
    """First step, no decay: momentum m = (1-μ)g, Nesterov u = (1-μ)g·μ + (1-μ)... reduces to a multiple of g."""
    weight = nn.Parameter(torch.zeros(8, 4))
    weight.grad = torch.randn(8, 4)
    expected = -0.1 * orthogonalize(weight.grad[None])[0] * (8 / 4) ** 0.5
    muon = Muon({"w": weight}, rate=0.1, momentum=0.95, weight_decay=0.0, compute_dtype=torch.float32)
    muon.step(1.0, torch.ones(()))
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-5)
