"""The head and its loss together, without ever holding the logits of all tokens.

    x = h Wᵀ,   ℓ = lse - (1-ε)·x_t - ε·mean_j x_j + z·lse²,   lse = log Σ_j exp(x_j),   t the target

Of a row's V logits the loss needs lse and x_t, the log-probability is x_t - lse, and the entropy is lse - E with
E = Σ_j p_j·x_j, p = softmax(x). So one op gives those three numbers of each row, and everything else is arithmetic on
them. The mean logit of label smoothing needs no logits at all: mean_j x_j = h · mean_j w_j. Gradient:

    dx_j = p_j·[dlse + dE·(1 + x_j - E)] + dx_t·[j = t],   dh = dx W,   dW = dxᵀ h
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import CustomOpDef

from kernels.cross_entropy import cross_entropy_reference
from kernels.launch import cdiv


def linear_cross_entropy_reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
) -> Tensor:
    """hidden (N, C), weight (V, C), targets (N,) int64 -> (N,) loss of each row in nats, float32 (float64 for float64).

    A row whose target is `ignore_index` has loss 0 and no gradient.
    """
    is_counted = targets != ignore_index
    losses = cross_entropy_reference(_reference_logits(hidden, weight), targets * is_counted, label_smoothing, z_loss)
    return losses.masked_fill(~is_counted, 0.0)


def linear_logprobs_reference(
    hidden: Tensor, weight: Tensor, targets: Tensor, with_entropy: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """hidden (N, C), weight (V, C), targets (N,) int64 -> (N,) log-probability of each target, float32 (float64 for
    float64); with the entropy (N,) of each row's distribution, in nats, if asked for."""
    logprobs = torch.log_softmax(_reference_logits(hidden, weight), dim=-1)  # (N, V)
    chosen = logprobs.gather(-1, targets[:, None]).squeeze(-1)  # (N,)
    return (chosen, -(logprobs.exp() * logprobs).sum(-1)) if with_entropy else chosen


def _reference_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    return F.linear(hidden.to(wide), weight.to(wide)).to(wide)  # autocast may have made it narrow


# ---- a row's three numbers, in chunks of rows: plain PyTorch for any device


def _rows_at_once(rows: int, most: int) -> int:
    """Rows whose logits are held at a time: never more than a quarter of all."""
    return max(1, min(most, cdiv(rows, 4)))


_CHUNK = 256
"""Rows whose logits the chunked version holds: a matrix product of so many is as fast on a CPU as a larger one."""


@torch.library.custom_op("instructgpt_kernels::head_statistics_chunked", mutates_args=())
def _chunked(hidden: Tensor, weight: Tensor, targets: Tensor, with_expected: bool) -> tuple[Tensor, Tensor, Tensor]:
    """lse, the target's logit and, if asked for, the expected logit E of each row, (N,) each, at least float32."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    lse, target, expected = (torch.zeros(hidden.size(0), dtype=wide, device=hidden.device) for _ in range(3))
    step = _rows_at_once(hidden.size(0), _CHUNK)
    for start in range(0, hidden.size(0), step):
        rows = slice(start, start + step)
        logits = F.linear(hidden[rows], weight).to(wide)  # (rows, V)
        lse[rows] = torch.logsumexp(logits, dim=-1)
        target[rows] = logits.gather(-1, targets[rows, None]).squeeze(-1)
        if with_expected:
            expected[rows] = (logits - lse[rows, None]).exp_().mul_(logits).sum(-1)
    return lse, target, expected


@torch.library.custom_op("instructgpt_kernels::head_statistics_chunked_backward", mutates_args=())
def _chunked_backward(
    hidden: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, expected: Tensor,
    dlse: Tensor, dtarget: Tensor, dexpected: Tensor, with_expected: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dhidden and dweight. The gradients of the rows are known only now, so the logits are computed again."""
    wide = lse.dtype
    dhidden, dweight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=wide)
    step = _rows_at_once(hidden.size(0), _CHUNK)
    for start in range(0, hidden.size(0), step):
        rows = slice(start, start + step)
        logits = F.linear(hidden[rows], weight).to(wide)  # (rows, V)
        dlogits = (logits - lse[rows, None]).exp_()  # p so far
        slope = dlse[rows, None]
        if with_expected:
            slope = (logits.sub_(expected[rows, None]).add_(1)).mul_(dexpected[rows, None]).add_(slope)
        dlogits.mul_(slope).scatter_add_(1, targets[rows, None], dtarget[rows, None])
        _matrix_products(dlogits.to(weight.dtype), hidden[rows], weight, dhidden[rows], dweight)
    return dhidden, dweight.to(weight.dtype)


def _matrix_products(dlogits: Tensor, hidden: Tensor, weight: Tensor, dhidden: Tensor, dweight: Tensor) -> None:
    """Writes dhidden = dx W of some rows, and adds their dxᵀ h to dweight, which is float32 for half precision."""
    torch.mm(dlogits, weight, out=dhidden)
    if dweight.dtype == hidden.dtype:
        dweight.addmm_(dlogits.mT, hidden)
    else:
        dweight += dlogits.mT @ hidden


# ---- autograd


def _fake(hidden: Tensor, weight: Tensor, targets: Tensor, with_expected: bool) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    lse, target, expected = (hidden.new_empty(hidden.size(0), dtype=wide) for _ in range(3))
    return lse, target, expected


def _fake_backward(hidden: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(hidden), torch.empty_like(weight)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, ctx.with_expected = inputs
    lse, _, expected = output
    ctx.save_for_backward(hidden, weight, targets, lse, expected)


def _register(op: CustomOpDef, backward_op: CustomOpDef) -> None:
    """Makes `op` differentiable by `backward_op`, and both known to torch.compile."""

    def backward(ctx: Any, dlse: Tensor, dtarget: Tensor, dexpected: Tensor) -> tuple[Tensor | None, ...]:
        dhidden, dweight = backward_op(*ctx.saved_tensors, dlse, dtarget, dexpected, ctx.with_expected)
        return dhidden, dweight, None, None

    op.register_fake(_fake)
    backward_op.register_fake(_fake_backward)
    op.register_autograd(backward, setup_context=_setup)


_register(_chunked, _chunked_backward)


# ---- losses and log-probabilities: arithmetic on three numbers a row


def _losses(
    statistics: CustomOpDef,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    label_smoothing: float,
    z_loss: float,
    ignore_index: int,
) -> Tensor:
    hidden, weight = _under_autocast(hidden, weight)
    is_counted = targets != ignore_index
    lse, target, _ = statistics(hidden, weight, targets * is_counted, False)
    losses = lse - (1 - label_smoothing) * target  # (N,)
    if label_smoothing:
        mean_logit = (hidden.to(lse.dtype) * weight.mean(0, dtype=lse.dtype)).sum(-1)  # h · mean_j w_j
        losses = losses - label_smoothing * mean_logit
    if z_loss:
        losses = losses + z_loss * lse.square()
    return losses.masked_fill(~is_counted, 0.0)


def _logprobs(
    statistics: CustomOpDef, hidden: Tensor, weight: Tensor, targets: Tensor, with_entropy: bool
) -> Tensor | tuple[Tensor, Tensor]:
    lse, target, expected = statistics(*_under_autocast(hidden, weight), targets, with_entropy)
    return (target - lse, lse - expected) if with_entropy else target - lse


def _under_autocast(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """In the format that a matrix product would take here."""
    device = hidden.device.type
    if not torch.is_autocast_enabled(device) or hidden.dtype == torch.float64:  # which autocast leaves alone
        return hidden, weight
    dtype = torch.get_autocast_dtype(device)
    return hidden.to(dtype), weight.to(dtype)


def linear_cross_entropy_chunked(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
) -> Tensor:
    """As `linear_cross_entropy`, in plain PyTorch for any device: the logits of a few hundred rows at a time."""
    return _losses(_chunked, hidden, weight, targets, label_smoothing, z_loss, ignore_index)


def linear_logprobs_chunked(
    hidden: Tensor, weight: Tensor, targets: Tensor, with_entropy: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """As `linear_logprobs`, in plain PyTorch for any device: the logits of a few hundred rows at a time."""
    return _logprobs(_chunked, hidden, weight, targets, with_entropy)
