from __future__ import annotations

import pytest
import torch
from torch import Tensor

from instructgpt.inside.parts import head, taken_from, whole
from instructgpt.inside.patching import Patching
from instructgpt.inside.trace import record
from instructgpt.model.transformer import Transformer
from tests.inside.conftest import SMALL, random_model, text

OWN, OTHER = 3, 17


def pair(model: Transformer, ids: Tensor, differ: int = 2) -> Patching:
    other = ids.clone()
    other[differ] = (other[differ] + 1) % 40
    return Patching.of(model, ids, other, OWN, OTHER)


def test_what_does_not_differ_turns_nothing_and_the_last_place_all(model: Transformer, ids: Tensor):
    patching = pair(model, ids)
    shares = patching.stream()
    assert shares.shape == (2, len(ids))
    assert not shares[:, :2].any()  # before the token that differs
    assert not shares[0, 3:].any()  # and at the bottom, wherever the token is the same
    assert float(shares[0, 2]) == pytest.approx(1)  # the token that differs is all the difference


def test_a_share_is_what_putting_the_other_stream_in_gives(model: Transformer, ids: Tensor):
    patching = pair(model, ids)
    difference = lambda logits: float(logits[OWN] - logits[OTHER])  # noqa: E731
    own, other = (difference(model(each.ids[None])[0, -1]) for each in (patching.own, patching.other))

    def put(module: torch.nn.Module, given: tuple) -> tuple:
        x = given[0].clone()
        x[:, 4] = patching.other.stream[1][4]
        return (x, *given[1:])

    handle = model.blocks[1].register_forward_pre_hook(put)
    found = difference(model(ids[None])[0, -1])
    handle.remove()
    assert float(patching.stream()[1, 4]) == pytest.approx((own - found) / (own - other))


def test_a_head_taken_from_the_other_text(model: Transformer, ids: Tensor):
    patching = pair(model, ids)
    shares = patching.heads()
    assert shares.shape == (2, 4)
    difference = lambda logits: float(logits[OWN] - logits[OTHER])  # noqa: E731
    own, other = (difference(model(each.ids[None])[0, -1]) for each in (patching.own, patching.other))
    for layer, number in ((0, 1), (1, 3)):
        with taken_from(model, [head(model.config, layer, number)], patching.other):
            found = difference(model(ids[None])[0, -1])
        assert float(shares[layer, number]) == pytest.approx((own - found) / (own - other))


def test_everything_taken_from_the_other_text_gives_its_logits(model: Transformer, ids: Tensor):
    other = text(seed=5)
    there, config = record(model, other), model.config
    parts = [whole(config, layer, kind) for layer in range(config.layers) for kind in ("attention", "mlp")]
    swap = model.embedding.register_forward_hook(lambda module, given, y: there.stream[0][None])
    if config.position == "rope":  # else the positions are added behind the hook
        with taken_from(model, parts, there):
            torch.testing.assert_close(model(ids[None]), model(other[None]))
    swap.remove()
    torch.testing.assert_close(model.head(model.final_norm(there.stream[-1])), model(other[None])[0])


def test_in_batches_it_is_the_same(ids: Tensor):
    """More tokens differ than are done at once."""
    model = random_model(SMALL)
    long, other = text(length=32), text(seed=3, length=32)
    assert (long[:1] != other[:1]).all()
    shares = Patching.of(model, long, other, OWN, OTHER).stream()
    assert shares.shape == (2, 32) and shares.isfinite().all()


def test_texts_of_unequal_length_are_refused(ids: Tensor):
    with pytest.raises(ValueError, match="9 tokens, and 8"):
        Patching.of(random_model(SMALL), ids, ids[1:], OWN, OTHER)
