"""A target outside of the vocabulary does the same everywhere: NaN in its row, an error where debugging is on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from instructgpt.model import backend
from kernels.checks import require_indices, require_values
from kernels.launch import INTERPRETED

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
needs_kernels = pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="kernels cannot run here")

V, C = 31, 6
"""One logit fewer than the interpreter's tile has, so that 31 is a place in the tile that is no token."""
OUTSIDE = (V, V + 1, V + 40, -1, -101, 2**40, -(2**63))


HEADS: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "losses_reference": kernels.linear_cross_entropy_reference,
    "losses_chunked": kernels.linear_cross_entropy_chunked,
    "losses_kernel": kernels.linear_cross_entropy,
    "losses_sdpa": backend.sdpa().linear_cross_entropy,
    "losses_of_logits_reference": lambda h, w, t: kernels.cross_entropy_reference(F.linear(h, w), t),
    "losses_of_logits_kernel": lambda h, w, t: kernels.cross_entropy(F.linear(h, w), t),
    "losses_of_logits_sdpa": lambda h, w, t: backend.sdpa().cross_entropy(F.linear(h, w), t, 0.1, 0.1),
    "logprobs_reference": lambda h, w, t: kernels.linear_logprobs_reference(h, w, t, True),
    "logprobs_chunked": lambda h, w, t: kernels.linear_logprobs_chunked(h, w, t, True),
    "logprobs_kernel": lambda h, w, t: kernels.linear_logprobs(h, w, t, True),
    "logprobs_sdpa": lambda h, w, t: backend.sdpa().linear_logprobs(h, w, t, True),
    "logprobs_alone_reference": kernels.linear_logprobs_reference,
    "logprobs_alone_chunked": kernels.linear_logprobs_chunked,
    "logprobs_alone_kernel": kernels.linear_logprobs,
    "logprobs_alone_sdpa": backend.sdpa().linear_logprobs,
}
EVERYWHERE = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[needs_kernels] if name.endswith("kernel") else []) for name in HEADS]
)


def leaves(rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, C, generator=generator).to(DEVICE).requires_grad_() for n in (rows, V))
    return hidden, weight


@EVERYWHERE
def test_an_unknown_target_makes_its_row_nan(name: str) -> None:
    """And the gradients that the row has a share in: its own hidden state's, and the whole weight's. All else is right,
    and a call with no unknown target gives what it gave."""
    head = HEADS[name]
    hidden, weight = leaves(len(OUTSIDE) + 2)
    targets = torch.tensor([3, *OUTSIDE, V - 1], device=DEVICE)
    is_unknown = torch.tensor([False, *[True] * len(OUTSIDE), False], device=DEVICE)
    results, right = head(hidden, weight, targets), head(hidden, weight, targets.masked_fill(is_unknown, 0))
    y, right_y = (r if isinstance(r, Tensor) else r[0] for r in (results, right))
    assert torch.equal(y.isnan(), is_unknown)
    assert torch.equal(y[~is_unknown], right_y[~is_unknown])
    if not isinstance(results, Tensor):
        assert torch.equal(results[1], right[1])  # the entropy does not depend on a target
    dhidden, dweight = torch.autograd.grad(y.sum(), (hidden, weight))
    (right_dhidden,) = torch.autograd.grad(right_y.sum(), hidden)
    assert dhidden[is_unknown].isnan().all() and dweight.isnan().all()
    torch.testing.assert_close(dhidden[~is_unknown], right_dhidden[~is_unknown])


@EVERYWHERE
@pytest.mark.parametrize("target", OUTSIDE)
def test_debugging_raises(name: str, target: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELS_DEBUG", "1")
    hidden, weight = leaves(4)
    targets = torch.tensor([3, V - 1, target, 0], device=DEVICE)
    ignored = "" if name.startswith("logprobs") else ", or -100"
    message = rf"targets\[2\] is {target}, outside of a vocabulary of 31: it must be from 0 to 30{ignored}$"
    with pytest.raises(ValueError, match=message):
        HEADS[name](hidden, weight, targets)


@EVERYWHERE
def test_debugging_lets_right_targets_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight = leaves(3)
    targets = torch.tensor([0, 0 if name.startswith("logprobs") else -100, V - 1], device=DEVICE)
    quiet = HEADS[name](hidden, weight, targets)
    monkeypatch.setenv("KERNELS_DEBUG", "1")
    debugged = HEADS[name](hidden, weight, targets)
    for one, other in zip(*((r,) if isinstance(r, Tensor) else r for r in (quiet, debugged))):
        assert torch.equal(one, other) and not one.isnan().any()


@EVERYWHERE
def test_a_row_that_is_not_used_spoils_nothing(name: str) -> None:
    """Rows without a known target may be left out afterwards, as long as nothing is multiplied by 0."""
    if name.endswith(("reference", "sdpa")):
        pytest.skip("0 times NaN is NaN in plain PyTorch")
    hidden, weight = leaves(3)
    results = HEADS[name](hidden, weight, torch.tensor([0, V, V - 1], device=DEVICE))
    y = results if isinstance(results, Tensor) else results[0]
    gradients = torch.autograd.grad(y[::2].sum(), (hidden, weight))
    assert all(gradient.isfinite().all() for gradient in gradients) and gradients[0][1].eq(0).all()


@EVERYWHERE
def test_nothing_waits_for_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No value of a tensor is asked for, forward or backward, unless debugging: on a GPU that waits for the device."""
    hidden, weight = leaves(4)
    targets = torch.tensor([3, V, -100, 0], device=DEVICE)

    asked: list[str] = []

    def counted(method: str) -> Any:
        original = getattr(Tensor, method)

        def ask(tensor: Tensor, *arguments: Any) -> Any:
            asked.append(method)
            return original(tensor, *arguments)

        return ask

    with monkeypatch.context() as counting:
        for method in ("item", "tolist", "__bool__", "__int__", "__float__", "nonzero"):
            counting.setattr(Tensor, method, counted(method))
        results = HEADS[name](hidden, weight, targets)
        (results if isinstance(results, Tensor) else results[0]).sum().backward()
    assert asked == [] and hidden.grad is not None


@pytest.mark.parametrize("value", ["", "0"])
def test_debugging_is_off_unless_asked_for(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELS_DEBUG", value)
    require_indices("op", "pages", torch.tensor([5]), 4, "a cache of 4 pages")
    monkeypatch.setenv("KERNELS_DEBUG", "1")
    with pytest.raises(
        ValueError, match=r"^op: pages\[0\] is 5, outside of a cache of 4 pages: it must be from 0 to 3$"
    ):
        require_indices("op", "pages", torch.tensor([5]), 4, "a cache of 4 pages")


def test_the_first_wrong_place_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELS_DEBUG", "1")
    ends = torch.tensor([[1, 2], [9, 0]])
    with pytest.raises(ValueError, match=r"^op: ends\[1, 0\] is 9, outside of 8 keys: it must be from 1 to 8$"):
        require_indices("op", "ends", ends, 9, "8 keys", begin=1)
    with pytest.raises(ValueError, match=r"^op: row 1 begins after its end$"):
        require_values("op", lambda: torch.tensor([True, False]), lambda at: f"row {at[0]} begins after its end")


def test_a_compiled_op_is_one_graph_while_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check looks at values, which a graph cannot: there an unknown target is NaN."""
    monkeypatch.setenv("KERNELS_DEBUG", "1")
    hidden, weight = leaves(2)
    torch._dynamo.reset()
    compiled = torch.compile(kernels.linear_cross_entropy_chunked, fullgraph=True, backend="aot_eager")
    assert compiled(hidden, weight, torch.tensor([V, 1], device=DEVICE)).isnan().tolist() == [True, False]
