"""One example: an op's results beside those of its reference, each output and each gradient judged by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.lab.interpreter import reversed_programs
from kernels.lab.launches import watched_launches
from kernels.lab.limits import RUNS, Limit, Wrong, differences
from kernels.lab.memory import NOT_A_NUMBER, NUMBERS, broadcast
from kernels.lab.rounding import RandomRounding
from kernels.lab.spec import Case, Inputs, Spec
from kernels.lab.trial import Tensors, Trial, call, differentiable, differing, gradients_of, is_unwritten, require_like
from kernels.launch import INTERPRETED


class Judged(NamedTuple):
    """How far a result is from right, and whether it would have been seen to be wrong."""

    ratio: float
    """Error over limit, at most 1."""
    tells: bool
    """A result that is wrong by a tenth is refused here, and that which is right is not all 0."""


@dataclass(frozen=True)
class Example:
    """A case in one dtype and layout: what the op is given, and what it must return."""

    spec: Spec
    inputs: Inputs
    """In the tested dtype, which the reference's inputs are rounded to as well."""
    dtype: torch.dtype
    like: dict[str, Tensor | None]
    """Results of the right shapes, dtypes and strides, without numbers; None for a gradient that there is not."""
    cotangents: dict[str, Tensor]
    layout: str
    seed: int

    @cached_property
    def limits(self) -> dict[str, Limit | None]:
        """None for a gradient that there is not. Computed when they are asked for, after the op has run: what is right
        cannot be found in memory before."""
        return limits_of(self.spec, self.inputs, self.like, self.cotangents, self.dtype, self.seed)

    def trial(self, fill: int = NOT_A_NUMBER) -> Trial:
        right = {name: t for name in self.spec.outputs if (t := self.like[name]) is not None}
        return Trial.on(self.spec, self.inputs, right, self.cotangents, self.layout, fill)

    def compare(self, got: dict[str, Tensor | None]) -> dict[str, Judged]:
        """Each result's error; raises Wrong where one is above its limit, or not like the reference's."""
        ratios = {name: compare(name, got[name], right, self.limits[name]) for name, right in self.like.items()}
        return {name: Judged(ratio, self.tells(name, got[name])) for name, ratio in ratios.items()}

    def tells(self, name: str, got: Tensor | None) -> bool:
        """Of a right result."""
        if got is None or (limit := self.limits[name]) is None:
            return True
        is_all_zero = name in self.spec.outputs and not got.any()
        return not is_all_zero and limit.is_exceeded_by(spoiled(got.detach().cpu()))

    def with_values(self, tensors: dict[str, Tensor], cotangents: dict[str, Tensor]) -> Example:
        """The same example, but for what its inputs hold, and the gradients of its results."""
        return replace(self, inputs=replace(self.inputs, tensors=tensors), cotangents=cotangents)

    def require_reference(self) -> None:
        """Raises Wrong where the reference gives something else in float32 than in float64, which is what judges."""
        device = judging_device()
        tensors = {
            name: t.to(device, torch.float32) if t.is_floating_point() else t.to(device)
            for name, t in self.inputs.tensors.items()
        }
        for name, y in call(self.spec, self.spec.reference, tensors, self.inputs).items():
            limit = self.limits[name]
            if limit is None or not y.is_floating_point():
                continue
            y = y.detach().double().cpu()
            judged = y.isfinite() & limit.exact.isfinite()
            error, size = (float(t[judged].norm()) for t in (y - limit.exact, limit.exact))
            lost = max(float(run[judged].norm()) for run in limit.differences)
            if error > 0.1 * size + 16 * lost:
                raise Wrong(
                    f"{name}: its reference gives something else in float64 than in float32, {error:.3g} of {size:.3g}"
                )


def spoiled(y: Tensor) -> Tensor:
    """Wrong by a tenth everywhere, and by 1 where it is 0 or no real number."""
    return y * 1.1 + (y == 0).to(y.dtype) if y.is_floating_point() else ~y if y.dtype == torch.bool else y + 1


def example(spec: Spec, case: Case, dtype: torch.dtype, layout: str) -> Example:
    drawn = spec.make(case)
    tensors = {
        name: t.to(torch.float32 if name in drawn.float32 else dtype) if t.is_floating_point() else t
        for name, t in drawn.tensors.items()
    }
    inputs = replace(drawn, tensors=tensors)
    device, seed = judging_device(), case.get("seed", 0)
    leaves = differentiable(inputs, {name: t.to(device) for name, t in tensors.items()})
    with watched_launches() as launched:
        outputs = call(spec, spec.reference, leaves, inputs)
    if launched:
        raise ValueError(f"the reference launches {launched[0].kernel}: it must be plain PyTorch, which judges kernels")
    cotangents = draw_cotangents(outputs, case, layout)
    on_device = {name: t.to(device) for name, t in cotangents.items()}
    results = {**outputs, **gradients_of(outputs, on_device, leaves, inputs)}
    like = {name: t if t is None else without_numbers(t) for name, t in results.items()}
    return Example(spec, inputs, dtype, like, cotangents, layout, seed)


def without_numbers(t: Tensor) -> Tensor:
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")


def judging_device() -> torch.device:
    """Where references compute: beside kernels on a GPU, whose realistic sizes would take a CPU minutes."""
    return torch.device("cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda")


def judge(spec: Spec, case: Case, dtype: torch.dtype, layout: str) -> dict[str, Judged]:
    """Every output and gradient; raises Wrong where an error is above its limit, or anything else is amiss.

    The op must give the same bits twice: in the interpreter with its programs in reversed order, else repeated, and the
    second time with numbers in memory that is nobody's, which held NaN the first time. Where its order is that of
    atomics, both results must be within their limits instead.
    """
    asked = example(spec, case, dtype, layout)
    first = asked.trial().run()
    second = asked.trial(NUMBERS).run(reversed_programs() if INTERPRETED else None)
    order = "in reversed order" if INTERPRETED else "once more"
    if (len(first.forward), len(first.backward)) != (len(second.forward), len(second.backward)):
        raise Wrong(
            f"launches {len(first.forward)} and {len(first.backward)} kernels, and {len(second.forward)} and "
            f"{len(second.backward)} when it is called again: it keeps results"
        )
    if spec.order == "atomics":
        asked.compare(second.all)
    elif (name := differing(first, second)) is not None:
        require_written(name, first.all[name], second.all[name])
        raise Wrong(
            f"{name}: differs when its programs run {order} and other numbers lie in unused memory: they depend on "
            "each other's results, or on memory that nobody wrote"
        )
    return asked.compare(first.all)


def require_written(name: str, first: Tensor | None, second: Tensor | None) -> None:
    """Raises Wrong where a result holds in both trials what filled its memory."""
    if first is None or second is None:
        return
    left = is_unwritten(first, NOT_A_NUMBER) & is_unwritten(second, NUMBERS)
    if count := int(left.sum()):
        raise Wrong(
            f"{name}: nothing was stored in {count} of its {left.numel()} numbers: they are what lay in memory that "
            "nobody wrote"
        )


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


def limits_of(
    spec: Spec,
    narrow: Inputs,
    stored: Mapping[str, Tensor | None],
    cotangents: Tensors,
    dtype: torch.dtype,
    seed: int,
) -> dict[str, Limit | None]:
    """By the results' names, None for a gradient that there is not; `stored` are outputs of the right dtype."""
    dtypes = {name: t.dtype for name, t in stored.items() if t is not None}
    device = judging_device()
    wide = replace(narrow, tensors=in_float64(narrow.tensors, device))
    cotangents = in_float64(cotangents, device)

    def as_stored(t: Tensor, name: str) -> Tensor:
        return AsStored.apply(t, dtypes[name])  # pyright: ignore[reportReturnType]

    reference = spec.reference if spec.exact is None else partial(spec.exact, as_stored)

    def results() -> dict[str, Tensor | None]:
        leaves = differentiable(wide, wide.tensors)
        outputs = call(spec, reference, leaves, wide)
        gradients = gradients_of(outputs, cotangents, leaves, wide)
        return {name: t if t is None else t.detach().cpu() for name, t in {**outputs, **gradients}.items()}

    exact, runs = results(), []
    for run in range(RUNS):
        with RandomRounding(seed + run, dtype, device, alike=run % 2 == 1):
            runs.append(results())
    known = {name: t for name, t in exact.items() if t is not None}
    known = only_finite({**known, **{f"d{name}": t.cpu() for name, t in cotangents.items()}})
    finite = replace(wide, tensors=only_finite({name: t.cpu() for name, t in wide.tensors.items()}))
    floor = spec.tolerance.floor or (lambda *_: 0.0)

    def limit(name: str, t: Tensor) -> Limit:
        lost = differences(t, [run[name] for run in runs])
        slack = 2.0 if dtype == torch.float32 else 1.0
        return Limit(t, lost, slack, float(floor(name, finite, known, torch.finfo(dtype).eps)))

    return {name: t if t is None else limit(name, t) for name, t in exact.items()}


class AsStored(torch.autograd.Function):
    """Rounded to a dtype, and float64 again; the gradient passes as it is."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, dtype: torch.dtype) -> Tensor:
        return t.to(dtype).double()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def in_float64(tensors: Tensors, device: torch.device) -> dict[str, Tensor]:
    return {name: t.to(device, torch.float64 if t.is_floating_point() else t.dtype) for name, t in tensors.items()}


def only_finite(tensors: Tensors) -> dict[str, Tensor]:
    return {
        name: t.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) if t.is_floating_point() else t
        for name, t in tensors.items()
    }


def compare(name: str, got: Tensor | None, naive: Tensor | None, limit: Limit | None) -> float:
    """Error over limit of one output or gradient."""
    if naive is None or limit is None:  # the reference's result does not depend on the input
        if got is not None and got.any():
            raise Wrong(f"{name}: is not 0, but nothing depends on that input")
        return 0.0
    if got is None:
        raise Wrong(f"{name}: autograd gave no gradient (None)")
    require_like(name, got, naive)
    return limit.compare(name, got.detach().cpu())
