from __future__ import annotations

import torch
from torch import Tensor

from instructgpt.inside import lens
from instructgpt.inside.trace import record
from instructgpt.model.transformer import Transformer


def test_after_the_last_layer_it_is_the_models_own_prediction(model: Transformer, ids: Tensor):
    places = torch.tensor([3, 7])
    found = lens.read(model, record(model, ids), places, 5)
    p = model(ids[None])[0, places].softmax(-1)
    torch.testing.assert_close(found.probabilities[-1], p.topk(5).values.float())
    assert torch.equal(found.tokens[-1], p.topk(5).indices)
    targets = ids[places + 1]
    torch.testing.assert_close(found.target[-1], p[[0, 1], targets].float())
    assert found.rank[-1].tolist() == [int((row > row[t]).sum()) for row, t in zip(p, targets)]


def test_before_the_first_it_is_what_the_embedding_says(model: Transformer, ids: Tensor):
    trace = record(model, ids)
    found = lens.read(model, trace, torch.tensor([3]), 1)
    assert found.tokens.shape == (model.config.layers + 1, 1, 1)
    assert int(found.tokens[0]) == int(model.head(model.final_norm(trace.stream[0][3])).argmax())
