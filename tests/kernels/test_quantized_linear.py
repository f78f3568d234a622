"""Packing, its error, the reference. The lab checks the kernel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from kernels import dequantize, quantize, quantized_linear, quantized_linear_reference
from kernels.launch import INTERPRETED


@given(
    outputs=st.integers(1, 9), width=st.integers(1, 100), bits=st.sampled_from([8, 4]), group=st.sampled_from([32, 64]),
    size=st.sampled_from([0.0, 1e-3, 1.0, 1e3]), seed=st.integers(0, 99),
)  # fmt: skip
def test_every_weight_is_off_by_half_a_step_at_most(
    outputs: int, width: int, bits: int, group: int, size: float, seed: int
) -> None:
    weight = size * torch.randn(outputs, width, generator=torch.Generator().manual_seed(seed))
    packed, scales = quantize(weight, bits, group)
    groups = -(-width // group)
    assert scales.shape == (outputs, groups) and packed.shape == (outputs, groups * group * bits // 8)
    restored = dequantize(packed, scales, bits)
    step = scales.repeat_interleave(group, dim=1)[:, :width]
    assert ((restored[:, :width] - weight).abs() <= step * 0.5001).all()
    assert not restored[:, width:].any()  # the filling
    largest = F.pad(weight, (0, groups * group - width)).view(outputs, groups, group).abs().amax(-1)
    torch.testing.assert_close(scales * (127 if bits == 8 else 7), largest)


def test_what_was_quantized_is_quantized_to_itself() -> None:
    weight = torch.randn(5, 96, generator=torch.Generator().manual_seed(0))
    for bits in (8, 4):
        packed, scales = quantize(weight, bits, 32)
        again, _ = quantize(dequantize(packed, scales, bits), bits, 32)
        assert torch.equal(again, packed)


def test_four_bits_lie_as_the_docstring_says() -> None:
    weight = torch.zeros(1, 32)
    weight[0, 3], weight[0, 19], weight[0, 0] = 7.0, -2.0, -7.0
    packed, scales = quantize(weight, 4, 32)
    assert scales.item() == 1.0
    assert packed[0, 3] == (7 + 8) | (-2 + 8) << 4
    assert packed[0, 0] == (-7 + 8) | (0 + 8) << 4


@pytest.mark.parametrize("bits", [8, 4])
def test_reference_is_the_product_with_restored_weights(bits: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 70), torch.randn(5, 70)
    packed, scales = quantize(weight, bits, 32)
    y = quantized_linear_reference(x, packed, scales, bits)
    torch.testing.assert_close(y, F.linear(x, dequantize(packed, scales, bits)[:, :70]))
    error = (y - F.linear(x, weight)).norm() / F.linear(x, weight).norm()
    assert error < (0.01 if bits == 8 else 0.15)


def test_unknown_bits_and_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="5 bits in groups of 64"):
        quantize(torch.randn(2, 64), 5)
    with pytest.raises(ValueError, match="8 bits in groups of 48"):
        quantize(torch.randn(2, 64), 8, 48)


@pytest.mark.skipif(not INTERPRETED, reason="without a CUDA device or the interpreter, everything is refused")
def test_what_does_not_fit_is_refused() -> None:
    packed, scales = quantize(torch.randn(5, 64), 8, 32)
    with pytest.raises(TypeError, match=r"packed is torch\.int8 for 4 bits"):
        quantized_linear(torch.randn(2, 64), packed, scales, 4)
    with pytest.raises(ValueError, match=r"x is \(2, 65\), packed \(5, 64\), scales \(5, 2\)"):
        quantized_linear(torch.randn(2, 65), packed, scales, 8)
