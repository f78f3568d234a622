from __future__ import annotations

from dataclasses import dataclass, field

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from instructgpt.data.batch import Batch, mapped


def batch_of(is_target: Tensor) -> Batch:
    ids = torch.arange(is_target.numel()).view(is_target.shape)
    return Batch(ids, ids + 1, is_target, ids, torch.zeros_like(ids))


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=4))
def test_at_targets_is_what_a_mask_selects(rows):
    """None, some or all of the positions; values of one or two further dimensions, or none."""
    is_target = torch.tensor(rows)
    batch = batch_of(is_target)
    for shape in ((), (2,), (2, 4)):
        values = torch.randn(*is_target.shape, *shape)
        assert torch.equal(batch.at_targets(values), values[is_target])


def test_gradients_reach_the_targets_alone():
    is_target = torch.tensor([[True, False, True], [False, False, True]])
    values = torch.zeros(2, 3, 2, requires_grad=True)
    batch_of(is_target).at_targets(values).sum().backward()
    assert values.grad is not None and torch.equal(values.grad, is_target[..., None].expand(2, 3, 2).float())


def test_moving_keeps_the_places():
    """They are moved, not found anew: on a GPU that would wait."""
    batch = batch_of(torch.tensor([[True, False]]))
    moved = batch.to(torch.device("meta"))
    assert {t.device.type for t in vars(moved).values()} == {"meta"} and moved.places.shape == (1,)


def test_mapped_goes_into_what_is_nested_and_leaves_the_rest():
    @dataclass(frozen=True)
    class Outer:
        tensor: Tensor
        inner: Batch
        number: float = 2.0
        absent: Tensor | None = None
        names: dict[str, float] = field(default_factory=dict)

    outer = Outer(torch.zeros(2), batch_of(torch.tensor([[True]])), names={"a": 1.0})
    found = mapped(outer, lambda tensor: tensor + 1)
    assert torch.equal(found.tensor, torch.ones(2)) and torch.equal(found.inner.ids, torch.ones(1, 1))
    assert (found.number, found.absent, found.names) == (2.0, None, {"a": 1.0})
    assert torch.equal(outer.tensor, torch.zeros(2)), "the one that was given stays as it is"
