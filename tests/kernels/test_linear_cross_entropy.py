"""Head and loss: the references, the chunked version, and that nobody holds all logits. The lab checks the kernels."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels import (
    linear_cross_entropy,
    linear_cross_entropy_chunked,
    linear_cross_entropy_reference,
    linear_logprobs,
    linear_logprobs_chunked,
    linear_logprobs_reference,
)
from kernels.launch import INTERPRETED

chunked_file = importlib.import_module("kernels.linear_cross_entropy_chunked")
kernel_file = importlib.import_module("kernels.linear_cross_entropy")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def draw(
    rows: int, width: int = 6, vocabulary: int = 11, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    hidden, weight = torch.randn(rows, width, dtype=dtype), torch.randn(vocabulary, width, dtype=dtype)
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(vocabulary, (rows,))


def with_gradients(function: Callable[..., Any], hidden: Tensor, weight: Tensor) -> list[Tensor]:
    results = function(hidden, weight)
    results = list(results) if isinstance(results, tuple) else [results]
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(r.shape, generator=generator, dtype=r.dtype) for r in results]
    return [r.detach() for r in results] + list(torch.autograd.grad(results, (hidden, weight), cotangents))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_reference_equals_torch(smoothing: float) -> None:
    hidden, weight, targets = draw(9)
    targets[2] = -100
    expected = F.cross_entropy(F.linear(hidden, weight), targets, reduction="none", label_smoothing=smoothing)
    losses = linear_cross_entropy_reference(hidden, weight, targets, smoothing)
    torch.testing.assert_close(losses, expected)
    assert losses[2] == 0


def test_logprobs_and_entropy_are_those_of_the_distribution() -> None:
    hidden, weight, targets = draw(9)
    distribution = torch.distributions.Categorical(logits=F.linear(hidden, weight))
    logprobs, entropy = linear_logprobs_reference(hidden, weight, targets, with_entropy=True)
    torch.testing.assert_close(logprobs, distribution.log_prob(targets))
    torch.testing.assert_close(entropy, distribution.entropy())
    assert torch.equal(linear_logprobs_reference(hidden, weight, targets), logprobs)


@given(
    rows=st.integers(1, 20), vocabulary=st.integers(1, 12), smoothing=st.sampled_from([0.0, 0.1]),
    z_loss=st.sampled_from([0.0, 0.01]), ignored=st.integers(0, 2), seed=st.integers(0, 99),
)  # fmt: skip
def test_chunked_equals_reference(
    rows: int, vocabulary: int, smoothing: float, z_loss: float, ignored: int, seed: int
) -> None:
    hidden, weight, targets = draw(rows, vocabulary=vocabulary, seed=seed)
    both = [
        with_gradients(lambda h, w, f=function: f(h, w, targets, True), hidden, weight)
        for function in (linear_logprobs_chunked, linear_logprobs_reference)
    ]
    targets[:ignored] = -100
    for of_each, function in zip(both, (linear_cross_entropy_chunked, linear_cross_entropy_reference)):
        of_each += with_gradients(lambda h, w, f=function: f(h, w, targets, smoothing, z_loss), hidden, weight)
    for ours, theirs in zip(*both):
        torch.testing.assert_close(ours, theirs)


def test_gradients_of_chunked() -> None:
    hidden, weight, targets = draw(7)
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy_chunked(h, w, targets, 0.1, 0.1), (hidden, weight)
    )
    assert torch.autograd.gradcheck(lambda h, w: linear_logprobs_chunked(h, w, targets, True), (hidden, weight))


def test_gradient_of_the_docstring() -> None:
    hidden, weight, targets = draw(5)
    dlogprobs, dentropy = torch.randn(2, 5, 1, dtype=torch.float64)
    results = linear_logprobs_reference(hidden, weight, targets, with_entropy=True)
    dhidden, dweight = torch.autograd.grad(results, (hidden, weight), (dlogprobs[:, 0], dentropy[:, 0]))
    x = F.linear(hidden, weight)
    p = torch.softmax(x, -1)
    logprobs = torch.log_softmax(x, -1)
    entropy = -(p * logprobs).sum(-1, keepdim=True)
    dx = -p * (dlogprobs + dentropy * (logprobs + entropy)) + dlogprobs * F.one_hot(targets, 11)
    torch.testing.assert_close(dx @ weight, dhidden)
    torch.testing.assert_close(dx.mT @ hidden, dweight)


@pytest.mark.parametrize("op", [linear_logprobs, linear_logprobs_chunked])
def test_entropy_of_large_logits(op: Callable[..., Any]) -> None:
    """Where one logit is large the entropy is small: it must not be the difference of two large numbers."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    hidden = 8 * torch.randn(64, 65, generator=generator, device=DEVICE)
    weight = torch.randn(32, 65, generator=generator, device=DEVICE) / 65**0.5
    targets = torch.zeros(64, dtype=torch.int64, device=DEVICE)
    _, entropy = op(hidden, weight, targets, with_entropy=True)
    _, exact = linear_logprobs_reference(hidden.double(), weight.double(), targets, with_entropy=True)
    _, naive = linear_logprobs_reference(hidden, weight, targets, with_entropy=True)
    assert (entropy - exact).norm() <= 1.5 * (naive - exact).norm()


def test_chunked_adds_half_precision_up_in_float32() -> None:
    """Over many chunks, the weight's gradient stays as good as that of one product."""
    hidden, weight, targets = (t.detach() for t in draw(1024, vocabulary=8, dtype=torch.float32))
    hidden, weight = (t.bfloat16().requires_grad_() for t in (hidden, weight))
    chunked = with_gradients(lambda h, w: linear_cross_entropy_chunked(h, w, targets), hidden, weight)
    exact = with_gradients(
        lambda h, w: linear_cross_entropy_reference(h, w, targets).float(),
        *(t.detach().double().requires_grad_() for t in (hidden, weight)),
    )
    assert chunked[0].dtype == torch.float32 and chunked[2].dtype == torch.bfloat16
    assert (chunked[2].double() - exact[2]).norm() < 2**-8 * exact[2].norm()


def test_chunked_lives_with_the_rest_of_pytorch() -> None:
    hidden, weight, targets = draw(9, dtype=torch.float32)
    for with_entropy in (False, True):
        torch.library.opcheck(chunked_file._chunked, (hidden, weight, targets, with_entropy))
    compiled = torch.compile(linear_cross_entropy_chunked, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(*(
        with_gradients(lambda h, w, f=f: f(h, w, targets, 0.1), hidden, weight)
        for f in (compiled, linear_cross_entropy_chunked)
    )):  # fmt: skip
        assert torch.equal(ours, theirs)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = linear_cross_entropy_chunked(hidden, weight, targets)
    assert torch.equal(autocast, linear_cross_entropy_chunked(hidden, weight, targets))


@pytest.mark.parametrize("function", [linear_cross_entropy_chunked, linear_logprobs_chunked])
def test_no_rows_give_no_losses_and_zero_gradients(function: Callable[..., Tensor]) -> None:
    hidden, weight, targets = draw(0)
    losses = function(hidden, weight, targets)
    losses.sum().backward()
    assert losses.shape == (0,) and weight.grad is not None and not weight.grad.any()


# ---- nobody holds tokens × vocabulary


class Largest(TorchDispatchMode):
    """Notes the size in bytes of the largest tensor that an operator gives."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        self.bytes = max(self.bytes, *(t.nbytes for t in tree_leaves(results) if isinstance(t, Tensor)), 0)
        return results


ROWS, WIDTH, VOCABULARY = 64, 4, 96


def largest_within(file: Any, forward: Any, backward: Any) -> int:
    """Bytes of the largest tensor inside an op and its backward, in float32, called as the Python functions that they
    are: a dispatch mode sees a custom op from outside only."""
    hidden, weight, targets = (t.detach() for t in draw(ROWS, WIDTH, VOCABULARY, dtype=torch.float32))
    with Largest() as largest:
        lse, _, expected = forward._init_fn(hidden, weight, targets, True)
        dlse, dtarget, dexpected = torch.ones(3, ROWS)
        backward._init_fn(hidden, weight, targets, lse, expected, dlse, dtarget, dexpected, True)
    return largest.bytes


def test_chunked_never_holds_all_logits() -> None:
    largest = largest_within(chunked_file, chunked_file._chunked, chunked_file._chunked_backward)
    assert largest == 4 * (ROWS // 4) * VOCABULARY


@pytest.mark.skipif(not INTERPRETED, reason="the kernels' operators are called on the CPU, in the interpreter")
def test_kernels_never_hold_all_logits() -> None:
    largest = largest_within(kernel_file, kernel_file._fused, kernel_file._fused_backward)
    assert largest == 4 * (ROWS // 4) * 128  # each row filled up to whole cache lines


def test_the_count_of_bytes_sees_what_it_should() -> None:
    hidden, weight, targets = draw(ROWS, WIDTH, VOCABULARY)
    with Largest() as largest:
        linear_cross_entropy_reference(hidden, weight, targets).sum().backward()
    assert largest.bytes == 8 * ROWS * VOCABULARY


def test_many_rows_are_held_by_a_constant_number() -> None:
    assert [chunked_file.rows_at_once(rows, 256) for rows in (0, 1, 5, 1024, 10**6)] == [1, 1, 2, 256, 256]


# ---- what the kernels refuse


@pytest.mark.skipif(not INTERPRETED, reason="without a CUDA device or the interpreter, everything is refused")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda h, w, t: (h[:, :5], w, t),
            ValueError,
            r"hidden is \(9, 5\), weight \(11, 6\)",
        ),
        (lambda h, w, t: (h.half(), w, t), TypeError, r"hidden is torch.float16 and weight torch.float32"),
        (lambda h, w, t: (h.double(), w.double(), t), TypeError, "hidden is float64; it must be one of float32"),
        (
            lambda h, w, t: (h, w, t[:3]),
            ValueError,
            r"targets are torch\.int64 \(3,\) on cpu.* \(9,\)",
        ),
        (lambda h, w, t: (h, w, t.int()), ValueError, "targets are torch.int32"),
    ],
)
def test_bad_input_is_refused_with_the_numbers(change: Any, error: type[Exception], message: str) -> None:
    tensors = change(*draw(9, dtype=torch.float32))
    for op in (linear_cross_entropy, linear_logprobs):
        with pytest.raises(error, match=message):
            op(*tensors)
