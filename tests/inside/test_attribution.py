from __future__ import annotations

import pytest
import torch
from torch import Tensor

from instructgpt.inside.attribution import gradient_times_input, leaving_each_token_out
from instructgpt.inside.parts import edited, neuron
from instructgpt.inside.trace import targets_after
from instructgpt.model.transformer import Transformer
from tests.inside.conftest import SMALL, random_model, text

PLACES = torch.tensor([4, 7])


def logprobs(model: Transformer, ids: Tensor) -> Tensor:
    return targets_after(model(ids[None])[:, PLACES], ids[PLACES + 1])[0]


def grown(model: Transformer, ids: Tensor, factors: Tensor) -> Tensor:
    """log p with embeddings multiplied by factors (T,)."""
    handle = model.embedding.register_forward_hook(lambda _, given, y: y * factors[:, None])
    try:
        return logprobs(model, ids)
    finally:
        handle.remove()


def test_a_token_owes_what_the_slope_says_by_finite_differences(model: Transformer, ids: Tensor):
    found = gradient_times_input(model, ids, PLACES).tokens
    assert found.shape == (2, len(ids))
    step = 1e-6
    for t in range(len(ids)):
        factors = torch.ones(len(ids), dtype=torch.float64)
        factors[t] += step
        more = grown(model, ids, factors)
        factors[t] -= 2 * step
        slope = (more - grown(model, ids, factors)) / (2 * step)
        torch.testing.assert_close(found[:, t], slope, rtol=1e-5, atol=1e-7)


def test_the_sum_is_the_slope_when_all_embeddings_grow(model: Transformer, ids: Tensor):
    found, ones = gradient_times_input(model, ids, PLACES).tokens, torch.ones(len(ids), dtype=torch.float64)
    slope = (grown(model, ids, ones * (1 + 1e-6)) - grown(model, ids, ones * (1 - 1e-6))) / 2e-6
    torch.testing.assert_close(found.sum(1), slope, rtol=1e-5, atol=1e-7)


def test_a_neuron_owes_what_the_slope_says(model: Transformer, ids: Tensor):
    found = gradient_times_input(model, ids, PLACES).neurons
    assert found.shape == (2, model.config.layers, model.config.mlp_width)
    for part in (neuron(0, 3), neuron(1, 11)):

        def times(factor: float, part=part) -> Tensor:
            scale = torch.ones(model.config.mlp_width, dtype=torch.float64)
            scale[part.first] = factor
            with edited(model, part.layer, "mlp", lambda x: x * scale):
                return logprobs(model, ids)

        slope = (times(1 + 1e-6) - times(1 - 1e-6)) / 2e-6
        torch.testing.assert_close(found[:, part.layer, part.first], slope, rtol=1e-5, atol=1e-7)


def test_nothing_is_owed_to_what_comes_later(model: Transformer, ids: Tensor):
    for found in (gradient_times_input(model, ids, PLACES).tokens, leaving_each_token_out(model, ids, PLACES)):
        assert not found[0, 5:].any() and not found[1, 8:].any()
        assert found[0, :5].all() and found[1, :8].all()


def test_leaving_a_token_out_is_the_text_without_it(model: Transformer, ids: Tensor, monkeypatch: pytest.MonkeyPatch):
    usual = logprobs(model, ids)
    found = leaving_each_token_out(model, ids, PLACES)
    for t in range(8):
        kept = torch.cat([ids[:t], ids[t + 1 :]])
        for n, place in enumerate(PLACES.tolist()):
            if t <= place:
                less = model(kept[None])[0, place - 1].log_softmax(-1)[ids[place + 1]]
                torch.testing.assert_close(found[n, t], usual[n] - less)
    monkeypatch.setattr("instructgpt.inside.attribution._TOKENS_AT_ONCE", 20)
    torch.testing.assert_close(leaving_each_token_out(model, ids, PLACES), found)


def test_the_only_token_before_it_cannot_be_left_out():
    model = random_model(SMALL)
    assert leaving_each_token_out(model, text(length=2), torch.tensor([0])).tolist() == [[0.0, 0.0]]
    assert leaving_each_token_out(model, text(length=3), torch.tensor([0, 1]))[1, :2].all()


def test_of_a_linear_function_gradient_times_input_is_the_function():
    """With an MLP and attention that add nothing and a norm that scales nothing, a logit is a product: complete."""
    model = random_model(SMALL)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("attention.output.weight", "mlp.down.weight")):
                parameter.zero_()
    model.final_norm = torch.nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    ids = text()
    found = gradient_times_input(model, ids, PLACES).tokens
    e, p = model.embedding.weight, model(ids[None])[0, PLACES].softmax(-1)
    for n, place in enumerate(PLACES.tolist()):
        x = e[ids[place]]
        expected = x @ e[ids[place + 1]] - p[n] @ (e @ x)  # the logit, less the logits' mean
        torch.testing.assert_close(found[n, place], expected)
        assert int(found[n].count_nonzero()) == 1
