"""One example: an op's results beside those of its reference, each output and each gradient judged by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kernels.lab.interpreter import faithful_bfloat16, reversed_programs
from kernels.lab.memory import Region, broadcast, guarded_allocations, lay_out
from kernels.lab.spec import Case, Inputs, Spec
from kernels.launch import INTERPRETED

Tensors = Mapping[str, Tensor]


class Wrong(AssertionError):
    """What an op did wrong on one example."""


class Raised(Wrong):
    """It raised an exception."""


@dataclass(frozen=True)
class Results:
    """What a function returned, by the spec's names, and the gradients that autograd gave, by "d" + tensor."""

    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor | None]

    @property
    def all(self) -> dict[str, Tensor | None]:
        return {**self.outputs, **self.gradients}


def judge(spec: Spec, case: Case, dtype: torch.dtype, layout: str) -> dict[str, float]:
    """Error over limit of every output and gradient; raises Wrong where one is above 1, or anything else is amiss."""
    inputs = spec.make(case)
    # All three see the same numbers, rounded to the tested dtype: the op, the naive version and the float64 reference.
    narrow = replace(
        inputs,
        tensors={
            name: t.to(torch.float32 if name in inputs.float32 else dtype) if t.is_floating_point() else t
            for name, t in inputs.tensors.items()
        },
    )
    wide = replace(inputs, tensors=in_float64(narrow.tensors))
    leaves = differentiable(narrow, narrow.tensors)
    outputs = call(spec, spec.reference, leaves, narrow)
    cotangents = draw_cotangents(outputs, case, layout)
    naive = Results(outputs, gradients_of(outputs, cotangents, leaves, narrow))
    leaves = differentiable(wide, wide.tensors)
    outputs = call(spec, spec.reference, leaves, wide)
    exact = Results(outputs, gradients_of(outputs, in_float64(cotangents), leaves, wide))

    got = run_op(spec, narrow, naive.outputs, cotangents, layout)
    known = {name: t.detach() for name, t in exact.all.items() if t is not None}
    known |= {f"d{name}": t for name, t in in_float64(cotangents).items()}
    return {name: compare(spec, name, got.all[name], naive.all[name], known, wide) for name in naive.all}


def in_float64(tensors: Tensors) -> dict[str, Tensor]:
    return {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}


def differentiable(inputs: Inputs, tensors: Tensors) -> dict[str, Tensor]:
    return {name: t.detach().requires_grad_(name in inputs.gradients) for name, t in tensors.items()}


def call(spec: Spec, function: Callable[..., Any], tensors: Tensors, inputs: Inputs) -> dict[str, Tensor]:
    results = function(**tensors, **inputs.options)
    results = results if isinstance(results, tuple) else (results,)
    if len(results) != len(spec.outputs):
        raise Wrong(f"returned {len(results)} results; the spec names {len(spec.outputs)}: {', '.join(spec.outputs)}")
    return dict(zip(spec.outputs, results))


def draw_cotangents(outputs: Tensors, case: Case, layout: str) -> dict[str, Tensor]:
    """A gradient for each differentiable output; in one case of four for one output only, as where a loss uses one."""
    seed = case.get("seed", 0)
    generator = torch.Generator().manual_seed(seed + 1)
    names = [name for name, y in outputs.items() if y.requires_grad]
    if len(names) > 1 and seed % 4 == 3:
        names = [names[seed // 4 % len(names)]]
    return {
        name: broadcast(torch.randn(outputs[name].shape, generator=generator).to(outputs[name].dtype), layout)
        for name in names
    }


def gradients_of(outputs: Tensors, cotangents: Tensors, leaves: Tensors, inputs: Inputs) -> dict[str, Tensor | None]:
    if not inputs.gradients:
        return {}
    used = [outputs[name] for name in cotangents]
    wanted = [leaves[name] for name in inputs.gradients]
    gradients = torch.autograd.grad(used, wanted, list(cotangents.values()), allow_unused=True)
    return {f"d{name}": gradient for name, gradient in zip(inputs.gradients, gradients)}


def run_op(spec: Spec, inputs: Inputs, right: Tensors, cotangents: Tensors, layout: str) -> Results:
    """The op's results, the same bits twice: in the interpreter with its programs in reversed order, else repeated."""
    first = run_once(spec, inputs, right, cotangents, layout)
    with reversed_programs() if INTERPRETED else nullcontext():
        second = run_once(spec, inputs, right, cotangents, layout)
    for name, one, other in ((name, one, second.all[name]) for name, one in first.all.items()):
        if one is not None and other is not None and not torch.equal(bits(one), bits(other)):
            order = "in reversed order" if INTERPRETED else "once more"
            raise Wrong(f"{name}: differs when its programs run {order}: they depend on each other's results")
    return first


def bits(t: Tensor) -> Tensor:
    """The same tensor as integers, so that NaN equals itself."""
    return t.detach().view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])


def run_once(spec: Spec, inputs: Inputs, right: Tensors, cotangents: Tensors, layout: str) -> Results:
    """The op's results on tensors in one layout; `right` are outputs of the right shape and dtype."""
    device = torch.device("cpu" if INTERPRETED else "cuda")
    laid = {
        name: lay_out(t, "contiguous" if name in inputs.contiguous else layout, index, device)
        for index, (name, t) in enumerate(inputs.tensors.items())
    }
    laid_cotangents = {
        name: lay_out(t, layout, len(laid) + index, device) for index, (name, t) in enumerate(cotangents.items())
    }
    given = {**laid, **{f"d{name}": region for name, region in laid_cotangents.items()}}
    before = {name: region.storage.clone() for name, region in given.items()}
    leaves = differentiable(inputs, {name: region.tensor for name, region in laid.items()})
    with faithful_bfloat16() if INTERPRETED else nullcontext(), guarded_allocations() as allocated:
        try:
            outputs = call(spec, spec.op, leaves, inputs)
            require_bands(allocated, "forward")
            for name, y in outputs.items():
                require_like(name, y, right[name])
            delivered = {name: region.tensor for name, region in laid_cotangents.items()}
            gradients = gradients_of(outputs, delivered, leaves, inputs)
            require_bands(allocated, "backward")
        except Wrong:
            raise
        except Exception as error:
            raise Raised(f"raised {type(error).__name__}: {error}") from error
    for name, region in given.items():
        if not torch.equal(region.storage, before[name]):
            raise Wrong(f"{name}: an input was overwritten, or memory beside it")
    return Results(outputs, gradients)


def require_bands(regions: list[Region], when: str) -> None:
    for region in regions:
        if not region.band_is_intact():
            shape, dtype = tuple(region.tensor.shape), region.tensor.dtype
            raise Wrong(f"the {when} wrote outside of a tensor that it allocated, of shape {shape} and {dtype}")


def compare(spec: Spec, name: str, got: Tensor | None, naive: Tensor | None, known: Tensors, inputs: Inputs) -> float:
    """Error over limit of one output or gradient."""
    if naive is None:  # the reference's result does not depend on the input
        if got is not None and got.any():
            raise Wrong(f"{name}: is not 0, but nothing depends on that input")
        return 0.0
    if got is None:
        raise Wrong(f"{name}: autograd gave no gradient (None)")
    require_like(name, got, naive)
    got, naive, exact = got.detach().cpu(), naive.detach(), known[name]
    if not got.is_floating_point():
        require_each(name, got, exact, got == exact)
        return 0.0
    kind, got, naive = torch.finfo(got.dtype), got.double(), naive.double()
    overflows = exact.isfinite() & (exact.abs() > 0.98 * kind.max)  # infinite or not, depending on rounding
    agrees = torch.where(exact.isfinite(), got.isfinite(), (got == exact) | (got.isnan() & exact.isnan()))
    require_each(name, got, exact, agrees | overflows)

    judged = exact.isfinite() & naive.isfinite() & ~overflows
    error, naive_error, size = (float(t[judged].norm()) for t in (got - exact, naive - exact, exact))
    floor = 1.2e-7 * size
    if spec.tolerance.floor is not None:
        finite = replace(inputs, tensors=only_finite(inputs.tensors))
        floor = float(spec.tolerance.floor(name, finite, only_finite(known), kind.eps))
    rounding = spec.tolerance.rounding * kind.eps * (size + kind.smallest_normal * math.sqrt(got.numel()))
    limit = spec.tolerance.naive * naive_error + rounding + floor
    if not 0 <= limit < float("inf"):
        raise ValueError(f"{spec.name}: the limit of {name} is {limit}; a tolerance must be finite")
    if error > limit:
        raise Wrong(
            f"{name}: error {error:.3g} is {error / limit if limit else float('inf'):.3g} times its limit {limit:.3g} "
            f"(the naive version's error {naive_error:.3g}, norm {size:.3g}, floor {floor:.3g})"
        )
    return error / limit if limit else 0.0


def require_like(name: str, got: Tensor, right: Tensor) -> None:
    if (got.shape, got.dtype) != (right.shape, right.dtype):
        found, wanted = (f"{tuple(t.shape)} {t.dtype}" for t in (got, right))
        raise Wrong(f"{name}: is {found}; the reference gives {wanted}")


def only_finite(tensors: Tensors) -> dict[str, Tensor]:
    return {
        name: t.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) if t.is_floating_point() else t
        for name, t in tensors.items()
    }


def require_each(name: str, got: Tensor, exact: Tensor, agrees: Tensor) -> None:
    if not agrees.all():
        at = tuple((~agrees).nonzero()[0].tolist())
        count = int((~agrees).sum())
        raise Wrong(f"{name}{list(at)} is {got[at].item():.5g}, not {exact[at].item():.5g} ({count} such elements)")
