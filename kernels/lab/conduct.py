"""Is an op what it says it is? What comparing results cannot show: who computed them, and when.

`examine` runs an op on one example again and again: with its kernels left out, with other values in the same memory,
several times over.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import CodeType
from typing import Any

import torch

from kernels.lab.example import Example
from kernels.lab.limits import Wrong
from kernels.lab.memory import bits
from kernels.lab.trial import Results, Trial, differing, is_same

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
    trial = asked.trial()
    first = trial.run()
    kept = {name: bits(t).clone() for name, t in first.all.items() if t is not None}
    is_empty = not any(y.numel() for y in first.outputs.values())
    if not first.forward and not is_empty:
        raise Wrong("its forward launches no kernel")
    for _ in range(AGAIN):
        repeated = trial.run()
        if asked.spec.order == "atomics":
            asked.compare(repeated.all)
        elif (name := differing(first, repeated)) is not None:
            raise Wrong(f"{name}: differs when it is called again with the same inputs")
    require_fresh(asked)
    for name, t in first.all.items():
        if t is not None and not torch.equal(bits(t), kept[name]):
            raise Wrong(f"{name}: was overwritten by a later call")
    elsewhere = () if is_empty else computed_elsewhere(trial, first, asked.spec.reference)
    names = {"forward": first.forward, "backward": first.backward}
    launched = {when: tuple(dict.fromkeys(launch.kernel for launch in seen)) for when, seen in names.items()}
    return Conduct(launched, elsewhere)


def computed_elsewhere(trial: Trial, first: Results, reference: Callable[..., Any]) -> tuple[str, ...]:
    """Runs the op with its kernels left out, so that what they write stays NaN: who has the same results all the same
    does not get them from kernels. Raises Wrong for outputs, and where the reference was called."""
    with noticing(reference) as called:
        try:
            without = trial.run(are_kernels_run=False)
        except Wrong:  # it could not go on without them
            without = None
    if called:
        raise Wrong("it calls its own reference")
    if without is None:
        return ()
    same = [name for name, t in first.all.items() if t is not None and t.numel() and is_same(t, without.all[name])]
    outputs = [name for name in first.outputs if first.outputs[name].numel()]
    # Zeros are what memory may hold by itself: the loss of a row that is ignored says nothing of who wrote it.
    if outputs and all(name in same and first.outputs[name].nan_to_num(0, 0, 0).any() for name in outputs):
        raise Wrong(f"{outputs[0]}: is the same when its kernels are left out: something else computes it")
    return tuple(name for name in same if name in first.gradients)


@contextmanager
def noticing(function: Callable[..., Any]) -> Iterator[list[CodeType]]:
    """Yields a list that is not empty once `function` has been called; always empty under a profiler."""
    called: list[CodeType] = []
    code = getattr(function, "__code__", None)

    def notice(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code is code:
            called.append(frame.f_code)

    if sys.getprofile() is not None:  # somebody measures this process, and would not measure on
        yield called
        return
    sys.setprofile(notice)
    try:
        yield called
    finally:
        sys.setprofile(None)


def require_fresh(asked: Example) -> None:
    """Halves the inputs where they lie: the op must return what it returns for such inputs elsewhere."""
    trial = asked.trial()
    trial.run()
    halved = {
        name: t / 2 if t.is_floating_point() and name not in asked.inputs.float32 else t
        for name, t in asked.inputs.tensors.items()
    }
    for name, t in halved.items():
        region = trial.laid[name].tensor
        if not torch.equal(bits(region.cpu()), bits(t)):
            region.copy_(t)
    here = trial.run()
    there = replace(asked, inputs=replace(asked.inputs, tensors=halved)).trial().run()
    if asked.spec.order == "fixed" and (name := differing(here, there)) is not None:
        raise Wrong(f"{name}: is not that of the values which its inputs hold now: it keeps results of earlier calls")
