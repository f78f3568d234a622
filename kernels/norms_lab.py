"""What the lab is told of the norms: which inputs to draw, the error to allow, what to build, measure and plant."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from kernels.lab import Inputs, Mutant, Spec, Work
from kernels.lab.strategies import mostly


def _work(
    element_size: int, rows: list[int], columns: int, flops: tuple[int, int], added: bool = False, **_: Any
) -> tuple[Work, Work]:
    """`flops`: operations an element, forward and backward."""
    elements = torch.Size(rows).numel() * columns
    moved = (4, 4) if added else (2, 3)
    forward, backward = (Work(m * elements * element_size, f * elements) for m, f in zip(moved, flops))
    return forward, backward


def _cases(options: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Shapes on both sides of the interpreter's borders, with `options`: its tiles are 2 and 4 rows, its blocks at most
    64 columns, its persistent programs 3, or, for more than 64 tiles, as many as a GPU has."""
    usual = st.fixed_dictionaries({
        "rows": st.sampled_from([[], [0], [1], [3], [13], [2, 3], [3, 1, 5]]),
        "columns": mostly(st.integers(1, 66), st.sampled_from([128, 129, 200]), one_in=4), **options,
    })  # fmt: skip
    return mostly(usual, st.fixed_dictionaries({"rows": st.just([135]), "columns": st.integers(1, 3), **options}))


def _with_residual(plain: Spec) -> Spec:
    """The spec of a norm as that of the norm of x + residual, which gives the sum too."""
    assert plain.work is not None

    def exact(as_stored: Callable[..., Tensor], x: Tensor, residual: Tensor, **others: Any) -> tuple[Tensor, Tensor]:
        """The norm is that of the sum as it is returned."""
        return plain.reference(as_stored(x + residual, "total"), x.new_zeros(()), **others)

    return replace(
        plain,
        name=f"add_{plain.name}",
        inputs=partial(plain.inputs, added=True),
        outputs=("y", "total"),
        exact=exact,
        work=partial(plain.work, added=True),
    )


def describe_rms_norm(op: Callable[..., Any], reference: Callable[..., Any]) -> Spec:
    def inputs(
        generator: torch.Generator, rows: list[int], columns: int, size: float = 1.0, eps: float = 1e-6,
        wide: str = "", added: bool = False,
    ) -> Inputs:  # fmt: skip
        """`wide` names a tensor that stays float32, as under autocast; `added`: with a residual."""
        parts = size * torch.randn(1 + added, *rows, columns, generator=generator, dtype=torch.float64)
        weight = 1 + 0.5 * torch.randn(columns, generator=generator, dtype=torch.float64)
        tensors = {**dict(zip(("x", "residual"), parts)), "weight": weight}
        return Inputs(tensors, {"eps": eps}, gradients=tuple(tensors), float32=tuple({wide} & tensors.keys()))

    def peers() -> dict[str, Callable[..., Any]]:
        found: dict[str, Callable[..., Any]] = {
            "torch": lambda x, weight, eps: F.rms_norm(x, weight.shape, weight, eps)
        }
        with contextlib.suppress(ImportError):
            from liger_kernel.ops.rms_norm import LigerRMSNormFunction  # pyright: ignore[reportMissingImports]

            # The last argument keeps it from overwriting dy.
            found["liger"] = lambda x, weight, eps: LigerRMSNormFunction.apply(x, weight, eps, 0.0, "llama", False)
        return found

    return Spec(
        name="rms_norm",
        op=op,
        reference=reference,
        cases=_cases(
            {
                "size": st.sampled_from([1.0, 1e-3, 0.0, 100.0]),
                "eps": st.sampled_from([1e-6, 1e-5, 0.1]),
                "wide": st.sampled_from(["", "x", "weight", "residual"]),
            }
        ),
        inputs=inputs,
        builds=(
            *({"rows": [256], "columns": columns} for columns in (128, 4096, 16384, 32768)),
            {"rows": [256], "columns": 16384, "dtype": "float32"},
        ),
        # A row of 16,384 in the backward: x̂, g, w and the sum of dw are 4 · 64 KiB, all the registers that there are:
        # 1,024 threads have 64 each. In float32 on 100, where nothing is narrower, 160 bytes a thread are left over.
        max_spill_bytes=160,
        benchmarks=(
            {"rows": [262144], "columns": 128},
            {"rows": [16384], "columns": 1024},
            {"rows": [4096], "columns": 4096},
            {"rows": [4096], "columns": 16384},
            {"rows": [4096], "columns": 32768},
        ),
        work=partial(_work, flops=(4, 9)),
        peers=peers,
        mutants=(
            Mutant(
                "eps left out", "tl.sum(value * value, 1)[:, None] / N + eps", "tl.sum(value * value, 1)[:, None] / N"
            ),
            Mutant("sum for mean", "tl.rsqrt(tl.sum(squares, 0) / N + eps)", "tl.rsqrt(tl.sum(squares, 0) + eps)"),
            Mutant(
                "rows stored past the end",
                "tl.store(y + row * N + column, value * inverse * w, inside)",
                "tl.store(y + row * N + column, value * inverse * w, column < N)",
            ),
            Mutant("stride of x for dy", "strides = (grads.stride(0), rows", "strides = (rows.stride(0), rows"),
            Mutant(
                "mean over the block",
                "mean = tl.sum(grad * normed, 1)[:, None] / N",
                "mean = tl.sum(grad * normed, 1)[:, None] / BLOCK",
            ),
            Mutant("tiles left out", "tl.cdiv(rows, ROWS), tl.num_programs(0)", "rows // ROWS, tl.num_programs(0)"),
            Mutant(
                "partial rows overwrite each other",
                "tl.store(partials + tl.program_id(0).to(tl.int64) * N + column,",
                "tl.store(partials + tl.program_id(0).to(tl.int64) * 0 + column,",
            ),
            Mutant(
                "long rows: one block left out",
                "range(0, N, BLOCK):\n        column = start + tl.arange(0, BLOCK)\n        normed",
                "range(BLOCK, N, BLOCK):\n        column = start + tl.arange(0, BLOCK)\n        normed",
            ),
            Mutant(
                "long rows: dw scaled by the weight",
                "result = inverse * (grad * w - normed * mean)",
                "grad *= w\n        result = inverse * (grad * w - normed * mean)",
            ),
        ),
    )


def describe_add_rms_norm(op: Callable[..., Any], reference: Callable[..., Any]) -> Spec:
    def unfused(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return F.rms_norm(x + residual, weight.shape, weight, eps), x + residual

    return replace(
        _with_residual(describe_rms_norm(op, reference)),
        builds=(
            *({"rows": [256], "columns": columns} for columns in (4096, 16384)),
            {"rows": [256], "columns": 1, "dtype": "float32"},
        ),
        benchmarks=({"rows": [4096], "columns": 4096}, {"rows": [4096], "columns": 16384}),
        peers=lambda: {"torch": unfused},
        mutants=(
            Mutant(
                "norm of x alone",
                "rounded.to(tl.float32)\n    inverse",
                "(value - tl.load(residual)).to(tl.float32)\n    inverse",
            ),
            Mutant(
                "stride of x for the residual",
                "tl.load(residual + row * stride_residual + column, inside",
                "tl.load(residual + row * stride_x + column, inside",
            ),
            Mutant(
                "sum stored past the end",
                "row * N + column, rounded, inside)",
                "row * N + column, rounded, column < N)",
            ),
            Mutant(
                "long rows: r of x alone",
                "column < N, 0.0).to(tl.float32)\n            value = value.to(total",
                "column < 0, 0.0).to(tl.float32)\n            value = value.to(total",
            ),
            Mutant(
                "long rows: norm of x alone",
                "column < N, 0.0).to(tl.float32)\n            rounded = value.to(total",
                "column < 0, 0.0).to(tl.float32)\n            rounded = value.to(total",
            ),
            Mutant(
                "gradient of the sum overwrites",
                "(grad - normed * mean)\n        if dtotal is not None:\n            result += tl.load",
                "(grad - normed * mean)\n        if dtotal is not None:\n            result = tl.load",
            ),
            Mutant(
                "long rows: wrong row of the sum's gradient",
                "w - normed * mean)\n        if dtotal is not None:\n            result += tl.load(dtotal + row *",
                "w - normed * mean)\n        if dtotal is not None:\n            result += tl.load(dtotal + 0 *",
            ),
            Mutant("gradient of the sum alone lost", "(dtotal, None) if dy is None", "(None, None) if dy is None"),
        ),
    )


def describe_layer_norm(op: Callable[..., Any], reference: Callable[..., Any]) -> Spec:
    def inputs(
        generator: torch.Generator, rows: list[int], columns: int, size: float = 1.0, offset: float = 0.0,
        eps: float = 1e-6, wide: str = "", has_bias: bool = True, added: bool = False,
    ) -> Inputs:  # fmt: skip
        """`wide` names a tensor that stays float32, as under autocast; `added`: with a residual."""
        parts = size * (offset + torch.randn(1 + added, *rows, columns, generator=generator, dtype=torch.float64))
        weight, bias = torch.randn(2, columns, generator=generator, dtype=torch.float64)
        tensors = {**dict(zip(("x", "residual"), parts)), "weight": weight}
        tensors |= {"bias": bias} if has_bias else {}
        options = {"eps": eps} if has_bias else {"eps": eps, "bias": None}
        return Inputs(tensors, options, gradients=tuple(tensors), float32=tuple({wide} & tensors.keys()))

    def peers() -> dict[str, Callable[..., Any]]:
        found: dict[str, Callable[..., Any]] = {
            "torch": lambda x, weight, bias, eps: F.layer_norm(x, weight.shape, weight, bias, eps)
        }
        with contextlib.suppress(ImportError):
            from liger_kernel.ops.layer_norm import LigerLayerNormFunction  # pyright: ignore[reportMissingImports]

            found["liger"] = lambda x, weight, bias, eps: LigerLayerNormFunction.apply(x, weight, bias, eps)
        return found

    return Spec(
        name="layer_norm",
        op=op,
        reference=reference,
        cases=_cases(
            {
                "size": st.sampled_from([1.0, 1e-3, 0.0, 30.0]),
                "offset": st.sampled_from([0.0, 0.0, 10.0, -300.0]),
                "eps": st.sampled_from([1e-6, 1e-5, 0.1]),
                "wide": st.sampled_from(["", "x", "weight", "bias", "residual"]),
                "has_bias": st.booleans(),
            }
        ),
        inputs=inputs,
        builds=(
            *({"rows": [256], "columns": columns} for columns in (768, 4096, 16384, 32768)),
            {"rows": [256], "columns": 4096, "has_bias": False},
        ),
        # A row of 16,384 in the backward: x̂, g, w and the sums are 5 · 64 KiB, more than all the registers there are.
        max_spill_bytes=256,
        benchmarks=(
            {"rows": [32768], "columns": 768},
            {"rows": [4096], "columns": 4096},
            {"rows": [4096], "columns": 16384},
        ),
        work=partial(_work, flops=(7, 12)),
        peers=peers,
        mutants=(
            Mutant(
                "deviations past the end",
                "centred = tl.where(column < N, value - centre, 0.0)",
                "centred = value - centre",
            ),
            Mutant(
                "difference of squares",
                "inverse = tl.rsqrt(tl.sum(centred * centred, 1)[:, None] / N + eps)",
                "inverse = tl.rsqrt(tl.sum(value * value, 1)[:, None] / N - centre * centre + eps)",
            ),
            Mutant("long rows: means not merged", " + step * step * share * start", ""),
            Mutant(
                "long rows: last block as a full one", "size = tl.minimum(BLOCK, N - start)", "size = BLOCK + 0 * N"
            ),
            Mutant("mean of g left out", "(grad - tl.sum(grad, 1)[:, None] / N - normed", "(grad - normed"),
            Mutant("tiles left out", "tl.cdiv(rows, ROWS), tl.num_programs(0)", "rows // ROWS, tl.num_programs(0)"),
            Mutant("mean of the first row", "tl.load(mean + row, row < rows", "tl.load(mean + 0 * row, row < rows"),
            Mutant("bias summed after the weight", "db += grad\n        grad *= w", "grad *= w\n        db += grad"),
            Mutant(
                "long rows: bias gradient of one row",
                "db += grad\n        result",
                "db = grad\n        result",
            ),
            Mutant(
                "long rows: the two means exchanged",
                "- tl.load(means + row) - normed",
                "- tl.load(means + rows + row) - normed",
            ),
            Mutant("stride of x for dy", "strides = (grads.stride(0), rows", "strides = (rows.stride(0), rows"),
        ),
    )


def describe_add_layer_norm(op: Callable[..., Any], reference: Callable[..., Any]) -> Spec:
    def unfused(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
        return F.layer_norm(x + residual, weight.shape, weight, bias, eps), x + residual

    return replace(
        _with_residual(describe_layer_norm(op, reference)),
        builds=({"rows": [256], "columns": 4096}, {"rows": [256], "columns": 1, "dtype": "float32"}),
        benchmarks=({"rows": [4096], "columns": 4096},),
        peers=lambda: {"torch": unfused},
        mutants=(
            Mutant(
                "stride of x for the residual",
                "tl.load(residual + row * stride_residual + column, inside",
                "tl.load(residual + row * stride_x + column, inside",
            ),
            Mutant(
                "sum stored past the end",
                "row * N + column, rounded, inside)",
                "row * N + column, rounded, column < N)",
            ),
            Mutant(
                "long rows: mean of x alone",
                "column < N, 0.0).to(tl.float32)\n            value = value.to(total",
                "column < 0, 0.0).to(tl.float32)\n            value = value.to(total",
            ),
            Mutant(
                "long rows: norm of x alone",
                "column < N, 0.0).to(tl.float32)\n            rounded = value.to(total",
                "column < 0, 0.0).to(tl.float32)\n            rounded = value.to(total",
            ),
            Mutant(
                "gradient of the sum subtracted",
                "[:, None] / N))\n        if dtotal is not None:\n            result += tl",
                "[:, None] / N))\n        if dtotal is not None:\n            result -= tl",
            ),
            Mutant(
                "gradient of the sum alone lost",
                "(dtotal, None, None) if dy is None",
                "(None, None, None) if dy is None",
            ),
        ),
    )
