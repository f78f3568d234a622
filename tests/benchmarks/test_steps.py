from __future__ import annotations

import math
import re

import pytest
import torch

from benchmarks.peers import PlainGPT
from benchmarks.steps import SHAPES, StepCase, batch_of, has_peers, loss_of_all_positions, prepare, shape_named
from benchmarks.train_step import TrainStepConfig, cases, filled_in
from instructgpt.errors import UserError
from instructgpt.model.counts import count_parameters
from instructgpt.model.transformer import Transformer
from instructgpt.objectives.lm import next_token_loss

MINUTE = StepCase("minute", 2, "cpu", "float32", backend="sdpa", steps=2)


@pytest.mark.parametrize("of", ["ours", "plain", "transformers"])
def test_each_learns_the_batch_that_it_is_timed_on(of):
    if of == "transformers":
        pytest.importorskip("transformers")
    measure = prepare(StepCase("minute", 2, "cpu", "float32", of=of, backend="sdpa", steps=4))
    first, second = measure(), measure()
    assert second["loss"] < first["loss"] < 1.1 * math.log(SHAPES["minute"].vocab_size)
    assert first["tokens_per_second"] == pytest.approx(2 * SHAPES["minute"].context / first["seconds"])
    assert first["peak_megabytes"] > 0 and first["warm_up_seconds"] > 0


def test_the_peers_have_the_parameters_of_our_model():
    for name in ("minute", "12m"):
        shape = SHAPES[name]
        assert has_peers(shape)
        assert sum(p.numel() for p in PlainGPT(shape).parameters()) == count_parameters(shape).total
    assert round(count_parameters(SHAPES["12m"]).total / 1e6, 1) == 12.3
    assert not has_peers(SHAPES["tiny"])


def test_the_plain_peer_computes_what_our_model_computes():
    """With the same weights, the same loss: it does the same work."""
    shape, batch = SHAPES["minute"], batch_of(MINUTE, SHAPES["minute"])
    peer, model = PlainGPT(shape), Transformer(shape)
    renamed = {re.sub(r"(attention|mlp)\.", "", name): value for name, value in model.state_dict().items()}
    peer.load_state_dict({**renamed, "head.weight": renamed["embedding.weight"]})
    loss = next_token_loss(model, batch)
    assert torch.allclose(peer(batch.ids, batch.targets), loss.total / loss.weight)


def test_logits_after_every_token_give_the_same_loss():
    batch = batch_of(StepCase("tiny", 2, "cpu", "float32", data="padded"), SHAPES["tiny"])
    assert not batch.is_target.all()
    model = Transformer(SHAPES["tiny"])
    some, all = next_token_loss(model, batch), loss_of_all_positions(model, batch)
    assert torch.allclose(some.total, all.total) and some.weight == all.weight


def test_packing_puts_more_tokens_into_the_same_rows():
    padded, packed = (
        batch_of(StepCase("tiny", 4, "cpu", "float32", data=data), SHAPES["tiny"]) for data in ("padded", "packed")
    )
    assert packed.tokens > 2 * padded.tokens


def test_rows_of_the_table():
    names = list(cases(filled_in(TrainStepConfig(device="cpu", shape="12m", dtypes=("float32",)))))
    assert names == ["sdpa, step", "sdpa, off", "sdpa, blocks", *(
        f"{peer}, {mode}" for peer in ("plain", "transformers") for mode in ("eager", "compiled")
    )]  # fmt: skip
    assert len(cases(filled_in(TrainStepConfig(device="cpu", shape="tiny", dtypes=("float32",))))) == 3
    only = TrainStepConfig(device="cpu", shape="12m", dtypes=("float32",), only=("plain, eager",))
    assert list(cases(filled_in(only))) == ["plain, eager"]


def test_an_unknown_shape_is_one_line():
    with pytest.raises(UserError, match="--shape gtp2 is unknown; did you mean 'gpt2'"):
        shape_named("gtp2")
