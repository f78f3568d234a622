"""An op tried on tensors that lie in one layout, within guard bands: forward, backward, and what it must not touch."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.lab.interpreter import Unsupported, faithful_bfloat16, inability, told
from kernels.lab.launches import During, Launch, current_stream, run_it, watched_launches
from kernels.lab.limits import Wrong
from kernels.lab.memory import NOT_A_NUMBER, Region, bits, guarded_allocations, lay_out
from kernels.lab.spec import Inputs, Spec
from kernels.lab.surroundings import same_state
from kernels.launch import INTERPRETED

Tensors = Mapping[str, Tensor]
OVERWRITTEN = "{}: an input was overwritten, or memory beside it"


LONGEST = 60.0
"""Seconds of the processor that one call may take, forward and backward: a loop that does not end is told instead of
waited for."""


class OutOfTime(Exception):
    """Raised where it is when its time is up."""


class Raised(Wrong):
    """It raised an exception."""


class Endless(Raised):
    """It did not end."""


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
        device = own_device()
        laid = {
            name: lay_out(t, "contiguous" if name in inputs.contiguous else layout, index, device, fill)
            for index, (name, t) in enumerate(inputs.tensors.items())
        }
        delivered = {
            name: lay_out(t, layout, len(laid) + i, device, fill) for i, (name, t) in enumerate(cotangents.items())
        }
        return Trial(spec, inputs, right, laid, delivered, fill)

    def run(self, within: AbstractContextManager[Any] | None = None, during: During = run_it) -> Results:
        """The op's results; `within` surrounds the calls, `during` is done at each launch. Raises Wrong for what was
        written where it must not be."""
        given = {**self.laid, **{f"d{name}": region for name, region in self.cotangents.items()}}
        before = {name: region.storage.clone() for name, region in given.items()}
        with (
            within or nullcontext(),
            faithful_bfloat16() if INTERPRETED else nullcontext(),
            guarded_allocations(self.fill) as allocated,
            watched_launches(during) as launched,
        ):
            said: list[str] = []
            try:
                with limited_time(LONGEST, said):
                    results = self._call(launched, allocated)
            except (Wrong, Unsupported):
                raise
            except (Exception, SystemExit) as error:
                if not said and (reason := inability(error)) is not None:
                    raise Unsupported(reason) from error
                if said:  # whatever became of what was raised then
                    raise Endless(f"{said[0]} It raised {told(error)}") from error
                raise Raised(f"raised {told(error)}") from error
        for name, region in given.items():
            if not torch.equal(region.storage, before[name]):
                raise Wrong(OVERWRITTEN.format(name))
        return results

    def _call(self, launched: list[Launch], allocated: list[Region]) -> Results:
        here = current_stream()
        leaves = differentiable(self.inputs, {name: region.tensor for name, region in self.laid.items()})
        versions = {name: leaf._version for name, leaf in leaves.items()}
        with same_state():
            outputs = call(self.spec, self.spec.op, leaves, self.inputs)
        forward = tuple(launched)
        require_bands(allocated, "forward")
        for name, y in outputs.items():
            require_plain(name, y, self.laid)
            require_like(name, y, self.right[name])
            require_written_out(name, y, self.right[name])
            if y.device != own_device():
                raise Wrong(f"{name}: is on {y.device}; its inputs are on {own_device()}")
        delivered = {name: region.tensor for name, region in self.cotangents.items()}
        with same_state() if self.inputs.gradients else nullcontext():
            gradients = gradients_of(outputs, delivered, leaves, self.inputs)
        for name, gradient in gradients.items():
            if gradient is not None:
                require_computed(name, gradient)
        for name, leaf in leaves.items():
            if leaf._version != versions[name]:  # be it that the same numbers are there again
                raise Wrong(OVERWRITTEN.format(name))
        require_bands(allocated, "backward")
        require_stream(launched, here)
        return Results(outputs, gradients, forward, tuple(launched[len(forward) :]))


@contextmanager
def limited_time(seconds: float, said: list[str]) -> Iterator[None]:
    """Inside, OutOfTime is raised when so much time of the processor is up, in the line of an interpreted kernel, and
    again as long as somebody catches it; `said` gets what is to be told. Not in a thread, nor on a system without such
    timers."""
    is_main = threading.current_thread() is threading.main_thread()
    if not hasattr(signal, "setitimer") or not is_main or signal.getitimer(signal.ITIMER_PROF)[0]:
        yield
        return

    def stop(*_: Any) -> None:
        said[:] = [f"has no end after {seconds:g} s: does a loop run for ever?"]
        raise OutOfTime("its time was up")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def own_device() -> torch.device:
    """Where ops are tried."""
    return torch.device("cpu") if INTERPRETED else torch.device("cuda", torch.cuda.current_device())


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
    """A tensor that holds its numbers already: not one that is negated, say, when it is read."""
    kind = type(y).__name__ if type(y) is not Tensor else unfinished(y)
    if kind:
        raise Wrong(f"{name}: is of type {kind}; it must be a plain torch.Tensor, computed already")


def unfinished(y: Tensor) -> str:
    """What is still to be done, or to be known, when the numbers of `y` are read; empty for memory that holds them."""
    if y.layout != torch.strided or y.is_quantized or y.is_meta:
        return f"{y.layout} on {y.device}, {y.dtype}"
    return "a view that is negated" if y.is_neg() else "a view that is conjugated" if y.is_conj() else ""


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


def require_written_out(name: str, got: Tensor, right: Tensor) -> None:
    """Each of its elements in a place of its own: who leaves out a dimension saves most of what is to be written."""
    for size, step, right_step in zip(got.shape, got.stride(), right.stride()):
        if size > 1 and step == 0 and right_step != 0 and got.numel():
            raise Wrong(f"{name}: has stride 0: its elements share places in memory, those of the reference do not")


def differing(one: Results, other: Results) -> str | None:
    """The name of the first result whose bits are not the same in both."""
    for name, t in one.all.items():
        if t is not None and not is_same(t, other.all[name]):
            return name
    return None


def is_unwritten(t: Tensor, fill: int) -> Tensor:
    """Which numbers of a result hold still what filled its memory."""
    size = t.element_size()
    return bits(t) == int.from_bytes(bytes([fill]) * size, "little", signed=size > 1)


def is_same(t: Tensor, other: Tensor | None) -> bool:
    """To the bit."""
    return other is not None and t.shape == other.shape and torch.equal(bits(t), bits(other))
