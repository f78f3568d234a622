from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from instructgpt.model import cpu_ops
from instructgpt.model.backend import naive, sdpa, without_gradients
from kernels import attention_reference, rms_norm_reference, rope_reference, rope_table


def with_gradients(function: Callable[..., Tensor], tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The result of `function` in `dtype`, and its gradients, as float64."""
    inputs = [t.detach().to(dtype, copy=True).requires_grad_() for t in tensors]
    y = function(*inputs)
    torch.manual_seed(1)
    y.backward(torch.randn(y.shape).to(y.dtype))
    return [y.detach().double(), *(t.grad.double() for t in inputs)]  # type: ignore[union-attr]


def assert_as_accurate(ours: Callable[..., Tensor], reference: Callable[..., Tensor], tensors: list[Tensor]) -> None:
    """In bfloat16, result and gradients lie no further from float64's than 3 times the reference's own do."""
    tensors = [t.bfloat16().double() for t in tensors]
    exact = with_gradients(reference, tensors, torch.float64)
    theirs = with_gradients(reference, tensors, torch.bfloat16)
    for ours_, theirs_, exact_ in zip(with_gradients(ours, tensors, torch.bfloat16), theirs, exact):
        assert (ours_ - exact_).norm() <= 3 * (theirs_ - exact_).norm() + 2**-9 * exact_.norm()


@pytest.mark.parametrize("mask", ["none", "causal", "documents"])
def test_bfloat16_attention_is_as_accurate_as_the_reference(mask: str) -> None:
    torch.manual_seed(0)
    documents = (torch.arange(40) // 13).expand(2, 40)
    may_attend = (documents[:, :, None] == documents[:, None, :])[:, None] & torch.ones(40, 40).bool().tril()
    masks = {"none": (None, False), "causal": (None, True), "documents": (may_attend, False)}
    assert_as_accurate(
        lambda q, k, v: cpu_ops.attention(q, k, v, *masks[mask]),
        lambda q, k, v: attention_reference(q, k, v, *masks[mask]),
        [torch.randn(2, heads, 40, 16) for heads in (4, 2, 2)],
    )


def test_a_long_row_is_not_held_as_a_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(3, 1, 1, 9, 4).bfloat16()
    matrix = cpu_ops.attention(q, k, v, None, True)
    monkeypatch.setattr(cpu_ops, "LONGEST_MATRIX", 8)
    monkeypatch.setattr(torch, "softmax", None)  # would fail if it were
    torch.testing.assert_close(cpu_ops.attention(q, k, v, None, True), matrix, rtol=0.02, atol=0.02)


@given(shape=st.sampled_from([(1,), (5,), (2, 3, 5), (2, 1, 3, 8)]), strided=st.booleans(), seed=st.integers(0, 99))
def test_rms_norm_gradients(shape: tuple[int, ...], strided: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(*shape, 2, dtype=torch.float64)
    x = (x[..., 0] if strided else x[..., 0].contiguous()).requires_grad_()
    weight = torch.randn(shape[-1], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(cpu_ops.rms_norm(x, weight, 0.1), rms_norm_reference(x, weight, 0.1))
    assert torch.autograd.gradcheck(cpu_ops.rms_norm, (x, weight, 0.1))


def test_rope_gradients() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    table = rope_table(torch.tensor([[0, 1, 2, 3], [5, 6, 0, 1]]), 6, 1e4, torch.float64)
    torch.testing.assert_close(cpu_ops.rope(x, *table), rope_reference(x, *table))
    assert torch.autograd.gradcheck(cpu_ops.rope, (x, *table))


def test_bfloat16_norm_and_rope_are_about_as_accurate_as_their_references() -> None:
    torch.manual_seed(0)
    weight, table = torch.rand(64) + 0.5, rope_table(torch.arange(40)[None], 64, 1e4)
    x = torch.randn(2, 3, 40, 64)
    assert_as_accurate(
        lambda x, w: cpu_ops.rms_norm(x, w, 1e-5), lambda x, w: rms_norm_reference(x, w, 1e-5), [x, weight]
    )
    assert_as_accurate(lambda x: cpu_ops.rope(x, *table), lambda x: rope_reference(x, *table), [x])


# ---- packed weights


def dequantized(packed: Tensor, scales: Tensor, bits: int) -> Tensor:
    """ŵ (M, K) of what `cpu_ops.quantize` made, found without its product where PyTorch says how it lies."""
    if bits == 8:
        return packed.float() * scales.float()[:, None]
    K = 2 * packed.size(1)
    return cpu_ops.quantized_linear(torch.eye(K), packed, scales, 4).T  # column by column


@pytest.mark.parametrize("rows", [1, 2, 5, 16, 40])
@pytest.mark.parametrize(("bits", "error"), [(8, 0.009), (4, 0.12)])
@pytest.mark.parametrize("shape", [(16, 32), (48, 64), (1152, 384), (96, 352)])
def test_packed_integers_multiply_as_the_naive_product(rows: int, bits: int, error: float, shape: tuple[int, int]):
    weight, x = torch.randn(shape), torch.randn(rows, shape[1])
    assert cpu_ops.can_multiply_packed(weight, bits, 32)
    packed, scales = cpu_ops.quantize(weight, bits, 32)
    assert packed.numel() * packed.element_size() == weight.numel() * bits // 8
    restored = dequantized(packed, scales, bits)
    assert (restored - weight).square().mean().sqrt() < error * weight.square().mean().sqrt()
    y = cpu_ops.quantized_linear(x, packed, scales, bits)
    right = x @ restored.T
    assert (y - right).abs().max() < 0.012 * right.square().mean().sqrt() * 4  # x and y are rounded to 8 bits


@pytest.mark.parametrize("bits", [8, 4])
def test_packed_integers_are_those_of_the_kernels_to_the_last(bits: int):
    """Whole numbers times powers of two have nothing to round."""
    step = 2.0 ** torch.randint(-3, 3, (32, 2)).repeat_interleave(32, 1) if bits == 4 else 0.5
    highest = 2 ** (bits - 1) - 1
    weight = torch.randint(-highest, highest + 1, (32, 64)).float()
    weight[:, ::32] = highest
    weight = weight * step
    x = torch.randint(-3, 4, (3, 64)).float()
    y = cpu_ops.quantized_linear(x, *cpu_ops.quantize(weight, bits, 32), bits)
    torch.testing.assert_close(y, (x @ weight.T).bfloat16().float(), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(5, 32), (16, 7), (33, 70), (64, 33), (20, 64), (8, 96)])
@pytest.mark.parametrize("bits", [8, 4])
def test_shapes_that_the_packed_products_would_read_beyond_take_another_way(shape: tuple[int, int], bits: int):
    """On such, PyTorch's own products end the process."""
    backend, weight, x = sdpa(), torch.randn(shape), torch.randn(2, shape[1])
    packed, scales = backend.quantize(weight, bits, 32)
    assert not cpu_ops.is_packed(scales)
    y = backend.quantized_linear(x, packed, scales, bits)
    assert (y - x @ weight.T).norm() < (0.02 if bits == 8 else 0.3) * y.norm()


@pytest.mark.parametrize("bits", [8, 4])
def test_a_torch_without_the_packed_products_falls_back(bits: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.ops, "aten", object())
    assert not cpu_ops.can_multiply_packed(torch.randn(16, 64), bits, 32)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_a_packed_product_does_not_depend_on_the_others(bits: int, dtype: torch.dtype):
    packed, scales = cpu_ops.quantize(torch.randn(64, 96), bits, 32)
    x = torch.randn(9, 96).to(dtype) * torch.logspace(-3, 3, 9)[:, None].to(dtype)
    y = cpu_ops.quantized_linear(x, packed, scales, bits)
    assert y.dtype == dtype
    for i in range(9):
        torch.testing.assert_close(cpu_ops.quantized_linear(x[i : i + 1], packed, scales, bits)[0], y[i])


def test_zero_weights_stay_zero():
    for bits in (8, 4):
        packed, scales = cpu_ops.quantize(torch.zeros(16, 64), bits, 32)
        assert not cpu_ops.quantized_linear(torch.randn(2, 64), packed, scales, bits).any()


@pytest.mark.skipif(not cpu_ops.can_pack(), reason="this CPU has no bfloat16")
@pytest.mark.parametrize(("shape", "has_bias"), [((48, 32), True), ((7, 5), False), ((1, 33), True)])
@pytest.mark.parametrize("leading", [(1,), (2, 3), (40, 1)])
def test_a_packed_linear_is_what_autocast_computes(shape, has_bias: bool, leading: tuple[int, ...]):
    linear = nn.Linear(shape[1], shape[0], bias=has_bias)
    x = torch.randn(*leading, shape[1])
    packed = cpu_ops.PackedLinear(linear.weight, linear.bias)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = linear(x)
    y = packed(x)
    assert y.dtype == torch.bfloat16 and y.shape == expected.shape
    torch.testing.assert_close(y, expected, rtol=0.01, atol=0.01)
    torch.testing.assert_close(packed(x.bfloat16()), y, rtol=0, atol=0)


# ---- without gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 3, 1, 64), (2, 1, 5, 2), (3, 2, 4, 6)])
def test_a_rotation_in_three_operators_is_that_of_the_reference(shape: tuple[int, ...], dtype: torch.dtype):
    torch.manual_seed(0)
    B, _, T, D = shape
    x = torch.randn(shape).to(dtype)
    cos, sin = rope_table(torch.randint(0, 2000, (B, T)), D, 1e4)
    exact = rope_reference(x.double(), cos.double(), sin.double())
    y = cpu_ops.rotated(x, *cpu_ops.rotation(cos, sin, dtype))
    assert y.dtype == dtype and y.shape == x.shape
    assert (y.double() - exact).norm() <= 4 * torch.finfo(dtype).eps * exact.norm()


def test_without_gradients_a_backend_computes_the_same():
    """Each operator against float64, where the usual one stands, too."""
    torch.manual_seed(0)
    usual, cpu = sdpa(), torch.device("cpu")
    x, weight, (cos, sin) = torch.randn(2, 3, 5, 32), torch.rand(32) + 0.5, rope_table(torch.arange(5)[None], 32, 1e4)
    for dtype in (torch.float32, torch.bfloat16):
        fast, half = without_gradients(usual, cpu, dtype), x.to(dtype)
        norm = rms_norm_reference(half.double(), weight.double(), 1e-5)
        turned = rope_reference(half.double(), cos.double(), sin.double())
        for backend in (usual, fast):
            tolerance = 8 * torch.finfo(dtype).eps
            found = backend.rms_norm(half, weight, 1e-5)
            assert found.dtype == dtype and (found.double() - norm).norm() < tolerance * norm.norm()
            found = backend.rope(half, *backend.rotation(cos, sin))
            assert found.dtype == dtype and (found.double() - turned).norm() < tolerance * turned.norm()
    assert without_gradients(naive(), cpu, torch.float32) == naive()
