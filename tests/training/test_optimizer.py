import pytest
import torch
from torch import nn

from instructgpt.training.optimizer import Muon, Optimizer, OptimizerConfig, is_hidden_matrix, orthogonalize


def parameters(dtype=torch.float32):
    torch.manual_seed(0)
    shapes = {
        "embedding.weight": (10, 4),
        "blocks.0.up.weight": (8, 4),
        "blocks.1.up.weight": (8, 4),
        "norm.weight": (4,),
    }
    return {name: nn.Parameter(torch.randn(shape).to(dtype)) for name, shape in shapes.items()}


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
    Muon([weight], lr=0.1, momentum=0.95, weight_decay=0.0, compute_dtype=torch.float32).step()
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-5)


def test_muon_takes_hidden_matrices_only():
    named = {
        "embedding.weight": (9, 4),
        "head_weight": (9, 4),
        "blocks.0.mlp.up.weight": (8, 4),
        "blocks.0.attention.qk_conv.weight": (3, 4),
        "norm.weight": (4,),
    }
    taken = [name for name, shape in named.items() if is_hidden_matrix(name, torch.zeros(shape))]
    assert taken == ["blocks.0.mlp.up.weight"]
    assert not is_hidden_matrix("blocks.0.norm.weight", torch.zeros(4))


def test_vectors_do_not_decay():
    named = parameters()
    before = {n: p.detach().clone() for n, p in named.items()}
    optimizer = Optimizer(named, OptimizerConfig(learning_rate=0.1, weight_decay=0.5))
    for p in named.values():
        p.grad = torch.zeros_like(p)
    optimizer.step(1.0)
    assert torch.equal(named["norm.weight"], before["norm.weight"])
    torch.testing.assert_close(named["blocks.0.up.weight"].detach(), before["blocks.0.up.weight"] * 0.95)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_state_round_trip_continues_identically(kind):
    config = OptimizerConfig(optimizer=kind)
    torch.manual_seed(1)
    gradients = [{n: torch.randn_like(p) for n, p in parameters().items()} for _ in range(6)]

    def run(named, optimizer, chosen):
        for grads in chosen:
            for n, p in named.items():
                p.grad = grads[n].clone()
            optimizer.step(1.0)

    straight = parameters()
    run(straight, Optimizer(straight, config), gradients)
    first = parameters()
    optimizer = Optimizer(first, config)
    run(first, optimizer, gradients[:3])
    state = {k: v.clone() for k, v in optimizer.state().items()}
    second = {n: nn.Parameter(torch.zeros_like(p)) for n, p in first.items()}
    resumed = Optimizer(second, config)
    resumed.restore(state)
    run(second, resumed, gradients[3:])
    assert all(torch.equal(straight[n], second[n]) for n in straight)


def test_master_weights_keep_updates_that_bfloat16_would_lose():
    named = {"w": nn.Parameter(torch.full((2, 2), 256.0, dtype=torch.bfloat16))}  # spacing there is 2
    optimizer = Optimizer(named, OptimizerConfig(learning_rate=0.1, weight_decay=0.0))
    for _ in range(30):
        named["w"].grad = torch.ones(2, 2, dtype=torch.bfloat16)
        optimizer.gather_gradients()
        optimizer.step(1.0)
        optimizer.zero_grad()
    assert optimizer.masters["w"].dtype == torch.float32
    torch.testing.assert_close(optimizer.masters["w"].detach(), torch.full((2, 2), 253.0), rtol=1e-3, atol=0)
    assert (named["w"] < 256).all(), "thirty steps of 0.1 must have reached the bfloat16 weights"
