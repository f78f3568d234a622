from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from instructgpt.inside.trace import blocks, onwards, probabilities, readable, record, targets_after
from instructgpt.model.adapters import LoRA, adapters_of, add_adapter
from instructgpt.model.quantize import QuantizedLinear, quantize
from instructgpt.model.transformer import Transformer
from kernels import attention_reference
from tests.inside.conftest import SMALL, random_model, text


def test_attention_times_values_is_what_the_heads_say(model: Transformer, ids: Tensor):
    trace, config = record(model, ids), model.config
    H, K, D = config.heads, config.kv_heads, config.head_dim
    for layer, block in enumerate(blocks(model)):
        qkv = block.attention.qkv(block.attention_norm(trace.stream[layer]))
        v = qkv[:, (H + K) * D :].view(-1, K, D).transpose(0, 1).repeat_interleave(H // K, dim=0)  # (H, T, D)
        said = (trace.attention[layer] @ v).transpose(0, 1).reshape(len(ids), H * D)
        torch.testing.assert_close(said, trace.heads[layer], rtol=0, atol=1e-12)


def test_a_row_of_attention_is_a_distribution_over_what_stands_before(model: Transformer, ids: Tensor):
    for attention in record(model, ids).attention:
        torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))
        assert not attention.triu(1).any()


def test_what_stands_in_the_stream_is_what_each_layer_added(model: Transformer, ids: Tensor):
    trace = record(model, ids)
    assert len(trace.stream) == model.config.layers + 1
    torch.testing.assert_close(model.head(model.final_norm(trace.stream[-1])), model(ids[None])[0])
    for layer, block in enumerate(blocks(model)):
        added = block.attention.output(trace.heads[layer]) + block.mlp.down(trace.neurons[layer])
        torch.testing.assert_close(trace.stream[layer + 1], trace.stream[layer] + added)


def test_recording_leaves_the_model_as_it_was(model: Transformer, ids: Tensor):
    before = model(ids[None])
    record(model, ids)
    assert torch.equal(model(ids[None]), before)
    assert all(block.attention.backend is model.backend for block in blocks(model))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_going_on_from_a_layer_is_the_whole_forward(model: Transformer, ids: Tensor, layer: int):
    places = torch.tensor([2, 8])
    logits = onwards(model, record(model, ids).stream[layer][None], layer, places)
    torch.testing.assert_close(logits, model(ids[None])[:, places])


def test_probabilities_are_those_of_the_reference():
    q, k, v = (torch.randn(1, heads, 7, 4, dtype=torch.float64) for heads in (4, 2, 2))
    expected = attention_reference(q, k, v, causal=True)
    torch.testing.assert_close(probabilities(q, k) @ v.repeat_interleave(2, dim=1), expected)
    assert probabilities(q.bfloat16(), k.bfloat16()).dtype == torch.float32


def test_log_probabilities_of_targets():
    logits = torch.tensor([[[0.0, 0.0], [0.0, 3.0]]], dtype=torch.float64)
    found = targets_after(logits, torch.tensor([1, 0]))
    torch.testing.assert_close(found, torch.tensor([[-0.693147, -3.048587]], dtype=torch.float64), atol=1e-6, rtol=0)


def test_an_adapter_in_use_is_part_of_what_is_read(ids: Tensor):
    model = add_adapter(random_model(SMALL), LoRA(rank=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".B"):
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    expected = model(ids[None])
    assert not torch.allclose(expected, random_model(SMALL)(ids[None]))
    torch.testing.assert_close(readable(model)(ids[None]), expected)
    assert not adapters_of(model) and all(type(block.mlp.down) is torch.nn.Linear for block in blocks(model))
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_weights_of_few_bits_are_read_as_the_numbers_they_stand_for(format: str):
    shape = replace(SMALL, width=64, mlp_width=64)
    model = quantize(random_model(shape).float(), format)
    expected = model.hidden(text()[None])
    found = readable(model)
    assert not any(isinstance(module, QuantizedLinear) for module in found.modules())
    assert found.packed_head is None
    # A CPU's own products of few bits round activations to bfloat16.
    torch.testing.assert_close(found.hidden(text()[None]), expected, rtol=0.05, atol=0.1)
