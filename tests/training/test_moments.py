from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from instructgpt.training.moments import (
    BLOCK,
    StateFormat,
    decode_means,
    decode_squares,
    encode_means,
    encode_squares,
    round_at_random,
)
from instructgpt.training.optimizer import Optimizer, OptimizerConfig

NARROW: tuple[StateFormat, ...] = tuple(each for each in get_args(StateFormat) if each != "float32")
sizes = st.lists(st.integers(1, 600), min_size=1, max_size=2)


@given(size=sizes, spread=st.floats(0, 6), seed=st.integers(0, 99))
def test_means_are_near(size: list[int], spread: float, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(size) * 10 ** (-spread * torch.rand(size))
    codes, scales = encode_means(x)
    assert codes.dtype == torch.int8 and codes.shape == x.shape and scales.size(-1) == -(-x.size(-1) // BLOCK)
    largest = scales.repeat_interleave(BLOCK, -1)[..., : x.size(-1)]
    # Half the way to the next code: sqrt(|x|/s) is known to 1/254.
    room = largest * ((x.abs() / largest).sqrt() / 127 + 1 / 127**2)
    assert ((decode_means(codes, scales) - x).abs() <= room).all()
    assert (decode_means(codes, scales).sign() * x.sign() >= 0).all()


@given(size=sizes, spread=st.floats(0, 6), seed=st.integers(0, 99))
def test_mean_squares_are_near_and_never_fall_to_zero(size: list[int], spread: float, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.rand(size) * 10 ** (-spread * torch.rand(size)) * (torch.rand(size) > 0.2)
    codes, scales = encode_squares(x, torch.rand(size))
    found = decode_squares(codes, scales)
    assert torch.equal(found > 0, x > 0)
    assert ((found / x).clamp(1e-3)[x > 1e-3 * x.amax()].log().abs() < 0.15).all()


def mean_of(rounded: list[Tensor]) -> Tensor:
    return torch.stack([each.double() for each in rounded]).mean(0)


def test_mean_squares_are_right_on_average() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 300) * torch.logspace(-5, 0, 300)
    coded = mean_of([decode_squares(*encode_squares(x, torch.rand_like(x))) for _ in range(1500)])
    halved = mean_of([round_at_random(x, torch.randint(1 << 16, x.shape, dtype=torch.int32)) for _ in range(1500)])
    assert (coded / x - 1)[x > 1e-4].abs().max() < 0.02 and (coded.sum() / x.sum() - 1).abs() < 1e-3
    assert (halved / x - 1).abs().max() < 1e-3


def test_a_mean_square_falls_where_no_gradient_comes() -> None:
    """By a thousandth a step, far less than the way to the next number: to the nearest, it would stay for ever."""
    for how in NARROW:
        weight = nn.Parameter(torch.zeros(64, 64))
        optimizer = Optimizer({"w": weight}, OptimizerConfig(beta2=0.999, optimizer_state=how))
        weight.grad = torch.ones(64, 64)
        optimizer.step(0.0)
        weight.grad = torch.zeros(64, 64)
        for _ in range(300):
            optimizer.step(0.0)
        part = optimizer.parts[0]
        squares = part.narrow["w"][1].read()  # type: ignore[union-attr]
        assert float(squares.mean()) == pytest.approx(1e-3 * 0.999**300, rel=0.1)


def problem(how: StateFormat, name: str = "adamw", updates: int = 150) -> tuple[Optimizer, nn.Parameter, list[float]]:
    """A regression whose matrix is to be found from noisy batches."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(64, 96, generator=generator)
    weight = nn.Parameter(torch.zeros(64, 96))
    config = OptimizerConfig(
        optimizer=name, learning_rate=0.03, muon_learning_rate=0.2, weight_decay=0.0, optimizer_state=how
    )  # type: ignore[arg-type]
    optimizer = Optimizer({"w": weight}, config)
    losses = [one_update(optimizer, weight, truth, generator) for _ in range(updates)]
    return optimizer, weight, losses


def one_update(optimizer: Optimizer, weight: nn.Parameter, truth: Tensor, generator: torch.Generator) -> float:
    x = torch.randn(32, 64, generator=generator)
    loss = ((x @ weight - x @ truth) ** 2).mean()
    loss.backward()
    optimizer.step(1.0)
    optimizer.zero_grad()
    return float(loss.detach())


@pytest.mark.parametrize("how", NARROW)
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_it_learns_as_float32_does(how: StateFormat, name: str) -> None:
    _, _, narrow = problem(how, name)
    _, _, wide = problem("float32", name)
    assert sum(narrow[-20:]) == pytest.approx(sum(wide[-20:]), rel=0.1)
    assert narrow[-1] < 0.2 * narrow[0]


@pytest.mark.parametrize(("how", "share"), [("bfloat16", 0.5), ("int8", 0.25 + 1 / BLOCK)])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_bytes(how: StateFormat, share: float, name: str) -> None:
    def held(how: StateFormat) -> int:
        config = OptimizerConfig(optimizer=name, optimizer_state=how)  # type: ignore[arg-type]
        optimizer = Optimizer({"w": nn.Parameter(torch.zeros(64, 512)), "b": nn.Parameter(torch.zeros(64))}, config)
        return sum(
            x.nbytes for key, x in optimizer.state().items() if key.endswith("/w") and x.ndim and "mast" not in key
        )

    assert held(how) == pytest.approx(share * held("float32"), rel=0.01)


@pytest.mark.parametrize("how", NARROW)
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_what_is_restored_goes_on_with_the_same_bits(how: StateFormat, name: str) -> None:
    optimizer, weight, _ = problem(how, name, updates=3)
    other, twin, _ = problem(how, name, updates=1)
    other.restore({key: value.clone() for key, value in optimizer.state().items()})
    truth = torch.ones(64, 96)
    for each, parameter in ((optimizer, weight), (other, twin)):
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            one_update(each, parameter, truth, generator)
    assert torch.equal(weight, twin)
    assert all(torch.equal(value, other.state()[key]) for key, value in optimizer.state().items())


@pytest.mark.parametrize("how", NARROW)
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_that_is_none_changes_nothing(how: StateFormat, name: str) -> None:
    optimizer, weight, _ = problem(how, name, updates=3)
    before = {key: value.clone() for key, value in optimizer.state().items() if not key.startswith("roundings")}
    weight.grad = torch.full_like(weight, float("nan"))
    optimizer.step(1.0, torch.zeros(()))
    assert all(torch.equal(value, optimizer.state()[key]) for key, value in before.items())


def test_small_tensors_stay_in_float32_and_large_ones_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Optimizer({"b": nn.Parameter(torch.zeros(100))}, OptimizerConfig(optimizer_state="int8"))
    assert small.state()["exp_avg/b"].dtype == torch.float32
    _, whole, _ = problem("bfloat16", updates=1)
    monkeypatch.setattr("instructgpt.training.adamw._AT_ONCE", 2 * BLOCK)
    for how in NARROW:
        _, _, losses = problem(how, updates=40)
        assert losses[-1] < losses[0] / 2
    _, parts, _ = problem("bfloat16", updates=1)
    assert torch.equal(whole, parts), "before anything was rounded, parts are the whole"
    assert replace(OptimizerConfig(), optimizer_state="int8").optimizer_state == "int8"
