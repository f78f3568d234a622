from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels import attention, attention_reference
from kernels.attention import key_intervals
from kernels.attention_backward import query_intervals

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def heads(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Random leaves on the device that kernels run on here."""
    torch.manual_seed(0)
    return [torch.randn(*shape, device=DEVICE).to(dtype).requires_grad_() for shape in shapes]


def attention_by_hand(q: Tensor, k: Tensor, v: Tensor, may_attend: Tensor, scale: float) -> Tensor:
    """One query of one head after the other, over the keys it may attend to and no others."""
    out = torch.zeros_like(q)
    group = q.size(1) // k.size(1)
    for b in range(q.size(0)):
        for h in range(q.size(1)):
            for i in range(q.size(2)):
                keys = may_attend[b, i].nonzero().squeeze(1)
                if len(keys):
                    scores = k[b, h // group, keys] @ q[b, h, i] * scale
                    out[b, h, i] = torch.softmax(scores, 0) @ v[b, h // group, keys]
    return out


@given(
    queries=st.integers(1, 6), keys=st.integers(1, 6), kv_heads=st.integers(1, 2), group=st.integers(1, 3),
    head_dim=st.integers(1, 5), causal=st.booleans(), masked=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
def test_equals_attention_by_hand(
    queries: int, keys: int, kv_heads: int, group: int, head_dim: int, causal: bool, masked: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    q = torch.randn(2, kv_heads * group, queries, head_dim, dtype=torch.float64)
    k, v = torch.randn(2, 2, kv_heads, keys, head_dim, dtype=torch.float64)
    may_attend = torch.rand(2, queries, keys) < 0.5 if masked else torch.ones(2, queries, keys, dtype=torch.bool)
    allowed = may_attend.clone()
    if causal:  # the last query stands at the last key
        for i in range(queries):
            allowed[:, i, max(0, i + keys - queries + 1) :] = False
    out = attention_reference(q, k, v, may_attend[:, None] if masked else None, causal, scale=0.7)
    torch.testing.assert_close(out, attention_by_hand(q, k, v, allowed, 0.7))


def test_default_scale_and_causality_are_torchs() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(
        attention_reference(q, k, v, causal=True), F.scaled_dot_product_attention(q, k, v, is_causal=True)
    )


def test_a_query_without_keys_gives_zero_and_clean_gradients() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    may_attend = torch.tensor([[True, False, False], [False, False, False], [True, True, False]])
    out = attention_reference(q, k, v, may_attend)
    out.sum().backward()
    assert out[0, 0, 1].eq(0).all()
    assert all(t.grad is not None and t.grad.isfinite().all() for t in (q, k, v))
    assert q.grad is not None and q.grad[0, 0, 1].eq(0).all()


def test_gradient_of_the_docstring() -> None:
    torch.manual_seed(0)
    q = torch.randn(1, 4, 5, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(1, 2, 5, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    do = torch.randn(1, 4, 5, 8, dtype=torch.float64)
    o = attention_reference(q, k, v, causal=True)
    o.backward(do)
    scale, past = 1 / math.sqrt(8), torch.ones(5, 5, dtype=torch.bool).tril()
    keys, values = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    p = torch.softmax((scale * q @ keys.mT).masked_fill(~past, -math.inf), -1)
    ds = p * (do @ values.mT - (o * do).sum(-1, keepdim=True))

    def per_kv_head(grad: Tensor) -> Tensor:
        return grad.view(1, 2, 2, 5, 8).sum(2)

    torch.testing.assert_close(q.grad, scale * ds @ keys)
    torch.testing.assert_close(k.grad, per_kv_head(scale * ds.mT @ q))
    torch.testing.assert_close(v.grad, per_kv_head(p.mT @ do))


def test_documents_and_window_by_hand() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 6, 4, dtype=torch.float64)
    documents = torch.tensor([[0, 0, 0, 1, 1, -1]])
    allowed = torch.tensor([
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],  # the window of 2 has left the first key behind
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],  # padding
    ]).bool()  # fmt: skip
    expected = attention_by_hand(q, k, v, allowed[None], 0.5)
    torch.testing.assert_close(attention_reference(q, k, v, causal=True, documents=documents, window=2), expected)


def test_soft_cap_and_log_sum_exp_of_the_reference() -> None:
    torch.manual_seed(0)
    q, k, v = 10 * torch.randn(3, 1, 2, 5, 4, dtype=torch.float64)
    scores = 3.0 * torch.tanh(q @ k.mT / 2 / 3.0)
    o, lse = attention_reference(q, k, v, soft_cap=3.0, return_lse=True)
    torch.testing.assert_close(o, torch.softmax(scores, -1) @ v)
    torch.testing.assert_close(lse, torch.logsumexp(scores, -1))


@given(
    keys=st.integers(1, 12), missing=st.integers(-3, 11), causal=st.booleans(), window=st.integers(0, 5),
    documents=st.integers(0, 3), padding=st.integers(0, 4), seed=st.integers(0, 99),
)  # fmt: skip
def test_intervals_say_what_the_reference_masks(
    keys: int, missing: int, causal: bool, window: int, documents: int, padding: int, seed: int
) -> None:
    torch.manual_seed(seed)
    queries = max(1, keys - (max(missing, 0) if documents else missing))
    number = None
    if documents:
        number = torch.randint(documents, (2, keys)).sort(1).values
        number[0, keys - min(padding, keys) :] = -1
    by_query = key_intervals(queries, keys, torch.device("cpu"), causal, number, window)  # (B or 1, queries, 2)
    by_key = query_intervals(by_query, keys)  # (B or 1, keys, 2)
    first, end = by_query.expand(2, -1, -1)[..., None].unbind(2)
    reached = (torch.arange(keys) >= first) & (torch.arange(keys) < end)  # (2, queries, keys)
    # With one-hot values a row of o is what its query gives each key.
    q, k = torch.zeros(2, 1, queries, 1), torch.zeros(2, 1, keys, 1)
    weights = attention_reference(
        q, k, torch.eye(keys).expand(2, 1, -1, -1), causal=causal, documents=number, window=window
    )
    assert torch.equal(reached, weights[:, 0] > 0)
    first, end = by_key.expand(2, -1, -1)[..., None].unbind(2)
    assert torch.equal(reached.mT, (torch.arange(queries) >= first) & (torch.arange(queries) < end))


BOTH = pytest.mark.parametrize("function", [attention, attention_reference])
quiet = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of NaN and overflow in the interpreter


@quiet
def test_other_documents_are_never_loaded() -> None:
    """NaN times a weight of 0 would be NaN: neither direction may touch what belongs to another document."""
    length = 256 if DEVICE == "cuda" else 32  # where a document ends, so does a block of queries or keys
    q, k, v, do = heads(*[(1, 1, 2 * length, 16)] * 4)
    documents = torch.arange(2, device=DEVICE).repeat_interleave(length)[None]
    for tensor in (q, k, v, do):
        tensor.data[:, :, length:] = torch.nan
    o = attention(q, k, v, documents=documents)
    assert o[:, :, :length].isfinite().all() and o[:, :, length:].isnan().all()
    for gradient in torch.autograd.grad(o, (q, k, v), do):
        assert gradient[:, :, :length].isfinite().all()


MASKS: dict[str, dict[str, Any]] = {
    "causal": {"causal": True},
    "window": {"window": 5},
    "documents": {"documents": torch.tensor([0] * 5 + [1] * 12 + [2] * 2 + [-1] * 4)},
    "all": {"causal": True, "window": 9, "documents": torch.tensor([3] * 11 + [7] * 9 + [-1] * 3)},
}


@quiet
@BOTH
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("spoilt", ["q", "k", "v", "do"])
def test_a_query_feels_nothing_of_what_it_may_not_attend_to(
    function: Callable[..., Any], mask: str, spoilt: str
) -> None:
    """NaN in one row: results and gradients are those of each query alone with the keys that it attends to."""
    length, options = 23, dict(MASKS[mask])
    leaves: dict[str, Tensor] = dict(zip(("q", "k", "v", "do"), heads(*[(1, H, length, 3) for H in (2, 1, 1, 2)])))
    leaves[spoilt].data[:, -1, 13, 1] = torch.nan
    may_attend = torch.ones(length, length, dtype=torch.bool)
    if "causal" in options:
        may_attend &= torch.ones_like(may_attend).tril()
    if "window" in options:
        may_attend &= torch.ones_like(may_attend).triu(1 - options["window"]).tril(options["window"] - 1)
    if "documents" in options:
        number = options["documents"]
        may_attend &= (number[:, None] == number) & (number >= 0)
        options["documents"] = number[None].to(DEVICE)

    def results(o: Tensor, *given: Tensor) -> list[Tensor]:
        return [o.detach().cpu(), *(g.cpu() for g in torch.autograd.grad(o, given, leaves["do"].to(o.device)))]

    q, k, v = (leaves[name].detach().cpu().requires_grad_() for name in "qkv")
    leaves["do"] = leaves["do"].detach()
    right = results(attention_by_hand(q, k, v, may_attend[None], 0.5), q, k, v)
    q, k, v = (leaves[name] for name in "qkv")
    got = results(function(q, k, v, scale=0.5, **options), q, k, v)
    for ours, theirs in zip(got, right):
        torch.testing.assert_close(ours, theirs, equal_nan=True)
    assert got[0].isfinite().any() and (got[0].isnan().any() or spoilt == "do")


@quiet
@BOTH
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("spoilt", ["k", "v"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_not_finite_in_the_future_leaves_the_past_as_it_was(
    function: Callable[..., Any], value: float, spoilt: str, dtype: torch.dtype
) -> None:
    """The same numbers come out, forward and backward, as without it."""
    q, k, v = heads((1, 3, 40, 8), (1, 1, 40, 8), (1, 1, 40, 8), dtype=dtype)
    do = torch.ones_like(q)
    do[:, :, 20:] = 0.0
    clean = function(q, k, v, causal=True)
    {"k": k, "v": v}[spoilt].data[:, :, 20] = value
    o = function(q, k, v, causal=True)
    assert torch.equal(o[:, :, :20], clean[:, :, :20])
    if math.isnan(value) or spoilt == "v":
        assert o[:, :, 20:].isnan().all()
    dq = torch.autograd.grad(o, q, do)[0]
    assert torch.equal(dq[:, :, :20], torch.autograd.grad(clean, q, do)[0][:, :, :20])


@BOTH
@pytest.mark.parametrize(
    "numbers", [[0, 0, 1, 1, 0, 0], [3, 2, 1, 0, 0, 0], [-1, -1, 0, 0, 0, 0], [0, 0, -1, 0, 1, 1]], ids=str
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8])
def test_a_row_whose_documents_fall_is_nan_and_no_other(
    function: Callable[..., Any], numbers: list[int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = heads(*[(2, 2, 6, 4)] * 3)
    documents = torch.tensor([numbers, [0, 0, 127, 127, -1, -1]], dtype=dtype, device=DEVICE)
    o, lse = function(q, k, v, documents=documents, causal=True, return_lse=True)
    assert o[0].isnan().all() and lse[0].isnan().all()
    alone = attention_reference(q[1:], k[1:], v[1:], documents=documents[1:], causal=True)
    torch.testing.assert_close(o[1:], alone)
    for gradient in torch.autograd.grad(o, (q, k, v), torch.ones_like(o)):
        assert gradient[0].eq(0).all() and gradient[1].isfinite().all()
    monkeypatch.setenv("KERNELS_DEBUG", "1")
    with pytest.raises(ValueError, match=r"documents\[0, \d\] is -?\d, after -?\d: numbers must not fall"):
        function(q, k, v, documents=documents)
    function(q[1:], k[1:], v[1:], documents=documents[1:])


@pytest.mark.parametrize("bad", [[0, 9], [-1, 2], [4, 3], [2**31 - 1, 2**31 - 1], [-(2**31), 0], [1, 2]], ids=str)
def test_a_query_whose_interval_is_none_is_nan(bad: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one is within the keys, but begins before that of the query before."""
    q, k, v = heads((1, 2, 3, 16), (1, 1, 8, 16), (1, 1, 8, 16))
    intervals = torch.tensor([[[0, 5], [2, 7], bad]], dtype=torch.int32, device=DEVICE)
    o, lse = attention(q, k, v, intervals=intervals, return_lse=True)
    assert o[:, :, 2].isnan().all() and lse[:, :, 2].isnan().all()
    assert torch.equal(o[:, :, :2], attention(q[:, :, :2], k, v, intervals=intervals[:, :2]))
    dq = torch.autograd.grad(o, q, torch.ones_like(o))[0]
    assert dq[:, :, :2].isfinite().all() and dq[:, :, 2].eq(0).all()
    monkeypatch.setenv("KERNELS_DEBUG", "1")
    with pytest.raises(ValueError, match=r"intervals\[0, 2\] is \[.*\] for 8 keys"):
        attention(q, k, v, intervals=intervals)


def test_intervals_that_do_not_fit_are_refused() -> None:
    q, k, v = heads(*[(2, 1, 3, 16)] * 3)
    right = key_intervals(3, 3, torch.device(DEVICE), causal=True)
    for wrong in (right.long(), right[:, :2], right[0], right.expand(3, -1, -1)):
        with pytest.raises(ValueError, match="they must come from key_intervals"):
            attention(q, k, v, intervals=wrong)
    with pytest.raises(ValueError, match="give one or the other"):
        attention(q, k, v, intervals=right, causal=True)
    strided = torch.stack((right, right), dim=-1)[..., 0]
    assert torch.equal(attention(q, k, v, intervals=strided), attention(q, k, v, causal=True))


@pytest.mark.parametrize("apart", ["batch", "heads", "rows", "channels"])
def test_offsets_pass_two_to_the_31(apart: str, tmp_path: Path) -> None:
    """What lies 2^30 elements apart, in one dimension: the third starts at 2^31. Nothing between is touched, and the
    file under it has holes."""
    shape = {"batch": (3, 1, 2, 16), "heads": (1, 3, 2, 16), "rows": (1, 1, 3, 16), "channels": (1, 1, 3, 3)}[apart]
    stride = [2**30 if name == apart else step for name, step in zip(("batch", "heads", "rows"), (48, 48, 16))]
    stride.append(2**30 if apart == "channels" else 1)
    near = [torch.randn(shape, device=DEVICE).half() for _ in range(4)]
    far = []
    for index, x in enumerate(near):
        size = 1 + sum((n - 1) * step for n, step in zip(shape, stride))
        memory = torch.from_file(str(tmp_path / str(index)), shared=True, size=size, dtype=torch.float16)
        far.append(memory.as_strided(shape, stride).to(DEVICE).copy_(x))
    results = []
    for q, k, v, do in (near, far):
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        o = attention(*leaves, causal=True)
        results.append((o, *torch.autograd.grad(o, leaves, do)))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results))


def test_nothing_to_compute() -> None:
    for shape in ((0, 2, 3, 8), (1, 2, 0, 8)):
        q, k, v = heads(shape, shape, shape)
        o, lse = attention(q, k, v, return_lse=True)
        assert o.shape == shape and lse.shape == shape[:3]
        assert [g.shape for g in torch.autograd.grad(o.sum(), (q, k, v))] == [shape] * 3
    q, k, v = heads((1, 1, 3, 8), (1, 1, 0, 8), (1, 1, 0, 8))
    o, lse = attention(q, k, v, return_lse=True)
    assert o.eq(0).all() and lse.eq(-math.inf).all()


def test_wrong_input_is_told_with_its_numbers() -> None:
    q, k, v = heads((1, 3, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8))
    with pytest.raises(ValueError, match="3 query heads are no multiple of 2"):
        attention(q, k, v)
    q = q[:, :2]
    with pytest.raises(ValueError, match=r"shapes \(1, 2, 4, 8\), \(1, 2, 4, 8\), \(1, 2, 3, 8\)"):
        attention(q, k, v[:, :, :3])
    with pytest.raises(TypeError, match="must be of one dtype"):
        attention(q, k, v.half())
    with pytest.raises(TypeError, match="q is float64"):
        attention(q.double(), k, v)
    with pytest.raises(ValueError, match="head_dim is 257"):
        attention(*heads(*[(1, 1, 2, 257)] * 3))
    with pytest.raises(ValueError, match="window -1"):
        attention(q, k, v, window=-1)
    with pytest.raises(ValueError, match=r"scale 0\.0"):
        attention(q, k, v, scale=0.0)
    with pytest.raises(ValueError, match="one for each key"):
        attention(q, k, v, documents=torch.zeros(1, 3, dtype=torch.int64, device=DEVICE))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device")
@pytest.mark.parametrize("head_dim", [64, 128])
def test_realistic_sizes_are_right_and_the_same_each_time(head_dim: int) -> None:
    q, k, v, do = heads(*[(2, 2048, H, head_dim) for H in (8, 2, 2, 8)], dtype=torch.bfloat16)
    q, k, v, do = (x.detach().transpose(1, 2).requires_grad_() for x in (q, k, v, do))
    documents = torch.arange(2048, device=DEVICE).div(700, rounding_mode="floor").expand(2, -1)

    def run(function: Callable[..., Any], *tensors: Tensor) -> list[Tensor]:
        o = function(*tensors, causal=True, documents=documents)
        return [o, *torch.autograd.grad(o, tensors, do.to(o.dtype))]

    first, exact = run(attention, q, k, v), run(attention_reference, q.double(), k.double(), v.double())
    naive = run(attention_reference, q, k, v)
    for ours, theirs, truth in zip(first, naive, exact):
        assert (ours - truth).norm() <= 2 * (theirs - truth).norm() + 0.01 * truth.norm()
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(first, run(attention, q, k, v)))


@pytest.mark.parametrize("spoilt", ["q", "v"])
def test_where_lse_alone_is_used_v_has_no_gradient_and_no_part_in_others(spoilt: str) -> None:
    """Not even 0 times weights or values that are NaN."""
    q, k, v = (torch.ones(1, 1, 3, 16, device=DEVICE, requires_grad=True) for _ in range(3))
    with torch.no_grad():
        {"q": q, "v": v}[spoilt][..., 1, 0] = math.nan
    _, lse = attention(q, k, v, return_lse=True)
    dq, dk, dv = torch.autograd.grad(lse.sum(), (q, k, v), allow_unused=True)
    assert dv is None and dq[:, :, [0, 2]].isfinite().all()
    assert spoilt == "q" or (dq.isfinite().all() and dk.isfinite().all())


@pytest.mark.parametrize("function", [attention, attention_reference])
@pytest.mark.parametrize("spoilt", range(3))
def test_a_row_whose_documents_fall_has_no_gradient_though_there_be_a_nan(function: Any, spoilt: int) -> None:
    inputs = [torch.ones(2, 1, 3, 16, device=DEVICE, requires_grad=True) for _ in range(3)]
    with torch.no_grad():
        inputs[spoilt][1, :, 1, 0] = math.nan
    documents = torch.tensor([[0, 0, 1], [1, 0, 0]], device=DEVICE)
    o = function(*inputs, documents=documents)
    gradients = torch.autograd.grad(o.nansum(), inputs)
    assert o[1].isnan().all() and o[0].isfinite().all()
    assert all(gradient[1].eq(0).all() and gradient[0].isfinite().all() for gradient in gradients)
