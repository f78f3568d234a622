from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from instructgpt.errors import UserError
from instructgpt.model import backend
from instructgpt.model.backend import Backend, naive, resolve_backend, sdpa
from kernels import launch, rope_table

CPU = torch.device("cpu")


def test_auto_is_sdpa() -> None:
    assert resolve_backend("auto", CPU).name == "sdpa"
    assert resolve_backend("naive", CPU).name == "naive"


@pytest.mark.skipif(launch.INTERPRETED, reason="the kernels run here, in the interpreter")
def test_triton_says_why_not() -> None:
    with pytest.raises(UserError, match=r"--backend triton: the kernels need a CUDA device, not cpu.*; use sdpa"):
        resolve_backend("triton", CPU)


def test_triton_runs_on_a_cpu_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "INTERPRETED", True)
    assert resolve_backend("triton", CPU).name == "triton"
    assert resolve_backend("auto", CPU).name == "sdpa"  # it is for testing, and far too slow to be chosen
    with pytest.raises(UserError, match="need a CUDA device, not mps"):
        resolve_backend("triton", torch.device("mps"))


def test_triton_needs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "AVAILABLE", False)
    with pytest.raises(UserError, match="Triton is not installed here; use sdpa"):
        resolve_backend("triton", CPU)


@pytest.mark.parametrize(("capability", "chosen"), [((9, 0), "triton"), ((8, 0), "triton"), ((7, 5), "sdpa")])
def test_auto_on_a_gpu_is_triton_where_the_kernels_run(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_backend("auto", torch.device("cuda")).name == chosen
    if chosen != "triton":
        with pytest.raises(UserError, match=r"compute capability 8\.0, this GPU has 7\.5"):
            resolve_backend("triton", torch.device("cuda"))


def test_unknown_name_suggests_the_near_one() -> None:
    with pytest.raises(UserError, match="did you mean 'naive'"):
        resolve_backend("naiv", CPU)


def assert_same_with_gradients(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *tensors: Tensor) -> None:
    """Both functions give the same result and the same gradients, to float64's rounding."""
    results = []
    for function in (ours, theirs):
        inputs = [t.clone().requires_grad_() for t in tensors]
        y = function(*inputs)
        torch.manual_seed(1)
        y.backward(torch.randn(y.shape, dtype=y.dtype))
        results.append([y.detach(), *(t.grad for t in inputs)])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


@given(
    queries=st.integers(1, 9), more_keys=st.integers(0, 5), kv_heads=st.integers(1, 2), group=st.integers(1, 3),
    packed=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
def test_sdpa_attention_equals_naive(
    queries: int, more_keys: int, kv_heads: int, group: int, packed: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    keys = queries + more_keys
    q = torch.randn(2, kv_heads * group, queries, 6, dtype=torch.float64)
    k, v = torch.randn(2, 2, kv_heads, keys, 6, dtype=torch.float64)
    documents = torch.randint(3, (2, keys)).cummax(1).values if packed else None

    def attend(ops: Backend) -> Callable[..., Tensor]:
        return lambda q, k, v: ops.attention(q, k, v, ops.visibility(queries, keys, documents, CPU))

    assert_same_with_gradients(attend(sdpa()), attend(naive()), q, k, v)


def test_sdpa_needs_no_mask_for_whole_rows_and_single_queries() -> None:
    visibility = sdpa().visibility
    assert visibility(5, 5, None, CPU) is None and visibility(1, 5, None, CPU) is None
    assert visibility(2, 5, None, CPU).tolist() == [[[[True] * 4 + [False], [True] * 5]]]
    documents = torch.tensor([[0, 1, 1], [0, 0, -1]])
    bias = visibility(2, 3, documents, CPU)  # what is added to scores
    assert bias.isinf().logical_not().tolist() == [
        [[[False, True, False], [False, True, True]]], [[[True, True, False], [False, False, True]]]
    ]  # fmt: skip
    assert bias.dtype == torch.float32 and bias.unique().tolist() == [-math.inf, 0.0]
    with torch.autocast("cpu", torch.bfloat16):
        assert visibility(2, 3, documents, CPU).dtype == torch.bfloat16


def test_other_operators_of_sdpa_equal_naive() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 2, 3, 5, 8, dtype=torch.float64)  # (B, H, T, D) each
    weight, bias = torch.randn(2, 8, dtype=torch.float64)
    cos, sin = rope_table(torch.tensor([[0, 1, 2, 3, 4], [0, 1, 0, 1, 2]]), 8, 1e4, torch.float64)
    targets = torch.randint(8, (30,))
    a, b = sdpa(), naive()
    assert_same_with_gradients(lambda x, w: a.rms_norm(x, w, 1e-5), lambda x, w: b.rms_norm(x, w, 1e-5), x, weight)
    assert_same_with_gradients(
        lambda x, w, c: a.layer_norm(x, w, c, 1e-5), lambda x, w, c: b.layer_norm(x, w, c, 1e-5), x, weight, bias
    )
    assert_same_with_gradients(lambda x: a.rope(x, cos, sin), lambda x: b.rope(x, cos, sin), x)
    assert_same_with_gradients(a.swiglu, b.swiglu, x, y)
    assert_same_with_gradients(a.gelu, b.gelu, x)
    for z_loss in (0.0, 0.1):
        assert_same_with_gradients(
            lambda x, z=z_loss: a.cross_entropy(x.flatten(0, 2)[:30], targets, 0.1, z),
            lambda x, z=z_loss: b.cross_entropy(x.flatten(0, 2)[:30], targets, 0.1, z),
            x.float(),
        )
    hidden, weight = torch.randn(30, 5, dtype=torch.float64), torch.randn(8, 5, dtype=torch.float64)
    assert_same_with_gradients(
        lambda h, w: a.linear_cross_entropy(h, w, targets, 0.1),
        lambda h, w: b.linear_cross_entropy(h, w, targets, 0.1),
        hidden, weight,
    )  # fmt: skip
    assert_same_with_gradients(
        lambda h, w: torch.stack(a.linear_logprobs(h, w, targets, True)),
        lambda h, w: torch.stack(b.linear_logprobs(h, w, targets, True)),
        hidden, weight,
    )  # fmt: skip


def test_sdpa_computes_many_logits_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = torch.randn(30, 5), torch.randn(8, 5), torch.randint(8, (30,))
    chunked = []
    monkeypatch.setattr(backend.kernels, "linear_cross_entropy_chunked", lambda *_: chunked.append("loss"))
    monkeypatch.setattr(backend.kernels, "linear_logprobs_chunked", lambda *_: chunked.append("logprobs"))
    for limit in (240, 239):
        monkeypatch.setattr(backend, "_LOGITS_AT_ONCE", limit)
        assert chunked == []
        sdpa().linear_cross_entropy(hidden, weight, targets)
        sdpa().linear_logprobs(hidden, weight, targets)
    assert chunked == ["loss", "logprobs"]
