"""Is an op what it says it is? What comparing results cannot show: who computed them, and when.

`examine` runs an op on one example again and again: several times over, with other values in the same memory, with its
kernels left out, and with its kernels writing what they wrote for other values. Who calls the reference is seen all the
while.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor

from kernels.lab.example import Example
from kernels.lab.launches import During, Tape, leave_it_out, run_it
from kernels.lab.limits import Wrong
from kernels.lab.memory import bits, without_repeats
from kernels.lab.trial import OVERWRITTEN, Results, Tensors, Trial, differing, is_same

WRAPPED = ("func", "__func__", "__wrapped__", "_torchdynamo_orig_callable")
"""Where a partial function, a method, a decorated and a compiled function keep what they call."""
AGAIN = 4
"""Further calls with the same inputs, after the two that every example makes."""


@dataclass(frozen=True)
class Conduct:
    """What was seen of an op."""

    kernels: dict[str, tuple[str, ...]]
    """"forward" and "backward" -> the kernels that it launched."""
    elsewhere: tuple[str, ...]
    """Gradients that are the same when no kernel runs: PyTorch computes them."""

    def __str__(self) -> str:
        parts = [f"{when} {', '.join(names)}" for when, names in self.kernels.items() if names]
        return f"Kernels: {'; '.join(parts)}" + "".join(f"; {name} is PyTorch's" for name in self.elsewhere)


def examine(asked: Example) -> Conduct:
    """Raises Wrong where the results are not computed by kernels, at this call, from these inputs."""
    watch = Watch(asked.spec.reference)
    trial = asked.trial()
    first = watch.run(trial)
    kept = {name: bits(t).clone() for name, t in first.all.items() if t is not None}
    is_empty = not any(y.numel() for y in first.outputs.values())
    if not first.forward and not is_empty:
        raise Wrong("its forward launches no kernel")
    require_repeatable(asked, trial, first, watch)
    changed = asked.with_values(*(half_of_them_halved(t, asked) for t in (asked.inputs.tensors, asked.cotangents)))
    tape = Tape()
    other = require_fresh(asked, changed, tape, watch)
    for name, t in first.all.items():
        if t is not None and not torch.equal(bits(t), kept[name]):
            raise Wrong(f"{name}: was overwritten by a later call")
    require_repeatable(asked, asked.trial(), first, watch, times=1)
    elsewhere = () if is_empty else computed_elsewhere(trial, first, watch)
    require_kernels_work(asked, changed, first, other, tape, watch)
    if watch.called:
        raise Wrong(watch.called[0])
    asked.require_reference()
    names = {"forward": first.forward, "backward": first.backward}
    launched = {when: tuple(dict.fromkeys(launch.kernel for launch in seen)) for when, seen in names.items()}
    return Conduct(launched, elsewhere)


def require_repeatable(asked: Example, trial: Trial, first: Results, watch: Watch, times: int = AGAIN) -> None:
    for _ in range(times):
        repeated = watch.run(trial)
        if asked.spec.order == "atomics":
            asked.compare(repeated.all)
        elif (name := differing(first, repeated)) is not None:
            raise Wrong(f"{name}: differs when it is called again with the same inputs")


def half_of_them_halved(tensors: Tensors, asked: Example) -> dict[str, Tensor]:
    """Numbers that a kernel takes as well as those which the spec drew, and that the spec does not know."""
    generator = torch.Generator().manual_seed(asked.seed + 2)

    def changed(t: Tensor) -> Tensor:
        stored = without_repeats(t)
        return torch.where(torch.rand(stored.shape, generator=generator) < 0.5, stored / 2, stored).expand(t.shape)

    return {
        name: changed(t) if t.is_floating_point() and name not in asked.inputs.float32 else t
        for name, t in tensors.items()
    }


def require_fresh(asked: Example, changed: Example, tape: Tape, watch: Watch) -> Results:
    """Changes the values where they lie: the op must return what is right for these, and what it returns for such
    values elsewhere. The results; `tape` gets what the kernels wrote."""
    trial = asked.trial()
    watch.run(trial)
    given = {**trial.laid, **{f"d{name}": region for name, region in trial.cotangents.items()}}
    for name, t in {**changed.inputs.tensors, **{f"d{name}": t for name, t in changed.cotangents.items()}}.items():
        place, values = without_repeats(given[name].tensor), without_repeats(t)
        if not torch.equal(bits(place.cpu()), bits(values)):
            place.copy_(values)
    here = watch.run(trial)
    elsewhere = changed.trial()
    there = watch.run(elsewhere, tape.record)
    for name, region in elsewhere.laid.items():
        if region.storage.untyped_storage().data_ptr() in tape.storages:  # be it that the same numbers are there again
            raise Wrong(OVERWRITTEN.format(name))
    stale = "is not that of the values which its inputs hold now: it keeps results of earlier calls"
    if asked.spec.order == "fixed" and (name := differing(here, there)) is not None:
        raise Wrong(f"{name}: {stale}")
    try:
        changed.compare(here.all)
    except Wrong as wrong:
        raise Wrong(f"{wrong}; it {stale}") from wrong
    return there


def computed_elsewhere(trial: Trial, first: Results, watch: Watch) -> tuple[str, ...]:
    """Runs the op with its kernels left out, so that what they write stays NaN: who has the same results all the same
    does not get them from kernels. Raises Wrong for outputs."""
    try:
        without = watch.run(trial, leave_it_out)
    except Wrong:  # it could not go on without them
        return ()
    if watch.called:
        raise Wrong(watch.called[0])
    same = [name for name, t in first.all.items() if t is not None and t.numel() and is_same(t, without.all[name])]
    outputs = [name for name in first.outputs if first.outputs[name].numel()]
    # Zeros are what memory may hold by itself: the loss of a row that is ignored says nothing of who wrote it.
    if outputs and all(name in same and first.outputs[name].nan_to_num(0, 0, 0).any() for name in outputs):
        raise Wrong(f"{outputs[0]}: is the same when its kernels are left out: something else computes it")
    return tuple(name for name in same if name in first.gradients)


def require_kernels_work(
    asked: Example, changed: Example, first: Results, other: Results, tape: Tape, watch: Watch
) -> None:
    """Raises Wrong where a kernel's work does not matter, and PyTorch does it.

    `first` are the results of `asked`, `other` those of `changed`, when `tape` recorded what kernels wrote. Now they
    write this again, while PyTorch has the values of `asked`: a number that stays as it was the first time, though it
    is another one for the other values, does not come from a kernel. And who only copies its inputs computes nothing.
    """
    try:
        mixed = watch.run(asked.trial(), tape.play)
    except Wrong:  # it could not go on with what does not fit together
        mixed = other
    for name, y in first.outputs.items():
        apart = (bits(mixed.outputs[name]) == bits(y)) & (bits(other.outputs[name]) != bits(y))
        apart = apart.cpu() & ~is_among(y, asked.inputs.tensors)  # what is only moved is computed by nobody
        if apart.any():
            at = apart.nonzero()[0].tolist()
            raise Wrong(f"{name}{at}: is the same when its kernels get other inputs: something else computes it")
    written = [t for launch in tape.written[: len(other.forward)] for t in launch.values()]
    is_copied = bool(written) and all(is_among(t, changed.inputs.tensors).all() for t in written)
    if is_copied and not all(is_among(y, changed.inputs.tensors).all() for y in other.outputs.values()):
        raise Wrong("its kernels only copy its inputs: something else computes")


def is_among(t: Tensor, inputs: Tensors) -> Tensor:
    """Where an element of `t` is 0, 1, or one of an input's as its dtype holds them; or NaN, as what nobody wrote."""
    t = t.detach().cpu()
    known = torch.cat([t.new_tensor([0, 1]), *(other.to(t.dtype).reshape(-1) for other in inputs.values())])
    return torch.isin(t, known) | (t != t)


class Watch:
    """Sees who calls a function, or a copy of it. Under a profiler, whom this would disturb, it sees nothing."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.called: list[str] = []
        """What was seen."""
        self.function = function
        self.is_built_in = isinstance(function, BuiltinFunctionType)
        self.forms = {form(inner.__code__) for inner in functions_of(function)}
        self.known = {content(inner.__code__, inner.__globals__): inner for inner in functions_of(function)}

    def run(self, trial: Trial, during: During = run_it) -> Results:
        return trial.run(self.looking(), self.looking_away(during))

    @contextmanager
    def looking(self) -> Iterator[None]:
        if sys.getprofile() is not None:
            yield
            return
        sys.setprofile(self.notice)
        threading.setprofile(self.notice)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def looking_away(self, during: During) -> During:
        """While a kernel is interpreted, which calls thousands of functions, none of them its author's."""

        def unseen(launch: Callable[[], Any], tensors: list[Tensor]) -> Any:
            if (watching := sys.getprofile()) != self.notice:
                return during(launch, tensors)
            sys.setprofile(None)
            try:
                return during(launch, tensors)
            finally:
                sys.setprofile(watching)

        return unseen

    def notice(self, frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            if form(frame.f_code) in self.forms and self.is_copy(frame):
                self.called.append("it calls its own reference")
        elif event == "c_call":
            if argument is sys.setprofile and frame.f_globals is not globals():
                self.called.append("it turns off what watches it")
            elif self.is_built_in and argument == self.function:
                self.called.append("it calls its own reference")

    def is_copy(self, frame: Any) -> bool:
        if (inner := self.known.get(content(frame.f_code, frame.f_globals))) is None:
            return False
        enclosed = zip(inner.__code__.co_freevars, inner.__closure__ or ())
        return all(frame.f_locals.get(name) is cell.cell_contents for name, cell in enclosed)


def form(code: CodeType) -> tuple[int, int]:
    """What is told at once of most functions that are not the same."""
    return code.co_argcount, code.co_nlocals


def content(code: CodeType, known: dict[str, Any]) -> tuple[Any, ...]:
    """What a function does, whatever it is called and wherever it stands: known, what its names mean."""
    constants = tuple(value for value in code.co_consts if not isinstance(value, (str, CodeType)))
    return code.co_code, constants, code.co_names, code.co_varnames, tuple(id(known.get(n)) for n in code.co_names)


def functions_of(function: Any) -> list[FunctionType]:
    """A function, and those that it wraps."""
    inside = [getattr(function, name, None) for name in WRAPPED]
    if isinstance(call := type(function).__call__, FunctionType):  # an object that can be called
        inside.append(call)
    own = [function] if isinstance(function, FunctionType) else []
    return own + [inner for each in inside if each is not None for inner in functions_of(each)]
