"""Can it be what was measured? No time below what the work takes, no work elsewhere, and right results: those of the
runs that were timed, and those of other values in the same memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.lab.calls import Call, dtype_of
from kernels.lab.find import UsageError
from kernels.lab.limits import Wrong
from kernels.lab.spec import Case, Spec

MOST_PERCENT = 120.0
"""Of the measured roofline: a time below this is none. Its ceilings are those of a copy and a product, which may be
bested a little."""
MOST_PERCENT_IN_CACHE = 250.0
"""The same where results may stay in the cache, and are written to memory later."""
MOST_PERCENT_TOGETHER = 200.0
"""Of forward and backward, where the forward computes the gradient too, and reads what both need once."""
MOST_UNSEEN = 0.1
"""Milliseconds; to wait for a device that has nothing to do takes hundredths."""
MOST_ERROR = {torch.float32: 256.0}
"""Over the eager version's, by the results' dtype: sums in float32 may be added up in better and worse orders."""
MOST_ERROR_OF_HALVES = 16.0
"""The same in half precision, where rounding the results is most of it: right kernels have up to 1.6, and who leaves
out a number in a hundred has 25."""


def require_possible(found: dict[str, Any], is_past_the_cache: bool) -> None:
    """Raises Wrong for times that no work has: below the roofline, or of a device that goes on afterwards."""
    most = MOST_PERCENT if is_past_the_cache else MOST_PERCENT_IN_CACHE
    ms, percent = found["ms"], found["roofline_percent"]
    impossible = "forward" if percent.get("forward", 0.0) > most else ""
    if "backward" in ms and percent:
        # What a backward does not do, its forward may have done: then both together take their time.
        least = sum(ms[phase] * percent[phase] / 100 for phase in ("forward", "backward"))
        together = ms["forward"] + ms["backward"]
        if percent["backward"] > most and 100 * least > MOST_PERCENT_TOGETHER * together:
            impossible = impossible or "backward"
    if impossible:
        raise Wrong(
            f"its {impossible} takes {ms[impossible]:.4f} ms, {percent[impossible]:.0f}% of what the device can do: "
            "the work is not done, or not in the time that is measured"
        )
    if found["unseen_ms"] > MOST_UNSEEN:
        raise Wrong(
            f"the device goes on for {found['unseen_ms']:.2f} ms when its stream is done: it works on another one, "
            "which no timer waits for"
        )


def require_enough_declared(spec: Spec, case: Case, outputs: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
    """UsageError where the spec's work is less than to write the results: a roofline that everybody is below."""
    if spec.work is None:
        return
    sizes = {key: value for key, value in case.items() if key not in ("seed", "dtype")}
    declared = spec.work(dtype_of(case).itemsize, **sizes)
    for phase, work, results in zip(("forward", "backward"), declared, (outputs, leaves)):
        written = sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in results)
        if work.bytes < written:
            raise UsageError(
                f"{spec.name}: its work declares {work.bytes:,.0f} bytes for the {phase}, whose results alone are "
                f"{written:,}"
            )


@dataclass(frozen=True)
class Expected:
    """What is right: outputs, then gradients."""

    exact: list[Tensor]
    """In float64."""
    naive: list[Tensor]
    """Of the reference, in the case's dtype."""
    outputs: int
    """How many of them are outputs."""

    def of(self, phase: str) -> Expected:
        """What a run of this phase returns: the forward outputs, the others gradients."""
        part = slice(self.outputs) if phase == "forward" else slice(self.outputs, None)
        return Expected(self.exact[part], self.naive[part], self.outputs)

    def error_over_naive(self, got: Sequence[Tensor]) -> float:
        """The distance to float64 over the eager version's, the worst of all results; infinite where that is no number,
        or the results are not like the eager version's."""
        kinds = [[(y.shape, y.dtype, y.device) for y in results] for results in (got, self.naive)]
        if kinds[0] != kinds[1]:
            return math.inf
        ratios = [_ratio(*each) for each in zip(got, self.naive, self.exact) if each[0].is_floating_point()]
        return max((math.inf if math.isnan(ratio) else ratio for ratio in ratios), default=0.0)

    def require_right(self, got: Sequence[Tensor], when: str) -> float:
        """The same; raises Wrong where it is more than a right op has."""
        error = self.error_over_naive(got)
        dtypes = {y.dtype for y in self.naive if y.is_floating_point()}
        if error > max((MOST_ERROR.get(dtype, MOST_ERROR_OF_HALVES) for dtype in dtypes), default=0.0):
            raise Wrong(f"{when} its error is {error:.3g} times that of the eager version")
        return error


def _ratio(y: Tensor, y_naive: Tensor, r: Tensor) -> float:
    """Where eager is exact by luck, rounding the result once is what it is compared with."""
    nothing = torch.zeros((), dtype=r.dtype, device=r.device)
    error, error_of_naive, size = (
        torch.where(r.isfinite(), t, nothing).norm() for t in (y.detach() - r, y_naive - r, r)
    )
    rounding = torch.finfo(y.dtype).eps * size / 2
    return float(error / torch.maximum(error_of_naive, rounding).clamp(min=torch.finfo(r.dtype).tiny))


def results_of(function: Callable[..., Any], call: Call, cotangents: list[Tensor]) -> list[Tensor]:
    """Outputs, then gradients."""
    outputs = call.forward(function)
    return [*(y.detach() for y in outputs), *call.backward(outputs, cotangents)]


def expected(spec: Spec, call: Call, cotangents: list[Tensor]) -> Expected | None:
    """None where there is no memory for it, the case being made to fill the device."""
    try:
        exact = results_of(spec.reference, call.copy(torch.float64), [c.double() for c in cotangents])
    except torch.OutOfMemoryError:
        return None
    return Expected(exact, results_of(spec.reference, call, cotangents), len(spec.outputs))


def require_fresh(spec: Spec, call: Call, cotangents: list[Tensor]) -> None:
    """Raises Wrong where the op is not right for other values in the memory where those lay that it was timed with."""
    dtypes = {c.dtype for c in cotangents} | {t.dtype for t in call.leaves}
    with torch.no_grad():
        for t in (*call.tensors.values(), *cotangents):
            if t.is_floating_point() and (t.dtype in dtypes or not dtypes):
                t.mul_(1 - torch.randint_like(t, 2) / 2)
    if (right := expected(spec, call, cotangents)) is not None:
        got = results_of(spec.op, call, cotangents)
        right.require_right(got, "it keeps results of earlier calls: with other values in the same memory")
