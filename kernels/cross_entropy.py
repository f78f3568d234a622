"""Cross-entropy of logits with integer targets, with label smoothing and z-loss.

    ℓ = lse - (1-ε)·x_t - ε·mean_j x_j + z·lse²,   lse = log Σ_j exp(x_j),   t the target

ε is the label smoothing (Szegedy et al. 2016, section 7), z the weight of the z-loss that keeps lse near 0
(Chowdhery et al. 2022, section 5). Gradient, with p = softmax(x):

    dx_j = dℓ · [ (1 + 2·z·lse)·p_j - (1-ε)·[j = t] - ε/V ]

The bracket needs nothing from the backward, so the forward computes it, in a second pass over a row that is still in
the cache, and saves only it (the idea of Liger, Hsu et al. 2024). The backward multiplies its rows by dℓ, and leaves a
row alone whose dℓ is 1, as it is where losses are summed; where dℓ is 0 it only writes.

Memory: the logits, and one tensor like them; 2·N·V elements until the caller drops the logits, N·V after that. Saving
the logits instead and making their gradient in the backward takes 2·N·V then. Liger needs N·V throughout, because it
overwrites the logits; here they belong to the caller. The gradient is ours, and the backward scales it in place, which
is why a graph can be run backward once only: autograd refuses the second time. Where even N·V is too much, use
`linear_cross_entropy`. Without a gradient to compute nothing is stored but the losses.

The forward moves 2·N·V elements, the backward 2·N·V or, in rows with dℓ = 1, nothing. The gradient is rounded before
and after it is scaled; in float16 a probability below 6e-8 is lost, whatever dℓ is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.checks import known_targets, require_targets
from kernels.launch import (
    Launch,
    cdiv,
    chosen_once,
    custom_op,
    generation,
    jit,
    next_power_of_2,
    once_per_signature,
    require,
    tl,
)
from kernels.rows import rows_of

if TYPE_CHECKING:
    from kernels.lab.spec import Spec


def cross_entropy_reference(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0, ignore_index: int = -100
) -> Tensor:
    """logits (N, V), targets (N,) int64 -> (N,) loss of each row in nats, float32 (float64 for float64 logits).

    label_smoothing: the share of the target's 1 that is spread evenly over all V tokens, the target included. z_loss:
    what (log Σ exp(logits))² is weighed by, which is added. 0 where the target is `ignore_index`, NaN where it is
    neither that nor in the vocabulary.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    require_targets("cross_entropy", targets, logits.size(-1), ignore_index)
    is_ignored = targets == ignore_index
    targets, one_or_nan = known_targets(targets.masked_fill(is_ignored, 0), logits.size(-1))
    lse = torch.logsumexp(logits, dim=-1)  # (N,)
    target = logits.gather(-1, targets[:, None]).squeeze(-1)  # (N,)
    losses = lse - (1 - label_smoothing) * target
    if label_smoothing:  # 0 times the mean would be NaN where a logit is -inf
        losses = losses - label_smoothing * logits.mean(-1)
    return ((losses + z_loss * lse.square()) * one_or_nan).masked_fill(is_ignored, 0.0)


@jit
def cross_entropy_kernel(
    logits, targets, losses, gradient, V, smoothing, z_loss, ignore_index, stride, BLOCK: tl.constexpr
):
    """One row: its loss, and its gradient for dℓ = 1 unless `gradient` is None."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    if target == ignore_index:
        tl.store(losses + row, 0.0)
        if gradient is not None:
            for start in range(0, V, BLOCK):
                column = start + tl.arange(0, BLOCK)
                tl.store(gradient + row * V + column, tl.zeros((BLOCK,), tl.float32), column < V)
    else:
        # Online softmax (Milakov & Gimelshein 2018, algorithm 3); the lanes of a block are summed after the last.
        peak = -float("inf")
        exps = tl.zeros((BLOCK,), tl.float32)
        values = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, V, BLOCK):
            column = start + tl.arange(0, BLOCK)
            value = tl.load(logits + row * stride + column, column < V, -float("inf")).to(tl.float32)
            new_peak = tl.maximum(peak, tl.max(value, 0))
            shift = tl.where(new_peak == -float("inf"), 0.0, new_peak)  # all masked so far: -inf - -inf would be NaN
            exps = exps * tl.exp(peak - shift) + tl.exp(value - shift)
            values += tl.where(column < V, value, 0.0)
            peak = new_peak
        lse = tl.where(peak == -float("inf"), 0.0, peak) + tl.log(tl.sum(exps, 0))
        # A target that is not in the vocabulary: NaN, in everything that follows.
        is_known = (target >= 0) & (target < V)
        lse = tl.where(is_known, lse, float("nan"))
        target_logit = tl.load(logits + row * stride + target, is_known, 0.0).to(tl.float32)
        # With ε = 0 the mean is not used: it may be -inf.
        smoothed = tl.where(smoothing > 0.0, smoothing * (tl.sum(values, 0) / V), 0.0)
        tl.store(losses + row, lse - (1.0 - smoothing) * target_logit - smoothed + z_loss * lse * lse)
        if gradient is not None:
            for start in range(0, V, BLOCK):
                column = start + tl.arange(0, BLOCK)
                value = tl.load(logits + row * stride + column, column < V, -float("inf")).to(tl.float32)
                result = (1.0 + 2.0 * z_loss * lse) * tl.exp(value - lse) - smoothing / V
                result -= tl.where(column == target, 1.0 - smoothing, 0.0)
                tl.store(gradient + row * V + column, result, column < V)


@jit
def scale_rows_kernel(gradient, dlosses, V, BLOCK: tl.constexpr):
    """One block of one row of the gradient, times the row's dℓ, in place."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    scale = tl.load(dlosses + row)
    if scale == 0.0:
        tl.store(gradient + row * V + column, tl.zeros((BLOCK,), tl.float32), column < V)
    elif scale != 1.0:
        value = tl.load(gradient + row * V + column, column < V, 0.0).to(tl.float32)
        tl.store(gradient + row * V + column, value * scale, column < V)


@chosen_once
def cross_entropy_launch(vocabulary: int, device: torch.device) -> Launch:
    """16 elements a thread. The widest blocks let two programs run on a multiprocessor: with more at once, the rows
    under way would outgrow the second-level cache before they are read again."""
    if generation(device) == 0:
        return Launch({"BLOCK": 32})
    block = min(8192, next_power_of_2(vocabulary))
    return Launch({"BLOCK": block}, num_warps=max(4, block // 512))


@custom_op("kernels::cross_entropy_forward")
def cross_entropy_forward(
    logits: Tensor, targets: Tensor, label_smoothing: float, z_loss: float, ignore_index: int, differentiate: bool
) -> tuple[Tensor, Tensor]:
    """Losses (N,), and their gradient (N, V), or (0, V) if it is not asked for."""
    N, V = logits.shape
    losses = logits.new_empty(N, dtype=torch.float32)
    gradient = logits.new_empty((N if differentiate else 0, V))
    rows, launch = rows_of(logits), cross_entropy_launch(V, logits.device)
    cross_entropy_kernel[(N,)](
        rows, targets.contiguous(), losses, gradient if differentiate else None, V,
        label_smoothing, z_loss, ignore_index, rows.stride(0), **launch.options,
    )  # fmt: skip
    return losses, gradient


@cross_entropy_forward.register_fake
def _(
    logits: Tensor, targets: Tensor, label_smoothing: float, z_loss: float, ignore_index: int, differentiate: bool
) -> tuple[Tensor, Tensor]:
    N, V = logits.shape
    return logits.new_empty(N, dtype=torch.float32), logits.new_empty((N if differentiate else 0, V))


@custom_op("kernels::scale_rows_", mutates_args=("gradient",))
def scale_rows_(gradient: Tensor, dlosses: Tensor) -> None:
    """The rows of gradient (N, V) times dlosses (N,), in place."""
    N, V = gradient.shape
    launch = cross_entropy_launch(V, gradient.device)
    grid = (N, cdiv(V, launch.blocks["BLOCK"]))
    scale_rows_kernel[grid](gradient, dlosses.contiguous(), V, **launch.options)


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def differentiate(ctx: Any, dlosses: Tensor | None, _: None) -> tuple[Tensor | None, None, None, None, None, None]:
    if dlosses is None:
        return None, None, None, None, None, None
    (gradient,) = ctx.saved_tensors
    if type(gradient) is not Tensor:  # being traced: a graph may not overwrite what its forward returned
        gradient = gradient.clone()
    scale_rows_(gradient, dlosses)
    return gradient, None, None, None, None, None


cross_entropy_forward.register_autograd(differentiate, setup_context=save)


def cross_entropy(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0, ignore_index: int = -100
) -> Tensor:
    """logits (N, V), targets (N,) int64 -> (N,) loss of each row in nats, float32; the logits are not changed.

    A row whose target is `ignore_index` has loss 0 and gradient 0, whatever its logits. A logit of -inf (a token that
    may not occur) has probability 0; label smoothing, which gives every token a share, makes such a row's loss inf.

    A target outside of the vocabulary gives NaN, in the row's loss and gradient; with KERNELS_DEBUG=1, ValueError.

    The rows of logits may be at any distance, as they are if columns that pad the vocabulary are cut off; only a last
    stride above 1 is copied first. A graph can be run backward once (see above).
    Errors: ValueError for a shape, device or smoothing, TypeError for a dtype.
    """
    check(logits, targets, label_smoothing)
    require_targets("cross_entropy", targets, logits.shape[1], ignore_index)
    differentiate = torch.is_grad_enabled() and logits.requires_grad
    return cross_entropy_forward(logits, targets, label_smoothing, z_loss, ignore_index, differentiate)[0]


@once_per_signature
def check(logits: Tensor, targets: Tensor, label_smoothing: float) -> None:
    require("cross_entropy", {"logits": logits})
    require("cross_entropy", {"targets": targets}, (torch.int64,))
    if logits.dim() != 2 or logits.shape[1] == 0 or targets.shape != logits.shape[:1]:
        shapes = f"logits are {tuple(logits.shape)}, targets {tuple(targets.shape)}"
        raise ValueError(f"cross_entropy: {shapes}; they must be (N, V) with V at least 1, and (N,)")
    if targets.device != logits.device:
        raise ValueError(f"cross_entropy: targets are on {targets.device}, not on {logits.device} like the logits")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"cross_entropy: label_smoothing is {label_smoothing}; it must be between 0 and 1")


def spec() -> Spec:
    from hypothesis import strategies as st

    from kernels.lab import Inputs, Mutant, Spec, Tolerance, Work
    from kernels.lab.strategies import mostly

    def inputs(
        generator: torch.Generator, rows: int, vocabulary: int, size: float = 1.0, label_smoothing: float = 0.0,
        z_loss: float = 0.0, ignore_index: int = -100, special: str = "", is_trained: bool = True,
    ) -> Inputs:  # fmt: skip
        """`special`: "ignored", a third of the targets; "unknown", a third of the targets is not in the vocabulary;
        "masked", a third of the logits is -inf, and a whole block; "nan", one of the logits."""
        logits = size * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)
        targets = torch.randint(vocabulary, (rows,), generator=generator)
        if special == "masked":  # with smoothing the loss is inf
            is_masked = torch.rand(logits.shape, generator=generator) < 1 / 3
            is_masked[:, :32] = True
            logits[is_masked & (targets[:, None] != torch.arange(vocabulary))] = -torch.inf
        if special == "ignored":
            targets[::3] = ignore_index
        if special == "unknown":
            targets[::3], targets[1::3] = vocabulary, -7
        if special == "nan" and rows:
            logits[0, vocabulary // 2] = torch.nan
        options = {"label_smoothing": label_smoothing, "z_loss": z_loss, "ignore_index": ignore_index}
        return Inputs({"logits": logits, "targets": targets}, options, gradients=("logits",) if is_trained else ())

    def floor(quantity: str, inputs: Inputs, results: Mapping[str, Tensor], eps: float) -> float:
        """The gradient was rounded to its dtype before it was scaled; in float16 to multiples of 6e-8 at least."""
        if quantity == "losses":
            return 0.0
        subnormal = 3e-8 * inputs.tensors["logits"].shape[-1] ** 0.5 if eps == torch.finfo(torch.float16).eps else 0.0
        return eps / 2 * float(results["dlogits"].norm()) + subnormal * float(results["dlosses"].norm())

    def work(element_size: int, rows: int, vocabulary: int, **_: Any) -> tuple[Work, Work]:
        elements = rows * vocabulary
        return Work(2 * elements * element_size, 10 * elements), Work(2 * elements * element_size, elements)

    def peers() -> dict[str, Callable[..., Any]]:
        def of_torch(
            logits: Tensor, targets: Tensor, label_smoothing: float, z_loss: float, ignore_index: int
        ) -> Tensor:
            return F.cross_entropy(
                logits.float(), targets, ignore_index=ignore_index, reduction="none", label_smoothing=label_smoothing
            )

        found: dict[str, Callable[..., Any]] = {"torch": of_torch}
        with contextlib.suppress(ImportError):
            from liger_kernel.transformers.functional import (  # pyright: ignore[reportMissingImports]
                liger_cross_entropy,
            )

            # It overwrites the logits: the copy is the price of leaving them alone.
            found["liger"] = lambda logits, targets, label_smoothing, z_loss, ignore_index: liger_cross_entropy(
                logits.clone(), targets, ignore_index=ignore_index, reduction="none",
                label_smoothing=label_smoothing, lse_square_scale=z_loss,
            )  # fmt: skip
        return found

    return Spec(
        name="cross_entropy",
        op=cross_entropy,
        reference=cross_entropy_reference,
        cases=st.fixed_dictionaries(
            {
                "rows": st.integers(0, 6),
                "vocabulary": st.integers(1, 40) | st.sampled_from([64, 65, 100]),  # blocks of 32
                "size": st.sampled_from([1.0, 0.0, 30.0, 1000.0]),
                "label_smoothing": st.sampled_from([0.0, 0.0, 0.1, 1.0]),
                "z_loss": st.sampled_from([0.0, 1e-4, 0.1]),
                "ignore_index": st.sampled_from([-100, -1, 0]),
                "special": st.sampled_from(["", "", "ignored", "ignored", "masked", "masked", "unknown", "nan"]),
                "is_trained": mostly(st.just(True), st.just(False), one_in=8),
            }
        ),
        inputs=inputs,
        outputs=("losses",),
        tolerance=Tolerance(floor),
        builds=(
            {"rows": 64, "vocabulary": 50304},
            {"rows": 64, "vocabulary": 32768},
            {"rows": 64, "vocabulary": 50304, "dtype": "float32"},
        ),
        benchmarks=(
            {"rows": 8192, "vocabulary": 32768},
            {"rows": 8192, "vocabulary": 50304},
            {"rows": 8192, "vocabulary": 131072},
        ),
        work=work,
        peers=peers,
        mutants=(
            Mutant(
                "no maximum subtracted",
                "new_peak = tl.maximum(peak, tl.max(value, 0))",
                "new_peak = peak + 0.0 * tl.max(value, 0)",
            ),
            Mutant("sum not rescaled", "exps = exps * tl.exp(peak - shift) +", "exps = exps +"),
            Mutant(
                "no guard for -inf", 'shift = tl.where(new_peak == -float("inf"), 0.0, new_peak)', "shift = new_peak"
            ),
            Mutant("smoothing with the wrong sign", "* target_logit - smoothed +", "* target_logit + smoothed +"),
            Mutant("smoothing left out of the gradient", " - smoothing / V\n", "\n"),
            Mutant("gradient of z·lse", "(1.0 + 2.0 * z_loss * lse) *", "(1.0 + 2.0 * z_loss) *"),
            Mutant("ignore index not honoured", "if target == ignore_index:", "if target == -100:"),
            Mutant(
                "ignored rows keep what was there",
                "tl.zeros((BLOCK,), tl.float32), column < V)\n    else",
                "tl.zeros((BLOCK,), tl.float32), column < 0)\n    else",
            ),
            Mutant(
                "target's share of the smoothing",
                "tl.where(column == target, 1.0 - smoothing, 0.0)",
                "tl.where(column == target, 1.0, 0.0)",
            ),
            Mutant(
                "store without mask",
                "tl.store(gradient + row * V + column, result, column < V)",
                "tl.store(gradient + row * V + column, result)",
            ),
            Mutant("stride ignored", "ignore_index, rows.stride(0), **", "ignore_index, V, **"),
            Mutant("rows not scaled", "value * scale, column < V)", "value, column < V)"),
        ),
    )
