"""Invariant: the sdpa and triton backends compute what the naive one does, in logits, losses and every gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from instructgpt.config import ModelConfig
from instructgpt.model import Transformer
from instructgpt.model.backend import Backend, naive, sdpa, triton
from instructgpt.model.cache import Sequences
from kernels.launch import INTERPRETED

configs = st.builds(
    lambda kv_heads, group, half_head_dim, **rest: ModelConfig(
        heads=kv_heads * group, kv_heads=kv_heads, head_dim=2 * half_head_dim, vocab_size=30, context=16, **rest
    ),
    kv_heads=st.integers(1, 2), group=st.integers(1, 3), half_head_dim=st.integers(1, 4), layers=st.integers(1, 2),
    width=st.integers(4, 24), mlp=st.sampled_from(["gelu", "swiglu"]), norm=st.sampled_from(["layernorm", "rmsnorm"]),
    position=st.sampled_from(["learned", "rope"]), bias=st.booleans(), tie_embeddings=st.booleans(),
    qk_norm=st.booleans(), qk_window=st.integers(1, 4),
)  # fmt: skip


@given(config=configs, tokens=st.integers(1, 16), packed=st.booleans(), seed=st.integers(0, 999))
def test_naive_equals_sdpa(config: ModelConfig, tokens: int, packed: bool, seed: int) -> None:
    torch.manual_seed(seed)
    models = [Transformer(config, backend()).double() for backend in (naive, sdpa)]
    for ours, theirs in zip(models[0].parameters(), models[1].parameters()):
        ours.data += 0.2 * torch.randn_like(ours)
        theirs.data.copy_(ours)
    ids, targets = torch.randint(30, (2, tokens)), torch.randint(30, (2 * tokens,))
    documents = torch.randint(2, (2, tokens)).cummax(1).values if packed else None
    results = []
    for model in models:
        hidden = model.hidden(ids, documents=documents)
        losses = model.token_losses(hidden.flatten(0, 1), targets, label_smoothing=0.1)
        logprobs, entropy = model.token_logprobs(hidden.flatten(0, 1), targets, with_entropy=True)
        (losses.sum() + 0.3 * logprobs.square().sum() - 0.1 * entropy.sum()).backward()
        results.append([
            model.head(hidden).detach(), losses.detach(), logprobs.detach(), entropy.detach(),
            *(p.grad for p in model.parameters()),
        ])  # fmt: skip
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


# ---- triton: natively on a GPU, elsewhere in Triton's interpreter

needs_kernels = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="no Triton, or neither a CUDA device nor the interpreter"
)
DEVICE = "cpu" if INTERPRETED else "cuda"
LLAMA = ModelConfig(
    vocab_size=40, context=16, layers=2, width=24, heads=4, kv_heads=2, head_dim=8, qk_norm=True, qk_window=3
)
GPT2 = ModelConfig(
    vocab_size=40, context=16, layers=1, width=24, heads=3, mlp="gelu", norm="layernorm", position="learned", bias=True
)
# Two documents and padding, and a document of one token.
DOCUMENTS = torch.tensor([[0] * 5 + [1] * 4 + [-1] * 3, [0] + [1] * 11])


def build(config: ModelConfig, backend: Callable[[], Backend], dtype: torch.dtype = torch.float32) -> Transformer:
    """The same weights whatever the backend, large enough for attention and gates to be far from uniform."""
    model, generator = Transformer(config, backend()), torch.Generator().manual_seed(0)
    model.reset(generator)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.to(DEVICE, dtype)


def losses_and_gradients(model: Transformer, documents: Tensor | None) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids, targets = torch.randint(40, (2, 2, 12), generator=generator).to(DEVICE)
    is_target = torch.ones(2, 12, dtype=torch.bool) if documents is None else documents >= 0
    is_target = is_target.to(DEVICE)
    hidden = model.hidden(ids, documents=None if documents is None else documents.to(DEVICE))[is_target]  # (N, C)
    losses = model.token_losses(hidden, targets[is_target], label_smoothing=0.1)
    logprobs, entropy = model.token_logprobs(hidden, targets[is_target], with_entropy=True)
    (losses.sum() + 0.3 * logprobs.square().sum() - 0.1 * entropy.sum()).backward()
    results = {"losses": losses, "logprobs": logprobs, "entropy": entropy}
    results |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: t.detach().double() for name, t in results.items()}


@needs_kernels
@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_triton_is_as_accurate_as_naive(config: ModelConfig, packed: bool) -> None:
    """Every loss and every gradient is about as near to float64's as those of the naive backend in float32."""
    documents = DOCUMENTS if packed else None
    exact = losses_and_gradients(build(config, naive, torch.float64), documents)
    theirs = losses_and_gradients(build(config, naive), documents)
    ours = losses_and_gradients(build(config, triton), documents)
    assert ours.keys() == exact.keys() and len(ours) == 3 + len(list(build(config, naive).parameters()))
    for name, right in exact.items():
        limit = 3 * (theirs[name] - right).norm() + 2e-6 * right.norm()
        assert (ours[name] - right).norm() <= limit, name


@needs_kernels
def test_training_follows_the_same_curve() -> None:
    curves = {}
    for backend in (naive, sdpa, triton):
        model = build(GPT2, backend)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        ids = torch.arange(24, device=DEVICE).view(2, 12)
        curve = []
        for _ in range(4):
            losses = model.token_losses(model.hidden(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            losses.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            curve.append(losses.mean().item())
        curves[backend.__name__] = curve
    assert curves["naive"][-1] < curves["naive"][0] - 0.2  # it learns
    assert curves["sdpa"] == pytest.approx(curves["naive"], rel=1e-3)
    assert curves["triton"] == pytest.approx(curves["naive"], rel=1e-3)


@needs_kernels
def test_triton_reads_a_cache_in_pages() -> None:
    """Prompts, more of one beside the next token of another, and a token of each, which is another kernel's work."""
    hidden = {}
    for backend in (sdpa, triton):
        model, ids = build(LLAMA, backend), torch.arange(16, device=DEVICE)[None]
        rows = Sequences(LLAMA, 2, 9, DEVICE, block_size=4)
        with torch.inference_mode():
            steps = zip(ids.split((9, 5, 2), dim=1), ((6, 3), (1, 4), 1))
            pieces = [model.hidden(piece, cache=rows.feed(counts)) for piece, counts in steps]
        hidden[backend.__name__] = torch.cat(pieces, dim=1)
    torch.testing.assert_close(hidden["triton"], hidden["sdpa"], rtol=1e-4, atol=1e-4)


@needs_kernels
def test_the_triton_model_compiles_as_one_graph() -> None:
    model, documents = build(LLAMA, triton), DOCUMENTS.to(DEVICE)
    ids, targets = torch.arange(24, device=DEVICE).view(2, 12), torch.arange(24, device=DEVICE)

    def loss() -> Tensor:
        return model.token_losses(model.hidden(ids, documents=documents).flatten(0, 1), targets).sum()

    loss().backward()
    right = [p.grad for p in model.parameters()]
    model.zero_grad()
    torch.compile(loss, fullgraph=True, backend="aot_eager")().backward()
    for ours, theirs in zip(model.parameters(), right):
        torch.testing.assert_close(ours.grad, theirs)
