"""An op tried on tensors that lie in one layout, within guard bands: forward, backward, and what it must not touch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.lab.interpreter import Unsupported, faithful_bfloat16, inability, told
from kernels.lab.launches import Launch, current_stream, watched_launches
from kernels.lab.limits import Wrong
from kernels.lab.memory import NOT_A_NUMBER, Region, bits, guarded_allocations, lay_out
from kernels.lab.spec import Inputs, Spec
from kernels.lab.surroundings import same_state
from kernels.launch import INTERPRETED

Tensors = Mapping[str, Tensor]


class Raised(Wrong):
    """It raised an exception."""


@dataclass(frozen=True)
class Results:
    """What a function returned, by the spec's names, and the gradients that autograd gave, by "d" + tensor."""

    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor | None]
    forward: tuple[Launch, ...] = ()
    backward: tuple[Launch, ...] = ()

    @property
    def all(self) -> dict[str, Tensor | None]:
        return {**self.outputs, **self.gradients}


@dataclass(frozen=True)
class Trial:
    """An op's arguments in memory; `run` calls it, as often as one likes."""

    spec: Spec
    inputs: Inputs
    right: Tensors
    """Outputs of the right shape and dtype."""
    laid: dict[str, Region]
    cotangents: dict[str, Region]
    fill: int
    """The byte that is in memory which is nobody's, or not written yet."""

    @staticmethod
    def on(
        spec: Spec, inputs: Inputs, right: Tensors, cotangents: Tensors, layout: str, fill: int = NOT_A_NUMBER
    ) -> Trial:
        device = torch.device("cpu" if INTERPRETED else "cuda")
        laid = {
            name: lay_out(t, "contiguous" if name in inputs.contiguous else layout, index, device, fill)
            for index, (name, t) in enumerate(inputs.tensors.items())
        }
        delivered = {
            name: lay_out(t, layout, len(laid) + i, device, fill) for i, (name, t) in enumerate(cotangents.items())
        }
        return Trial(spec, inputs, right, laid, delivered, fill)

    def run(self, within: AbstractContextManager[Any] | None = None, are_kernels_run: bool = True) -> Results:
        """The op's results; `within` surrounds the calls. Raises Wrong for what was written where it must not be."""
        given = {**self.laid, **{f"d{name}": region for name, region in self.cotangents.items()}}
        before = {name: region.storage.clone() for name, region in given.items()}
        with (
            same_state(),
            within or nullcontext(),
            faithful_bfloat16() if INTERPRETED else nullcontext(),
            guarded_allocations(self.fill) as allocated,
            watched_launches(are_kernels_run) as launched,
        ):
            try:
                results = self._call(launched, allocated)
            except (Wrong, Unsupported):
                raise
            except Exception as error:
                if (reason := inability(error)) is not None:
                    raise Unsupported(reason) from error
                raise Raised(f"raised {told(error)}") from error
        for name, region in given.items():
            if not torch.equal(region.storage, before[name]):
                raise Wrong(f"{name}: an input was overwritten, or memory beside it")
        return results

    def _call(self, launched: list[Launch], allocated: list[Region]) -> Results:
        here = current_stream()
        leaves = differentiable(self.inputs, {name: region.tensor for name, region in self.laid.items()})
        outputs = call(self.spec, self.spec.op, leaves, self.inputs)
        forward = tuple(launched)
        require_bands(allocated, "forward")
        for name, y in outputs.items():
            require_plain(name, y, self.laid)
            require_like(name, y, self.right[name])
        delivered = {name: region.tensor for name, region in self.cotangents.items()}
        gradients = gradients_of(outputs, delivered, leaves, self.inputs)
        for name, gradient in gradients.items():
            if gradient is not None:
                require_computed(name, gradient)
        require_bands(allocated, "backward")
        require_stream(launched, here)
        return Results(outputs, gradients, forward, tuple(launched[len(forward) :]))


def differentiable(inputs: Inputs, tensors: Tensors) -> dict[str, Tensor]:
    return {name: t.detach().requires_grad_(name in inputs.gradients) for name, t in tensors.items()}


def call(spec: Spec, function: Callable[..., Any], tensors: Tensors, inputs: Inputs) -> dict[str, Tensor]:
    results = function(**tensors, **inputs.options)
    results = results if isinstance(results, tuple) else (results,)
    if len(results) != len(spec.outputs):
        raise Wrong(f"returned {len(results)} results; the spec names {len(spec.outputs)}: {', '.join(spec.outputs)}")
    return dict(zip(spec.outputs, results))


def gradients_of(outputs: Tensors, cotangents: Tensors, leaves: Tensors, inputs: Inputs) -> dict[str, Tensor | None]:
    if not inputs.gradients:
        return {}
    used = [outputs[name] for name in cotangents]
    wanted = [leaves[name] for name in inputs.gradients]
    gradients = torch.autograd.grad(used, wanted, list(cotangents.values()), allow_unused=True)
    return {f"d{name}": gradient for name, gradient in zip(inputs.gradients, gradients)}


def require_bands(regions: list[Region], when: str) -> None:
    for region in regions:
        if not region.band_is_intact():
            shape, dtype = tuple(region.tensor.shape), region.tensor.dtype
            raise Wrong(f"the {when} wrote outside of a tensor that it allocated, of shape {shape} and {dtype}")


def require_stream(launched: list[Launch], here: int) -> None:
    """Who queues elsewhere is not waited for, and takes no time."""
    for launch in launched:
        if launch.stream != here:
            raise Wrong(f"launches {launch.kernel} on another stream than that on which it is called")


def require_computed(name: str, y: Any) -> None:
    """A tensor that holds its numbers already."""
    if type(y) is not Tensor:
        raise Wrong(f"{name}: is of type {type(y).__name__}; it must be a plain torch.Tensor, computed already")


def require_plain(name: str, y: Any, laid: Mapping[str, Region]) -> None:
    """Computed already, in memory that is not an input's."""
    require_computed(name, y)
    for other, region in laid.items():
        if y.numel() and y.untyped_storage().data_ptr() == region.storage.untyped_storage().data_ptr():
            raise Wrong(f"{name}: lies in the memory of the input {other}")


def require_like(name: str, got: Tensor, right: Tensor) -> None:
    if (got.shape, got.dtype) != (right.shape, right.dtype):
        found, wanted = (f"{tuple(t.shape)} {t.dtype}" for t in (got, right))
        raise Wrong(f"{name}: is {found}; the reference gives {wanted}")


def differing(one: Results, other: Results) -> str | None:
    """The name of the first result whose bits are not the same in both."""
    for name, t in one.all.items():
        if t is not None and not is_same(t, other.all[name]):
            return name
    return None


def is_same(t: Tensor, other: Tensor | None) -> bool:
    """To the bit."""
    return other is not None and t.shape == other.shape and torch.equal(bits(t), bits(other))
