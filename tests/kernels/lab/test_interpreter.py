"""The interpreter's bfloat16: wrong as Triton ships it, right with ours. A new Triton that changes this fails here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.lab.interpreter import faithful_bfloat16, reversed_programs
from kernels.launch import INTERPRETED, jit, tl

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="kernels run natively here")


@jit
def casts(x, to_bfloat16, back, from_integers, N: tl.constexpr):
    index = tl.arange(0, N)
    rounded = tl.load(x + index).to(tl.bfloat16)
    tl.store(to_bfloat16 + index, rounded)
    tl.store(back + index, rounded.to(tl.float32))
    tl.store(from_integers + index, (index * 257).to(tl.bfloat16))


@jit
def binary(x, y, total, product, quotient, is_less, larger, chosen, N: tl.constexpr):
    index = tl.arange(0, N)
    a, b = tl.load(x + index), tl.load(y + index)
    tl.store(total + index, a + b)
    tl.store(product + index, a * 3.5)
    tl.store(quotient + index, (a / b).to(tl.bfloat16))
    tl.store(is_less + index, (a < b).to(tl.int32))
    tl.store(larger + index, tl.maximum(a, b))
    tl.store(chosen + index, tl.where(a < b, a, b))


@jit
def unary(x, magnitude, negative, fused, filled, N: tl.constexpr):
    index = tl.arange(0, N)
    a = tl.load(x + index)
    tl.store(magnitude + index, tl.abs(a))
    tl.store(negative + index, -a)
    tl.store(fused + index, tl.fma(a, a, a))
    tl.store(filled + index, tl.full((N,), 1.5, tl.bfloat16) + a)


@jit
def product(x, y, out, N: tl.constexpr):
    row, column = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    a, b = tl.load(x + row * N + column), tl.load(y + row * N + column)
    tl.store(out + row * N + column, tl.dot(a, b))


@jit
def larger_of(a, b):
    return tl.maximum(a, b)


@jit
def reduction(x, out, N: tl.constexpr):
    tl.store(out, tl.reduce(tl.load(x + tl.arange(0, N)), 0, larger_of))


@jit
def atomic(x, out, N: tl.constexpr):
    tl.atomic_add(out + tl.arange(0, N), tl.load(x + tl.arange(0, N)))


@jit
def last_program(out):
    tl.store(out, tl.program_id(0) * 100 + tl.program_id(1) * 10 + tl.num_programs(0))


def bfloat16(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16()


def run_casts() -> list[tuple[Tensor, Tensor]]:
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 3.4e38, torch.inf, -torch.inf, 0.0, 2.0**-130])
    x = torch.cat([ties, torch.randn(56) * 10 ** torch.randn(56)])
    out, back, integers = torch.empty(64).bfloat16(), torch.empty(64), torch.empty(64).bfloat16()
    casts[(1,)](x, out, back, integers, 64)
    return [(out, x.bfloat16()), (back, x.bfloat16().float()), (integers, (torch.arange(64) * 257).bfloat16())]


def run_binary() -> list[tuple[Tensor, Tensor]]:
    x, y = bfloat16(64), bfloat16(64)
    total, times, quotient, larger, chosen = (torch.empty(64).bfloat16() for _ in range(5))
    is_less = torch.empty(64, dtype=torch.int32)
    binary[(1,)](x, y, total, times, quotient, is_less, larger, chosen, 64)
    return [
        (total, x + y), (times, x * 3.5), (quotient, x / y), (is_less, (x < y).int()), (larger, torch.maximum(x, y)),
        (chosen, torch.minimum(x, y)),
    ]  # fmt: skip


def run_unary() -> list[tuple[Tensor, Tensor]]:
    x = bfloat16(64)
    outs = [torch.empty(64).bfloat16() for _ in range(4)]
    unary[(1,)](x, *outs, 64)
    wide = x.float()
    return list(zip(outs, [x.abs(), -x, (wide * wide + wide).bfloat16(), x + 1.5]))


def run_product() -> list[tuple[Tensor, Tensor]]:
    x, y, out = bfloat16(16, 16), bfloat16(16, 16), torch.empty(16, 16)
    product[(1,)](x, y, out, 16)
    return [(out, x.float() @ y.float())]


RUNS = [run_casts, run_binary, run_unary, run_product]


@pytest.mark.parametrize("run", RUNS)
def test_bfloat16_is_right_with_the_patch(run):
    torch.manual_seed(0)
    with faithful_bfloat16():
        pairs = run()
    for got, right in pairs:
        torch.testing.assert_close(got, right, rtol=1e-6 if got.dtype == torch.float32 else 0, atol=0)


@pytest.mark.parametrize("run", RUNS)
def test_bfloat16_is_wrong_without_it(run):
    """Where this fails, Triton has learned it: make the patch smaller."""
    torch.manual_seed(0)
    try:
        pairs = run()
    except Exception:  # not even defined
        return
    assert any(not torch.allclose(got.double(), right.double(), rtol=0.1) for got, right in pairs) or run is run_casts
    if run is run_casts:
        assert not torch.equal(pairs[0][0], pairs[0][1])  # it truncates


@pytest.mark.parametrize("kernel", [reduction, atomic])
def test_what_would_lose_digits_raises(kernel):
    with faithful_bfloat16(), pytest.raises(Exception, match="convert to float32 first"):
        kernel[(1,)](bfloat16(16), bfloat16(16), 16)


def test_the_patch_ends_with_its_context():
    from triton.runtime.interpreter import InterpreterBuilder

    before = dict(vars(InterpreterBuilder))
    with faithful_bfloat16(), reversed_programs():
        assert dict(vars(InterpreterBuilder)) != before
        with np.errstate(all="raise"):
            pass
    assert dict(vars(InterpreterBuilder)) == before


def test_programs_run_in_reversed_order():
    out = torch.zeros(1, dtype=torch.int32)
    last_program[(3, 4)](out)
    assert out.item() == 233
    with reversed_programs():
        last_program[(3, 4)](out)
    assert out.item() == 3
