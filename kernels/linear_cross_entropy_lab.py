"""What the lab is told of the head with its loss: which inputs to draw, what to build, measure and plant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from kernels.lab import Inputs, Mutant, Spec, Tolerance, Work
from kernels.lab.strategies import mostly
from kernels.linear_cross_entropy_chunked import linear_cross_entropy_chunked, linear_logprobs_chunked


def _tensors(
    generator: torch.Generator, rows: int = 1, width: int = 1, vocabulary: int = 1, size: float = 1.0,
    are_alike: bool = False, unknown: int = 0,
) -> dict[str, Tensor]:  # fmt: skip
    """Logits have a standard deviation of `size`. Rows that are alike have the same target and hidden states of one
    sign, so that their shares in dweight do not cancel. The last `unknown` targets are not in the vocabulary."""
    hidden = size * torch.randn(rows, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64) / width**0.5
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    if are_alike:
        hidden, targets = hidden.abs(), targets[:1].expand(rows).clone()
    targets[rows - unknown :] = vocabulary
    return {"hidden": hidden, "weight": weight, "targets": targets}


def _apart(quantity: str, inputs: Inputs, results: Mapping[str, Tensor], eps: float) -> float:
    """dx is rounded for its two products before the smoothing's share, which takes no product, is subtracted: each of
    its elements may be off by half an eps of p and of 1 at the target, which may be more than what is left of them."""
    smoothing, z_loss = inputs.options["label_smoothing"], inputs.options["z_loss"]
    if not smoothing or not quantity.startswith("d"):
        return 0.0
    hidden, weight, targets = (inputs.tensors[name] for name in ("hidden", "weight", "targets"))
    x = hidden @ weight.mT  # (N, V)
    terms = (1 + 2 * z_loss * x.logsumexp(-1, keepdim=True).abs()) * x.softmax(-1)
    terms = terms + (targets[:, None] == torch.arange(len(weight)))
    off = (eps / 2 * results["dlosses"][:, None] * terms).square()  # they add up like random numbers
    return float(((off @ weight.square()) if quantity == "dhidden" else (off.mT @ hidden.square())).sum().sqrt())


def _work(element_size: int, rows: int, width: int, vocabulary: int, **_: Any) -> Any:
    operands = (rows + vocabulary) * width * element_size
    product = 2.0 * rows * width * vocabulary
    return Work(operands, product), Work(2 * operands, 3 * product)


def _cases(**options: Any) -> dict[str, Any]:
    def shapes(rows: Any, width: Any, vocabulary: Any) -> Any:
        return st.fixed_dictionaries({
            "rows": rows, "width": width, "vocabulary": vocabulary, "size": st.sampled_from([1.0, 0.0, 8.0]),
            "are_alike": st.booleans(), "unknown": mostly(st.just(0), st.just(1), one_in=8), **options,
        })  # fmt: skip

    # Both sides of the tiles' borders: 16 rows, 32 columns, 32 deep. Many rows: sums of many chunks, and large chunks.
    shape = mostly(
        shapes(st.integers(1, 18), st.integers(1, 34), st.integers(1, 70)),
        shapes(st.sampled_from([33, 35]), st.integers(1, 34), st.integers(33, 66)),
        shapes(st.integers(1, 18), st.just(65), st.integers(1, 34)),
        shapes(st.integers(1, 18), st.integers(1, 4), st.just(130)),
        shapes(st.just(257), st.integers(1, 3), st.integers(2, 5)),
        shapes(st.just(257), st.integers(1, 3), st.integers(2, 5)),
        one_in=12,
    )
    shape = mostly(shape, shapes(st.just(4100), st.just(1), st.just(2)), one_in=60)
    sizes = ({"width": 768, "vocabulary": 50304}, {"width": 1024, "vocabulary": 50257})
    large = ({"width": 2048, "vocabulary": 128256}, {"width": 4096, "vocabulary": 128256})
    return {
        "cases": shape,
        "dtypes": (torch.float32, torch.float16, torch.bfloat16),
        "builds": tuple({"rows": 128, **size} for size in sizes),
        "benchmarks": tuple({"rows": 8192, **size} for size in (*sizes, *large)),
        "work": _work,
        "needs_tensor_cores": True,
        "max_spill_bytes": 232,
    }


def describe_linear_cross_entropy(op: Callable[..., Any], reference: Callable[..., Any]) -> Spec:
    def inputs(
        generator: torch.Generator, label_smoothing: float = 0.0, z_loss: float = 0.0, ignored: int = 0,
        ignore_index: int = -100, **shape: Any,
    ) -> Inputs:  # fmt: skip
        """The first `ignored` rows have no target."""
        options = {"label_smoothing": label_smoothing, "z_loss": z_loss, "ignore_index": ignore_index}
        tensors = _tensors(generator, **shape)
        tensors["targets"][:ignored] = ignore_index
        return Inputs(tensors, options, gradients=("hidden", "weight"))

    def peers() -> dict[str, Callable[..., Any]]:
        try:
            from liger_kernel.ops.fused_linear_cross_entropy import (  # pyright: ignore[reportMissingImports]
                LigerFusedLinearCrossEntropyFunction,
            )
        except ImportError:
            return {"chunked": linear_cross_entropy_chunked}

        def liger(
            hidden: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float, z_loss: float, ignore_index: int
        ) -> Tensor:
            """The sum, as a scalar: Liger's op has no gradient for each row."""
            return LigerFusedLinearCrossEntropyFunction.apply(
                hidden, weight, targets, None, None, ignore_index, z_loss, label_smoothing, "sum"
            )[0]  # pyright: ignore

        return {"chunked": linear_cross_entropy_chunked, "liger": liger}

    options = {
        "label_smoothing": st.sampled_from([0.0, 0.1, 0.3]), "z_loss": st.sampled_from([0.0, 0.01, 0.5]),
        "ignored": st.integers(0, 2), "ignore_index": st.sampled_from([-100, -1, 0]),
    }  # fmt: skip
    return Spec(
        name="linear_cross_entropy",
        op=op,
        reference=reference,
        inputs=inputs,
        outputs=("losses",),
        tolerance=Tolerance(_apart),
        peers=peers,
        mutants=(
            Mutant("padding counted", "p = tl.where(column[None, :] < V, ", "p = tl.where(column[None, :] < V + 1, "),
            Mutant("sum not rescaled", "total = total * shrink", "total = total"),
            Mutant("no maximum subtracted", "tl.exp(x - new_highest[:, None])", "tl.exp(x)"),
            Mutant("last tile skipped", "tiles, tl.cdiv(V, COLUMNS))", "tiles, V // COLUMNS)"),
            Mutant("every part stores the target", "mask=(row < N) & is_here)", "mask=row < N)"),
            Mutant(
                "bfloat16 logits", "    return x\n\n\n@jit", "    return x.to(tl.bfloat16).to(tl.float32)\n\n\n@jit"
            ),
            Mutant("no stride", "column.to(tl.int64)[:, None] * weight_stride", "column.to(tl.int64)[:, None] * C"),
            Mutant(
                "dx without target",
                "dx = tl.exp(logprob) * slope + tl.where(is_target",
                "dx = tl.exp(logprob) * slope + tl.where(False",
            ),
            Mutant("chunks of dh in one place", "dhidden[start : start + step]", "dhidden[: len(some)]"),
            Mutant("the first chunk's numbers", "numbers = [t[start : start + step]", "numbers = [t[: len(some)]"),
        ),
        **_cases(**options),
    )


def describe_linear_logprobs(op: Callable[..., Any], reference: Callable[..., Any]) -> Spec:
    def inputs(generator: torch.Generator, with_entropy: bool = True, **shape: Any) -> Inputs:
        tensors = _tensors(generator, **shape)
        return Inputs(tensors, {"with_entropy": with_entropy}, gradients=("hidden", "weight"))

    # Two results always, the entropy 0 where it is not asked for: a spec's op has one number of them.

    def pair_of_op(hidden: Tensor, weight: Tensor, targets: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor]:
        results = op(hidden, weight, targets, with_entropy)
        return results if with_entropy else (results, torch.zeros_like(results))

    def pair_of_reference(hidden: Tensor, weight: Tensor, targets: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor]:
        results = reference(hidden, weight, targets, with_entropy)
        return results if with_entropy else (results, torch.zeros_like(results))

    return Spec(
        name="linear_logprobs",
        op=pair_of_op,
        reference=pair_of_reference,
        inputs=inputs,
        outputs=("logprobs", "entropy"),
        peers=lambda: {"chunked": linear_logprobs_chunked},
        mutants=(
            Mutant("weighted sum not rescaled", "(weighted + total * shift) * shrink", "(weighted + total * shift)"),
            Mutant("weighted sum of the old maximum", "(weighted + total * shift)", "weighted"),
            Mutant("weighted sum not normalised", "weighted / total, mask", "weighted, mask"),
            Mutant("parts weigh the same", "(log_share.exp() * (entropy - log_share)).sum(0)", "entropy.mean(0)"),
            Mutant("no entropy between parts", "* (entropy - log_share)", "* entropy"),
            Mutant("slope without the entropy", "centered = logprob + tl.load", "centered = logprob + 0 * tl.load"),
            Mutant("slope of the wrong sign", "slope = slope - tl.load(dentropy", "slope = slope + tl.load(dentropy"),
            Mutant("parts added up", "torch.logsumexp(lse, 0), target, (", "lse.sum(0), target, ("),
            Mutant("tiles overlap", "range(part * tiles, ", "range(part * tiles - (part > 0), "),
        ),
        **{**_cases(with_entropy=st.booleans()), "max_spill_bytes": 272},
    )
