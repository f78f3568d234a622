from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.config import MODEL_PRESETS, ModelConfig
from instructgpt.errors import UserError
from instructgpt.model import Transformer
from instructgpt.model.attention import Scope

LLAMA = ModelConfig(vocab_size=50, context=24, layers=2, width=32, heads=4, kv_heads=2, qk_norm=True)
GPT2 = replace(
    MODEL_PRESETS["gpt2"], vocab_size=50, context=24, layers=2, width=32, heads=4, kv_heads=4, head_dim=8,
    mlp_width=128, dropout=0.0,
)  # fmt: skip


def build(config: ModelConfig, seed: int = 0) -> Transformer:
    """A model whose logits depend on all of its parts: weights larger than at the start of training."""
    model = Transformer(config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("config", [LLAMA, GPT2, replace(LLAMA, tie_embeddings=False)])
@given(cut=st.integers(1, 23), seed=st.integers(0, 999))
def test_a_token_changes_no_earlier_logits(config: ModelConfig, cut: int, seed: int) -> None:
    torch.manual_seed(seed)
    model, ids = build(config), torch.randint(50, (1, 24))
    changed = ids.clone()
    changed[0, cut] = (ids[0, cut] + 1) % 50
    a, b = model(ids), model(changed)
    torch.testing.assert_close(a[:, :cut], b[:, :cut])
    assert not torch.allclose(a[:, cut], b[:, cut])


def test_too_many_tokens_are_refused_with_both_numbers() -> None:
    with pytest.raises(UserError, match="25 tokens do not fit in the model's context of 24"):
        build(LLAMA)(torch.zeros(1, 25, dtype=torch.long))


def test_a_model_needs_a_vocabulary() -> None:
    with pytest.raises(UserError, match="vocab_size is 0"):
        Transformer(MODEL_PRESETS["tiny"])


def test_initialisation_is_gpt2s() -> None:
    model = Transformer(replace(GPT2, width=128, mlp_width=512, head_dim=32, layers=8, vocab_size=500))
    deviations = {name: p.std().item() for name, p in model.named_parameters() if p.ndim == 2}
    residual = 0.02 / 16**0.5  # two projections into the stream for each of 8 layers
    for name, deviation in deviations.items():
        expected = residual if name.endswith(("attention.output.weight", "mlp.down.weight")) else 0.02
        assert deviation == pytest.approx(expected, rel=0.1), name
    assert all((p == (1 if "norm.weight" in n else 0)).all() for n, p in model.named_parameters() if p.ndim == 1)


def test_reset_is_reproducible() -> None:
    models = [Transformer(LLAMA), Transformer(LLAMA)]
    assert not torch.equal(models[0].embedding.weight, models[1].embedding.weight)
    for model in models:
        model.reset(torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters()))


def test_initial_loss_is_that_of_a_uniform_guess() -> None:
    torch.manual_seed(0)
    model = Transformer(replace(LLAMA, vocab_size=1000))
    ids = torch.randint(1000, (4, 24))
    losses = model.token_losses(model.hidden(ids).flatten(0, 1), torch.randint(1000, (96,)))
    assert losses.mean().item() == pytest.approx(torch.tensor(1000.0).log().item(), abs=0.1)


@pytest.mark.parametrize("tied", [True, False])
def test_token_losses_are_the_cross_entropy_of_the_logits(tied: bool) -> None:
    torch.manual_seed(0)
    model = build(replace(LLAMA, tie_embeddings=tied))
    ids, targets = torch.randint(50, (2, 2, 9))
    expected = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(model.token_losses(model.hidden(ids).flatten(0, 1), targets.flatten(), 0.1), expected)


def test_a_tied_head_is_the_embedding() -> None:
    assert not any(name.startswith("head") for name, _ in Transformer(LLAMA).named_parameters())
    untied = Transformer(replace(LLAMA, tie_embeddings=False))
    assert untied.head_weight is not None and untied.head_weight.shape == untied.embedding.weight.shape


def test_no_tokens_give_no_losses_and_zero_gradients() -> None:
    model = Transformer(LLAMA)
    hidden = model.hidden(torch.zeros(1, 4, dtype=torch.long))
    losses = model.token_losses(hidden[torch.zeros(1, 4, dtype=torch.bool)], torch.zeros(0, dtype=torch.long))
    losses.sum().backward()
    assert losses.shape == (0,)
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_positions_restart_in_each_document() -> None:
    """Learned positions show it in the logits: the given positions and the derived ones agree."""
    torch.manual_seed(0)
    model, ids = build(GPT2), torch.randint(50, (2, 6))
    documents = torch.tensor([[0, 0, 0, 1, 1, -1], [0, 1, 1, 1, 1, 2]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 0]])
    assert torch.equal(model(ids, documents=documents), model(ids, positions, documents))
    assert not torch.allclose(model(ids, documents=documents), model(ids, torch.arange(6).expand(2, 6), documents))


def test_dropout_acts_in_training_only() -> None:
    model, ids = build(replace(LLAMA, dropout=0.5)), torch.arange(9)[None]
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))


def test_dropout_covers_embedding_attention_and_mlp() -> None:
    """Where all is dropped, the embedding is zero and a block adds nothing to the stream."""
    model, ids = build(LLAMA).train(), torch.arange(9)[None]
    block, x = model.blocks[0], torch.randn(1, 9, 32)
    block.dropout.p = 1.0
    assert torch.equal(block(x, Scope(None, None, torch.zeros(1, 1), None)), x)
    assert model.hidden(ids).any()
    model.dropout.p = 1.0
    assert not model.hidden(ids).any()


@pytest.mark.parametrize("config", [LLAMA, replace(LLAMA, kv_heads=4), GPT2])
@pytest.mark.parametrize("precision", ["autocast", "weights"])
def test_bfloat16_runs_forward_and_backward(config: ModelConfig, precision: str) -> None:
    """Autocast keeps float32 weights and gradients; bfloat16 weights have bfloat16 gradients. Both train alike."""
    torch.manual_seed(0)
    model, ids, targets = build(config), torch.randint(50, (2, 20)), torch.randint(50, (40,))
    exact = model.token_losses(model.hidden(ids).flatten(0, 1), targets).mean()
    if precision == "weights":
        model.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "autocast"):
        losses = model.token_losses(model.hidden(ids).flatten(0, 1), targets)
    losses.mean().backward()
    assert losses.dtype == torch.float32
    assert losses.mean().item() == pytest.approx(exact.item(), rel=0.03)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
