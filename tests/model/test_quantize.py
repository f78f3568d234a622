from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from instructgpt.config import ModelConfig
from instructgpt.errors import UserError
from instructgpt.model import Sequences, Transformer, cpu_ops
from instructgpt.model.attention import Attention
from instructgpt.model.inference import computed_dtype, for_inference
from instructgpt.model.quantize import QuantizedLinear, quantize

CONFIG = ModelConfig(vocab_size=32, context=32, layers=2, width=64, heads=4, kv_heads=2, bias=True)


def text(rows: int, seed: int) -> Tensor:
    """(rows, 16) tokens of a Markov chain with some 2 nats of entropy a token."""
    transitions = torch.softmax(2 * torch.randn(32, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(32, (rows,), generator=generator)]
    for _ in range(15):
        tokens.append(torch.multinomial(transitions[tokens[-1]], 1, generator=generator).squeeze(1))
    return torch.stack(tokens, dim=1)


def loss(model: Transformer, ids: Tensor) -> Tensor:
    return model.token_losses(model.hidden(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).mean()


@pytest.fixture(scope="module")
def trained() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(100):
        loss(model, text(32, step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def copy_of(model: Transformer) -> Transformer:
    copy = Transformer(CONFIG)
    copy.load_state_dict(model.state_dict())
    return copy.eval()


@pytest.mark.parametrize(("to", "ratio", "share"), [("int8", 1.01, 0.30), ("int4", 1.25, 0.18)])
def test_perplexity_hardly_rises_and_bytes_fall(trained: Transformer, to: str, ratio: float, share: float) -> None:
    validation = text(64, 10**6)
    with torch.no_grad():
        before = loss(trained, validation)
        assert before < 2.8 < math.log(32)  # it has learned something that can be lost
        quantized = quantize(copy_of(trained), to, group=32)
        after = loss(quantized, validation)
    assert 1 / ratio < torch.exp(after - before) < ratio
    linears = [m for m in trained.blocks.modules() if isinstance(m, nn.Linear)]
    exchanged = [m for m in quantized.blocks.modules() if isinstance(m, QuantizedLinear)]
    assert len(exchanged) == len(linears) == 8
    assert not any(isinstance(m, nn.Linear) for m in quantized.blocks.modules())
    bytes_of = [sum(t.numel() * t.element_size() for t in (m.packed, m.scales)) for m in exchanged]
    assert sum(bytes_of) < share * sum(4 * m.weight.numel() for m in linears)


def test_under_autocast_it_computes_in_its_format(trained: Transformer) -> None:
    layer = quantize(copy_of(trained), "int8").blocks[0].mlp.down
    x = torch.randn(2, 3, layer.packed.size(1))[..., : CONFIG.resolved().mlp_width]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert layer(x).dtype == torch.bfloat16
    assert layer(x).dtype == torch.float32


def test_weights_are_no_longer_parameters(trained: Transformer) -> None:
    names = {name for name, _ in quantize(copy_of(trained), "int4").blocks.named_parameters()}
    assert names and not any(name.endswith("weight") and "norm" not in name for name in names)


@pytest.mark.parametrize("to", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quantized_model_may_be_cast(trained: Transformer, to: str, dtype: torch.dtype) -> None:
    quantized = quantize(copy_of(trained), to)
    with torch.no_grad():
        before = quantized(text(2, 0))
        after = quantized.to(dtype)(text(2, 0))
    assert after.dtype == dtype
    torch.testing.assert_close(after.float(), before, rtol=0.1, atol=0.1)


def test_integers_that_are_not_all_packed_stay_as_they_are(trained: Transformer) -> None:
    """Groups of 128 do not divide a row of 64."""
    quantized, ids = quantize(copy_of(trained), "int4", group=128), text(2, 1)
    with torch.inference_mode():
        torch.testing.assert_close(for_inference(quantized)(ids), quantized(ids), rtol=1e-5, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            rows = Sequences(CONFIG, 2, 16, dtype=torch.bfloat16)
            assert for_inference(quantized)(ids, cache=rows.feed(ids.size(1))).isfinite().all()


@pytest.mark.skipif(not cpu_ops.can_pack(), reason="this CPU has no bfloat16")
@pytest.mark.parametrize("to", ["int8", "int4"])
def test_generation_from_integers_is_what_the_quantized_model_says(trained: Transformer, to: str) -> None:
    """The twin that generates computes in bfloat16 throughout; float32 does not tell it from the model itself."""
    quantized, ids = quantize(copy_of(trained), to, group=32), text(40, 1)
    with torch.inference_mode():
        twin, expected = for_inference(quantized), quantized(ids)
        assert computed_dtype(twin) == torch.bfloat16 and computed_dtype(quantized) == torch.float32
        rows = Sequences(CONFIG, 40, 16, dtype=torch.bfloat16)
        logits = torch.cat([twin(piece, cache=rows.feed(piece.size(1))) for piece in ids.split((14, 1, 1), dim=1)], 1)
        whole = twin(ids)
    assert (whole.float() - expected).norm() < 0.02 * expected.norm()
    assert (logits.float() - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("to", ["int8", "int4"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_head_has_8_bits_on_a_cpu_and_says_almost_the_same(to: str, tied: bool) -> None:
    """Against float64: each weight is off by half a step at most, the row's largest over 127, and so the logits by
    about that over √3, times the hidden state; bfloat16 rounds weights' scales, state and logit beside it."""
    torch.manual_seed(0)
    model = Transformer(replace(CONFIG, tie_embeddings=tied)).eval()
    weight = model.output_weight.detach().double()
    hidden = torch.randn(7, CONFIG.width) * torch.logspace(-1, 1, 7)[:, None]
    exact = hidden.double() @ weight.T
    quantized = quantize(model, to)
    for said in (quantized, for_inference(quantized)):
        with torch.inference_mode():
            found = said.head(hidden).double()
        step = weight.abs().amax(1) / 127 / 12**0.5  # (V,) the error of a weight
        rounding = 2**-8 * (hidden.double().abs() @ weight.T.abs())
        bound = 4 * hidden.double().norm(dim=1)[:, None] * step + rounding
        assert ((found - exact).abs() < bound).all()
    with torch.inference_mode():  # the loss is of the weights that are looked up, and trained
        assert torch.equal(quantized.output_weight.double(), weight)


def test_a_row_does_not_depend_on_its_batch(trained: Transformer) -> None:
    """Generation step by step, alone and beside others."""
    for to in ("int8", "int4"):
        with torch.inference_mode():
            twin, ids = for_inference(quantize(copy_of(trained), to, group=32)), text(5, 3)
            logits = []
            for its in (ids, ids[2:3]):
                rows = Sequences(CONFIG, len(its), 16, dtype=torch.bfloat16)
                twin(its[:, :8], cache=rows.feed(8))
                logits.append(torch.cat([twin(its[:, t : t + 1], cache=rows.feed(1)) for t in range(8, 16)], 1))
        together, alone = logits[0][2].float(), logits[1][0].float()
        assert (together - alone).norm() < 0.02 * alone.norm()


def test_a_twin_in_float32_says_the_same_and_leaves_the_model(trained: Transformer) -> None:
    ids, backend = text(3, 2), trained.backend
    with torch.inference_mode():
        twin = for_inference(trained)
        torch.testing.assert_close(twin(ids), trained(ids), rtol=1e-5, atol=1e-5)
    assert twin.embedding.weight is trained.embedding.weight
    of_each = [{m.backend for m in model.modules() if isinstance(m, Attention)} for model in (trained, twin)]
    assert of_each[0] == {backend} and backend not in of_each[1]


def test_unknown_format_suggests_the_near_one(trained: Transformer) -> None:
    with pytest.raises(UserError, match="--quantize int7 is unknown"):
        quantize(copy_of(trained), "int7")
