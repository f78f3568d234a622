from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from instructgpt.config import ModelConfig
from instructgpt.model import Sequences, Transformer
from instructgpt.model.backend import Backend, naive, sdpa, triton
from instructgpt.model.checkpointing import Checkpointing
from instructgpt.model.heads import RewardModel
from kernels.launch import INTERPRETED

ALL: tuple[Checkpointing, ...] = get_args(Checkpointing)
SMALL = ModelConfig(vocab_size=30, context=16, layers=2, width=16, heads=2)
configs = st.builds(
    lambda kv_heads, group, half_head_dim, **rest: replace(
        SMALL, heads=kv_heads * group, kv_heads=kv_heads, head_dim=2 * half_head_dim, **rest
    ),
    kv_heads=st.integers(1, 2), group=st.integers(1, 3), half_head_dim=st.integers(1, 4), layers=st.integers(1, 3),
    width=st.integers(4, 24), mlp=st.sampled_from(["gelu", "swiglu"]), norm=st.sampled_from(["layernorm", "rmsnorm"]),
    position=st.sampled_from(["learned", "rope"]), bias=st.booleans(), qk_norm=st.booleans(),
    qk_window=st.integers(1, 4), dropout=st.sampled_from([0.0, 0.3]),
)  # fmt: skip


def gradients(
    model: Transformer, how: Checkpointing, tokens: int = 12, packed: bool = True, autocast: bool = False
) -> list[Tensor]:
    """Loss and gradients; whatever `how`, of the same batch and the same dropout."""
    torch.manual_seed(1)
    model.checkpoint(how)
    model.zero_grad()
    device = model.device
    ids, targets = torch.randint(30, (2, 3, tokens), device=device)
    documents = torch.randint(2, (3, tokens), device=device).cummax(1).values if packed else None
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        hidden = model.hidden(ids, documents=documents)
        loss = model.token_losses(hidden.flatten(0, 1), targets.flatten()).sum()
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def assert_same_bits(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


@given(
    config=configs, backend=st.sampled_from([naive, sdpa]), tokens=st.integers(1, 16), packed=st.booleans(),
    autocast=st.booleans(),
)  # fmt: skip
def test_gradients_are_the_same_bits(config: ModelConfig, backend, tokens: int, packed: bool, autocast: bool) -> None:
    model = Transformer(config, backend()).train()
    expected = gradients(model, "none", tokens, packed, autocast)
    for how in ALL:
        assert_same_bits(gradients(model, how, tokens, packed, autocast), expected)


def test_dropout_is_drawn_again_as_it_was() -> None:
    model = Transformer(replace(SMALL, dropout=0.5))
    assert not torch.equal(gradients(model.train(), "none")[1], gradients(model.eval(), "none")[1])
    assert_same_bits(gradients(model.train(), "blocks"), gradients(model.train(), "none"))
    after = torch.rand(1)
    gradients(model, "none")
    assert torch.equal(torch.rand(1), after), "the random numbers that follow are those of a run without"


@pytest.mark.skipif(not INTERPRETED, reason="the kernels run natively here: see the test on a GPU")
@pytest.mark.parametrize("how", ["blocks", "selective"])
def test_kernels_are_computed_again(how: Checkpointing) -> None:
    model = Transformer(replace(SMALL, layers=1, qk_norm=True, bias=True), triton())
    assert_same_bits(gradients(model, how, tokens=5), gradients(model, "none", tokens=5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", [sdpa, triton])
@pytest.mark.parametrize("how", ["blocks", "selective"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_on_a_gpu(backend, how: Checkpointing, dropout: float) -> None:
    model = Transformer(replace(SMALL, width=64, head_dim=32, dropout=dropout), backend()).cuda().train()
    expected = gradients(model, "none", tokens=16, autocast=True)
    # The embedding's gradient is added up in no fixed order by PyTorch.
    for a, b in zip(gradients(model, how, tokens=16, autocast=True), expected, strict=True):
        torch.testing.assert_close(a, b)


def flops(how: Checkpointing, backend: Backend, config: ModelConfig = SMALL) -> int:
    with FlopCounterMode(display=False) as counter:
        gradients(Transformer(config, backend), how, tokens=16, autocast=True)
    return counter.get_total_flops()


def test_what_is_computed_again() -> None:
    config = replace(SMALL, mlp="gelu").resolved()
    C, M, D, tokens = config.width, config.mlp_width, config.head_dim, 3 * 16
    once = flops("none", sdpa(), config)
    # All of a block but the MLP's last product: nothing that the backward needs comes of it.
    products = 2 * tokens * config.layers * (C * 3 * C + C * C + C * M)
    attention = 2 * 2 * tokens * config.layers * 16 * C
    assert flops("blocks", sdpa(), config) == once + products + attention
    assert flops("selective", sdpa(), config) == once
    assert 16 <= 2 * D, "here the scores are few; elsewhere they are computed again, and nothing else"
    small_heads = replace(config, head_dim=2)
    scores = 2 * tokens * config.layers * config.heads * 16 * 2
    assert flops("selective", sdpa(), small_heads) == flops("none", sdpa(), small_heads) + scores


@pytest.mark.parametrize("how", ["blocks", "selective"])
def test_it_is_compiled_as_a_whole(how: Checkpointing) -> None:
    model = Transformer(replace(SMALL, layers=1))
    model.checkpoint(how)

    @torch.compile(backend="aot_eager_decomp_partition", fullgraph=True)
    def loss(ids: Tensor) -> Tensor:
        return model.token_losses(model.hidden(ids).flatten(0, 1), ids.flatten()).sum()

    ids = torch.randint(30, (2, 8))
    with torch.random.fork_rng():
        loss(ids).backward()
    compiled = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    model.checkpoint("none")
    model.token_losses(model.hidden(ids).flatten(0, 1), ids.flatten()).sum().backward()
    for a, b in zip(compiled, model.parameters(), strict=True):
        torch.testing.assert_close(a, b.grad)


def test_without_gradients_nothing_is_kept_and_nothing_changes() -> None:
    model = RewardModel(Transformer(SMALL))
    model.transformer.checkpoint("blocks")
    rows = Sequences(SMALL, rows=1, capacity=4)
    with torch.inference_mode():
        model.transformer.hidden(torch.zeros(1, 2, dtype=torch.long), cache=rows.feed(2))
    assert rows.lengths == [2]
