from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.lab.memory import BAND, LAYOUTS, broadcast, guarded_allocations, lay_out, without_repeats

try:
    import resource
except ImportError:  # Windows
    resource = None


CPU = torch.device("cpu")


@given(
    shape=st.lists(st.integers(0, 4), max_size=4).map(tuple), layout=st.sampled_from(LAYOUTS), index=st.integers(0, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]),
)  # fmt: skip
def test_every_layout_holds_the_same_values_and_nothing_else(
    shape: tuple[int, ...], layout: str, index: int, dtype: torch.dtype
) -> None:
    values = torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
    laid = lay_out(values, layout, index, CPU)
    assert torch.equal(laid.tensor, values) and laid.tensor.dtype == dtype
    if laid.storage.shape == values.shape and values.dim():  # far apart
        assert layout == "far" and max(shape[:-1]) >= 3
        return
    elements = laid.storage.view(-1, max(dtype.itemsize, 1))
    assert int((elements != 255).any(-1).sum()) == values.numel()
    assert (elements[:BAND] == 255).all() and (elements[-BAND:] == 255).all()


def test_layouts_have_the_strides_they_are_named_for():
    values = torch.randn(3, 4, 5)
    strides = {layout: lay_out(values, layout, 1, CPU).tensor.stride() for layout in LAYOUTS}
    assert strides["contiguous"] == (20, 5, 1)
    assert strides["padded"] == (8 * 9, 9, 1)
    assert strides["strided"] == (2 * 10 * 12, 2 * 12, 2)
    assert strides["transposed"] == (1, 3, 12)
    mixed = [lay_out(values, "mixed", index, CPU).tensor.stride() for index in range(4)]
    assert len(set(mixed)) == 4
    assert lay_out(values, "padded", 0, CPU).tensor.stride() != strides["padded"]


def test_far_apart_is_beyond_31_bits_in_strides_that_fit():
    """Along one dimension of three places or more, another one for the next tensor; a write to it is seen."""
    values = torch.randn(2, 5, 3, 4)
    for index, far in ((0, 1), (1, 2), (2, 1)):
        laid = lay_out(values, "far", index, CPU)
        strides = laid.tensor.stride()
        assert (values.size(far) - 1) * strides[far] >= 2**31 > strides[far] and strides[far] % 64 == 0
        assert torch.equal(laid.tensor, values) and laid.tensor.stride(-1) == 1
        # What an offset that wrapped around finds is another number, not the end of the process.
        assert laid.tensor.as_strided((1,), (1,), laid.tensor.storage_offset() - 2**31 + 64).item() == 0
        before = laid.storage.clone()
        assert torch.equal(laid.storage, before)
        laid.tensor[-1, -1, -1, -1] = 7.0
        assert not torch.equal(laid.storage, before)
    assert lay_out(torch.randn(2, 4), "far", 0, CPU).tensor.stride() == (4, 1)


def test_broadcast_cotangents_have_strides_of_zero():
    values = torch.randn(3, 4, 5)
    for layout, stride in (("broadcast", (0, 0, 1)), ("summed", (0, 0, 0))):
        laid = lay_out(broadcast(values, layout), layout, 0, CPU)
        assert laid.tensor.stride() == stride and laid.tensor.shape == values.shape
        assert (laid.tensor == laid.tensor[:1, :1]).all()
    assert broadcast(values, "padded").stride() == values.stride()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 1), (2, 0, 3), (0, 0), (0,)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_empty_has_no_strides_of_zero(shape: tuple[int, ...], layout: str):
    """As PyTorch's own: a stride of 0 says that elements share a place."""
    laid = lay_out(torch.empty(shape), layout, 1, CPU)
    assert laid.tensor.shape == shape and 0 not in laid.tensor.stride()
    assert without_repeats(laid.tensor).shape == shape


def test_what_is_allocated_is_nan_within_bands():
    with guarded_allocations() as regions:
        x = torch.empty(2, 3)
        assert x.isnan().all() and x.new_empty(2).isnan().all() and torch.empty_like(x).isnan().all()
        assert torch.zeros(3).eq(0).all() and torch.zeros_like(x).eq(0).all() and x.new_zeros(2).eq(0).all()
        assert torch.empty_strided((2, 3), (1, 2)).stride() == (1, 2)
    assert len(regions) == 7 and all(region.band_is_intact() for region in regions)
    assert not hasattr(torch.empty, "__wrapped__") and torch.empty(1).untyped_storage().nbytes() == 4


@pytest.mark.skipif(resource is None, reason="nobody counts memory here")
def test_what_is_allocated_with_holes_takes_no_room_for_them():
    """An op may allocate a tensor like one whose rows lie gigabytes apart."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with guarded_allocations() as allocated:
        y = torch.empty_strided((3, 4), (2**28, 1))
    assert y.isnan().all() and y.stride() == (2**28, 1)
    assert allocated[0].band_is_intact()
    allocated[0].storage[-1] = 0
    assert not allocated[0].band_is_intact()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # kilobytes: not the two gigabytes


@pytest.mark.parametrize("offset", [-1, 6, BAND + 5, -BAND])
def test_a_write_beside_a_tensor_is_seen(offset: int):
    with guarded_allocations() as regions:
        x = torch.empty(6)
    x.fill_(1.0)
    assert regions[0].band_is_intact()
    x.as_strided((1,), (1,), BAND + offset).fill_(1.0)
    assert not regions[0].band_is_intact()
