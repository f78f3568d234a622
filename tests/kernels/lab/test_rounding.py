"""The estimate of what float32 loses: of the right size, for sums, differences and products, and the same each time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kernels.lab.limits import Limit, Wrong, differences
from kernels.lab.rounding import LEAST, UNIT, RandomRounding, to_float32s_digits


def lost(function, *tensors: Tensor, operand: torch.dtype = torch.float32, runs: int = 4) -> Tensor:
    """The root mean square of each element's."""
    rounded = []
    for seed in range(runs):
        with RandomRounding(seed, operand):
            rounded.append(function(*tensors))
    return differences(function(*tensors), rounded).square().mean(0).sqrt()


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).double()


def test_what_float32_holds_exactly_loses_nothing():
    x = random(100)
    for exact in (torch.neg, torch.relu, torch.clone, lambda t: t * 4, lambda t: t[3:].flip(0), lambda t: t.max()):
        assert not lost(exact, x).any()
    assert not lost(lambda t: t.sum(0), x[:1]).any()  # a single term


def test_tensors_of_another_device_than_the_draws_are_rounded_too():
    """A GPU's results are brought to the CPU, and so are single numbers that the GPU's depend on."""
    x = torch.ones(3, 3, dtype=torch.float64, device="meta")
    with RandomRounding(0, torch.bfloat16):
        assert ((x / 3) @ x).sum().device.type == "meta"


def test_an_operation_loses_up_to_a_unit():
    x = random(10_000)
    for rounds in (torch.exp, torch.sin, lambda t: t / 3, lambda t: t.to(torch.float64) * t):
        relative = lost(rounds, x) / rounds(x).abs()
        assert 0.3 * UNIT < relative.mean() < UNIT and relative.max() <= 1.6 * UNIT


@pytest.mark.parametrize("terms", [2, 100, 10_000])
def test_a_sum_loses_by_its_terms_and_not_by_what_is_left_of_them(terms: int):
    x = random(64, terms)
    x = torch.cat([x, -x], 1)  # adds up to 0
    bound = math.sqrt(2 * terms) * UNIT * x.abs().sum(1)
    for total in (lambda t: t.sum(1), lambda t: t @ torch.ones(2 * terms, dtype=t.dtype), lambda t: t.cumsum(1)[:, -1]):
        assert (lost(total, x) <= bound).all() and 0.6 < (lost(total, x) / bound).mean() < 0.9


def test_float32_stays_within_it():
    """The right error of a float32 sum in any order is below the estimate's bound."""
    x = random(4096) + 0.5
    estimate = lost(lambda t: t.sum(), x)
    for seed in range(20):
        order = torch.randperm(4096, generator=torch.Generator().manual_seed(seed))
        total = torch.zeros((), dtype=torch.float32)
        for value in x[order].float():
            total = total + value
        assert (total.double() - x.sum()).abs() < 3 * estimate


def test_errors_travel_with_what_is_computed_from_them():
    x = random(1000)
    near = lost(lambda t: (1 + t * 1e-3) - 1, x)  # all that is lost at 1 is still there
    assert near.mean() > 0.3 * UNIT and (x * 1e-3).abs().mean() < 1e-3
    assert lost(lambda t: torch.exp(100 + t), x).div(torch.exp(100 + x)).mean() > 30 * UNIT


def test_gradients_lose_too():
    def gradient(t: Tensor) -> Tensor:
        t = t.detach().requires_grad_()
        return torch.autograd.grad(torch.softmax(t, -1)[:, 0].sum(), t)[0]

    x = random(8, 100)
    assert (lost(gradient, x) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_operands_of_products_are_of_the_inputs_dtype(dtype: torch.dtype):
    a, b = random(20, 30).to(dtype).double(), random(30, 20).to(dtype).double()
    plain = lost(torch.mm, a, b, operand=dtype)
    assert plain.max() < 1e-4  # they are, already
    half = lost(lambda s, t: torch.mm(torch.exp(s), t), a, b, operand=dtype)
    assert torch.finfo(dtype).eps / 60 < (half / (torch.exp(a) @ b.abs())).mean() < torch.finfo(dtype).eps
    assert lost(lambda s, t: torch.mm(torch.exp(s), t), a, b).max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_equal_operands_may_lose_the_same(dtype: torch.dtype):
    eps, ones = torch.finfo(dtype).eps, torch.ones(400, 1, dtype=torch.float64)
    for value in (1 / 130, 0.7, 3e-9):
        weights = torch.full((1, 400), value, dtype=torch.float64)
        with RandomRounding(0, dtype, alike=True):
            off = (weights @ ones - weights.sum()).abs() / weights.sum()
        least = 0.24 * eps * max(1.0, torch.finfo(dtype).smallest_normal / value)
        assert least < off < 2.1 * least, value
    distinct = random(1, 400).abs()
    with RandomRounding(0, dtype, alike=True):
        off = (distinct @ ones - distinct.sum()).abs() / distinct.sum()
    assert off < 0.2 * eps  # as often up as down


def test_written_in_place_or_fused_it_is_the_same_arithmetic():
    x, y = random(50, 60), random(50, 60)
    for apart, together in (
        (lambda s, t: s + t / 3, lambda s, t: s.clone().add_(t / 3)),
        (lambda s, t: s + s @ (t.mT @ t), lambda s, t: torch.addmm(s, s, t.mT @ t)),
        (lambda s, t: torch.sigmoid(s) * s, lambda s, t: torch.nn.functional.silu(s)),
    ):
        first, second = lost(apart, x, y).norm(), lost(together, x, y).norm()
        assert 0.7 < first / second < 1.4


def test_it_is_the_same_each_time_and_for_any_number_of_threads():
    x = random(512, 512)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = lost(lambda t: torch.softmax(t @ t, 0), x)
        torch.set_num_threads(2)
        two = lost(lambda t: torch.softmax(t @ t, 0), x)
    finally:
        torch.set_num_threads(threads)
    assert torch.allclose(one, two, rtol=1e-3, atol=1e-12)
    assert torch.equal(one, lost(lambda t: torch.softmax(t @ t, 0), x)) or torch.equal(two, one)


def test_digits_are_those_of_float32_at_any_size():
    x = random(1000)
    assert torch.equal(to_float32s_digits(x * math.pi), (x * math.pi).float().double())
    assert torch.equal(to_float32s_digits(x * 2.0**-300), to_float32s_digits(x) * 2.0**-300)


def test_an_element_may_be_off_by_a_unit_where_all_runs_fall_on_the_right_result():
    exact = torch.tensor([0.44245, 1.0]).double()
    limit = Limit(exact, torch.zeros(4, 2, dtype=torch.float64), slack=2.0)
    assert limit.compare("y", torch.nextafter(exact.float(), torch.ones(2))) <= 1
    with pytest.raises(Wrong, match=r"y: error"):
        limit.compare("y", exact.float() * (1 + 4 * UNIT))


def test_each_element_has_its_own_limit():
    exact = torch.tensor([1e3] * 99 + [1e-9]).double()
    limit = Limit(exact, (UNIT * exact.abs()).expand(4, -1), slack=2.0)
    assert limit.compare("y", exact.float()) <= 1
    with pytest.raises(Wrong, match=r"y\[99\] is 0, not 1e-09 \(1 such elements\)"):
        limit.compare("y", torch.where(exact < 1, 0.0, exact).float())


def test_where_one_element_matters_the_largest_run_says_what_may_happen():
    exact, drift = torch.tensor([1.0]).double(), 100 * UNIT
    limit = Limit(exact, torch.tensor([[0.1], [-0.2], [0.0], [1.0]]).double() * drift, slack=1.0)
    assert limit.compare("y", (exact + 1.9 * drift).float()) <= 1  # of the root mean square, 3.7 times
    with pytest.raises(Wrong, match=r"y: error"):
        limit.compare("y", (exact + 2.1 * drift).float())


@pytest.mark.parametrize("size", [0.9 * LEAST, 2.0**-130, 2.0**-140, 2.0**-160])
def test_what_is_smaller_than_any_normal_number_may_be_flushed_and_what_is_multiplied_with_it(size: float):
    x = torch.full((1000,), size, dtype=torch.float64)
    assert 0.6 * size < lost(lambda t: torch.exp(torch.log(t)) * 100, x).mean() / 100 < 0.9 * size
    x = torch.full((1000,), -88.7, dtype=torch.float64)  # exp of 88.7 is the last that float32 holds
    y = torch.sigmoid(x)
    assert (lost(torch.sigmoid, x) > 0.4 * y).float().mean() > 0.8


def test_what_is_a_normal_number_is_not_flushed():
    x = torch.full((1000,), 1.01 * LEAST, dtype=torch.float64)
    assert lost(lambda t: torch.exp(torch.log(t)), x).max() < 1e-4 * LEAST
