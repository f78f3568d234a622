import pytest
import torch
from torch import nn

from instructgpt.training.optimizer import Optimizer, OptimizerConfig, is_hidden_matrix


def parameters(dtype=torch.float32):
    torch.manual_seed(0)
    shapes = {
        "embedding.weight": (10, 4),
        "blocks.0.up.weight": (8, 4),
        "blocks.1.up.weight": (8, 4),
        "norm.weight": (4,),
    }
    return {name: nn.Parameter(torch.randn(shape).to(dtype)) for name, shape in shapes.items()}


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


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("spoilt", [float("nan"), float("inf"), 1.0])
def test_a_forbidden_step_changes_nothing(kind, spoilt):
    """Neither weights, nor moments, nor the count of steps; what is not finite stays out of all of them."""
    named = parameters()
    optimizer = Optimizer(named, OptimizerConfig(optimizer=kind))

    def step(is_good):
        for p in named.values():
            p.grad = torch.ones_like(p) if is_good else torch.full_like(p, spoilt)
        optimizer.step(1.0, torch.tensor(float(is_good)))

    step(True)
    before = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    step(False)
    assert all(torch.equal(before[name], tensor) for name, tensor in optimizer.state().items())
    step(True)
    changed = [name for name, tensor in optimizer.state().items() if not torch.equal(before[name], tensor)]
    assert len(changed) == len(before)


def test_adamw_is_torchs_own():
    named, theirs = parameters(), parameters()
    ours = Optimizer(named, OptimizerConfig(learning_rate=0.01, weight_decay=0.1))
    matrices, vectors = [p for p in theirs.values() if p.ndim > 1], [p for p in theirs.values() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95))
    for _ in range(3):
        for name, p in named.items():
            p.grad = torch.randn_like(p)
            theirs[name].grad = p.grad.clone()
        ours.step(0.5)
        for group in reference.param_groups:
            group["lr"] = 0.01 * 0.5
        reference.step()
    for name, p in named.items():
        torch.testing.assert_close(p.detach(), theirs[name].detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_parameter_without_a_gradient_stays(kind):
    named = parameters()
    named["blocks.0.other.weight"] = nn.Parameter(torch.ones(3, 3))  # alone of its shape
    optimizer = Optimizer(named, OptimizerConfig(optimizer=kind, weight_decay=0.5))
    for name in ("embedding.weight", "norm.weight"):
        named[name].grad = torch.ones_like(named[name])
    optimizer.step(1.0)
    assert torch.equal(named["blocks.0.other.weight"].detach(), torch.ones(3, 3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_step_waits_for_nothing_on_cuda(kind):
    named = {name: nn.Parameter(p.detach().cuda()) for name, p in parameters().items()}
    optimizer = Optimizer(named, OptimizerConfig(optimizer=kind), torch.bfloat16)
    is_good = torch.ones((), device="cuda")
    for p in named.values():
        p.grad = torch.ones_like(p)
    optimizer.step(1.0, is_good)
    before = {name: p.detach().clone() for name, p in named.items()}
    torch.cuda.set_sync_debug_mode("error")  # whatever waits raises
    try:
        optimizer.step(0.5, is_good)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not any(torch.equal(before[name], p) for name, p in named.items())
