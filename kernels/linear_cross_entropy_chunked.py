"""Head and loss in plain PyTorch, for any device: the references of `linear_cross_entropy.py`, and the same in chunks.

The chunked version holds the logits of a few hundred rows at a time. A gradient arrives for each row, so in the forward
it is not known how much each row is to count in dW = dxᵀ h, and dx cannot be summed up there (as one can who
differentiates the mean of all losses alone): the backward computes each chunk's logits once more, a third of the head's
products on top. In return nothing is saved but three numbers a row, and sums are always added up in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.checks import is_unknown, known_targets, require_targets
from kernels.cross_entropy import cross_entropy_reference
from kernels.launch import cdiv, custom_op

# ---- the references


def linear_cross_entropy_reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
) -> Tensor:
    """hidden (N, C), weight (V, C), targets (N,) int64 -> (N,) loss of each row in nats, float32 (float64 for float64).

    A row whose target is `ignore_index` has loss 0 and no gradient; one whose target is outside of the vocabulary, NaN.
    """
    return cross_entropy_reference(_reference_logits(hidden, weight), targets, label_smoothing, z_loss, ignore_index)


def linear_logprobs_reference(
    hidden: Tensor, weight: Tensor, targets: Tensor, with_entropy: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """hidden (N, C), weight (V, C), targets (N,) int64 -> (N,) log-probability of each target, float32 (float64 for
    float64); with the entropy (N,) of each row's distribution, in nats, if asked for.

    NaN where the target is outside of the vocabulary; the entropy does not depend on it.
    """
    require_targets("linear_logprobs", targets, len(weight))
    targets, one_or_nan = known_targets(targets, len(weight))
    logprobs = torch.log_softmax(_reference_logits(hidden, weight), dim=-1)  # (N, V)
    chosen = logprobs.gather(-1, targets[:, None]).squeeze(-1) * one_or_nan  # (N,)
    return (chosen, -(logprobs.exp() * logprobs).sum(-1)) if with_entropy else chosen


def _reference_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    return F.linear(hidden.to(wide), weight.to(wide)).to(wide)  # autocast may have made it narrow


# ---- a row's three numbers


def rows_at_once(rows: int, most: int) -> int:
    """Rows whose logits are held at a time: never more than a quarter of all."""
    return max(1, min(most, cdiv(rows, 4)))


_CHUNK = 256
"""Most rows whose logits the chunked version holds: a product of so many is as fast on a CPU as a larger one."""


def _logits(hidden: Tensor, weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some rows after the other, with their logits (rows, V), at least float32; the next ones take their memory."""
    step = rows_at_once(hidden.size(0), _CHUNK)
    product = hidden.new_empty(step, weight.size(0))
    for start in range(0, hidden.size(0), step):
        rows = slice(start, min(start + step, hidden.size(0)))
        logits = torch.mm(hidden[rows], weight.mT, out=product[: rows.stop - start])
        yield rows, logits.to(torch.promote_types(hidden.dtype, torch.float32))


@custom_op("kernels::head_statistics_chunked")
def _chunked(hidden: Tensor, weight: Tensor, targets: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor, Tensor]:
    """lse, the target's logit (NaN outside of the vocabulary) and, if asked for, the entropy of each row, (N,) each, at
    least float32."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    lse, target, entropy = (torch.zeros(hidden.size(0), dtype=wide, device=hidden.device) for _ in range(3))
    targets, one_or_nan = known_targets(targets, len(weight))
    for rows, logits in _logits(hidden, weight):
        lse[rows] = torch.logsumexp(logits, dim=-1)
        target[rows] = logits.gather(-1, targets[rows, None]).squeeze(-1) * one_or_nan[rows]
        if with_entropy:
            logprobs = logits.sub_(lse[rows, None])
            entropy[rows] = -logprobs.exp().mul_(logprobs).sum(-1)
    return lse, target, entropy


@custom_op("kernels::head_statistics_chunked_backward")
def _chunked_backward(
    hidden: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, entropy: Tensor,
    dlse: Tensor, dtarget: Tensor, dentropy: Tensor, with_entropy: bool, with_dweight: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dhidden, and dweight, which is empty without `with_dweight`. The gradients of the rows are known only now, so the
    logits are computed again."""
    wide = lse.dtype
    dhidden = hidden.new_empty(hidden.shape)
    dweight = weight.new_zeros(weight.shape if with_dweight else 0, dtype=wide)
    targets, _ = known_targets(targets, len(weight))
    for rows, logits in _logits(hidden, weight):
        logprobs = logits.sub_(lse[rows, None])
        dlogits = logprobs.exp()  # p so far
        slope = dlse[rows, None]
        if with_entropy:  # dH/dx = -p · (log p + H)
            slope = logprobs.add_(entropy[rows, None]).mul_(-dentropy[rows, None]).add_(slope)
        dlogits.mul_(slope).scatter_add_(1, targets[rows, None], dtarget[rows, None])
        matrix_products(dlogits.to(weight.dtype), hidden[rows], weight, dhidden[rows], dweight)
    return dhidden, dweight.to(weight.dtype)


def matrix_products(dlogits: Tensor, hidden: Tensor, weight: Tensor, dhidden: Tensor, dweight: Tensor) -> None:
    """Writes dhidden = dx W of some rows, and adds their dxᵀ h to dweight, which is float32 for half precision; not to
    one that is empty."""
    torch.mm(dlogits, weight, out=dhidden)
    if not dweight.numel():
        return
    if dweight.dtype == hidden.dtype:
        dweight.addmm_(dlogits.mT, hidden)
    elif hidden.is_cuda:
        dweight += torch.mm(dlogits.mT, hidden, out_dtype=torch.float32)
    else:  # a product in half precision would round each chunk's share, and shares may cancel
        dweight.addmm_(dlogits.mT.float(), hidden.float())


# ---- autograd


def _fake(hidden: Tensor, weight: Tensor, targets: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    lse, target, entropy = (hidden.new_empty(hidden.size(0), dtype=wide) for _ in range(3))
    return lse, target, entropy


def _fake_backward(
    hidden: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, entropy: Tensor,
    dlse: Tensor, dtarget: Tensor, dentropy: Tensor, with_entropy: bool, with_dweight: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return hidden.new_empty(hidden.shape), weight.new_empty(weight.shape if with_dweight else 0)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, ctx.with_entropy = inputs
    lse, _, entropy = output
    ctx.save_for_backward(hidden, weight, targets, lse, entropy)


def register(op: Any, backward_op: Any) -> None:
    """Makes `op` differentiable by `backward_op`, and both known to torch.compile."""

    def backward(ctx: Any, dlse: Tensor, dtarget: Tensor, dentropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, lse, entropy = ctx.saved_tensors
        # An unknown target's logit is NaN, and so is all that depends on it. dlse is 0 where a row is not used for it.
        dlse = dlse.masked_fill(is_unknown(targets, len(weight)) & (dlse != 0), float("nan"))
        with_dweight = ctx.needs_input_grad[1]  # a head that is frozen has no gradient, which would be as large as it
        dhidden, dweight = backward_op(
            hidden, weight, targets, lse, entropy, dlse, dtarget, dentropy, ctx.with_entropy, with_dweight
        )
        return dhidden, dweight if with_dweight else None, None, None

    op.register_fake(_fake)
    backward_op.register_fake(_fake_backward)
    op.register_autograd(backward, setup_context=_setup)


register(_chunked, _chunked_backward)


# ---- losses and log-probabilities: arithmetic on three numbers a row

Statistics = Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor, Tensor]]
"""An op with the signature of `_chunked`."""


def losses_of(
    statistics: Statistics,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    label_smoothing: float,
    z_loss: float,
    ignore_index: int,
) -> Tensor:
    """The losses (N,) of `linear_cross_entropy`."""
    is_counted = targets != ignore_index
    lse, target, _ = statistics(hidden, weight, targets * is_counted, False)
    losses = lse - (1 - label_smoothing) * target  # (N,)
    if label_smoothing:
        mean_logit = (hidden.to(lse.dtype) * weight.mean(0, dtype=lse.dtype)).sum(-1)  # h · mean_j w_j
        losses = losses - label_smoothing * mean_logit
    if z_loss:
        losses = losses + z_loss * lse.square()
    return losses.masked_fill(~is_counted, 0.0)


def logprobs_of(
    statistics: Statistics, hidden: Tensor, weight: Tensor, targets: Tensor, with_entropy: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """The log-probabilities (N,), and entropies (N,), of `linear_logprobs`."""
    lse, target, entropy = statistics(hidden, weight, targets, with_entropy)
    return (target - lse, entropy) if with_entropy else target - lse


def linear_cross_entropy_chunked(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
) -> Tensor:
    """As `linear_cross_entropy`, in plain PyTorch for any device: the logits of a few hundred rows at a time."""
    require_targets("linear_cross_entropy", targets, len(weight), ignore_index)
    return losses_of(_chunked, hidden, weight, targets, label_smoothing, z_loss, ignore_index)


def linear_logprobs_chunked(
    hidden: Tensor, weight: Tensor, targets: Tensor, with_entropy: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """As `linear_logprobs`, in plain PyTorch for any device: the logits of a few hundred rows at a time."""
    require_targets("linear_logprobs", targets, len(weight))
    return logprobs_of(_chunked, hidden, weight, targets, with_entropy)
