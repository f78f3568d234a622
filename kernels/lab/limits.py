"""How far from right a result may be, as a whole and element by element; rounding.py says why.

A result y with the float64 result r, r° the number of y's dtype nearest to r, and δ what float32 loses inside must keep

    ‖y - r‖  ≤ ‖r° - r‖ + 2·slack·max ‖δ‖ + u·‖r‖ + extra      in the Frobenius norm
    |y - r|  ≤ |r° - r| + 2·EACH·rms |δ| + u·|r| + extra       in each element

over a few runs, each with a δ of its own. Of many elements all runs have the same norm; where few matter, the largest
says what may happen. The kernel may add up other terms than the reference, hence the slack: 2 for float32 inputs; 1 for
others, where δ is the rounding of a product's operands, and those are the same. One element's δ is seen a few times
only, and may be small in all of them, hence EACH; and 0 where the runs fall on r itself, hence float32's unit u of the
result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.lab.rounding import LEAST, UNIT

RUNS = 4
"""Of the reference with its operations rounded at random."""
EACH = 64.0


class Wrong(AssertionError):
    """What an op did wrong on one example."""


@dataclass(frozen=True)
class Limit:
    """One result's."""

    exact: Tensor
    """r, in float64."""
    differences: Tensor
    """δ of each run, (runs, ...), float64."""
    slack: float
    extra: float = 0.0
    """What the spec's tolerance allows besides."""

    def compare(self, name: str, got: Tensor) -> float:
        """The norm of the error over its limit; raises Wrong where that is above 1, or an element above its own."""
        exact = self.exact
        if not got.is_floating_point():
            require_each(name, got, exact, got == exact)
            return 0.0
        largest, once = torch.finfo(got.dtype).max, (exact.to(got.dtype).double() - exact).abs()
        got = got.double()
        overflows = exact.isfinite() & (exact.abs() > 0.98 * largest)  # infinite or not, depending on rounding
        agrees = torch.where(exact.isfinite(), got.isfinite(), (got == exact) | (got.isnan() & exact.isnan()))
        require_each(name, got, exact, torch.where(overflows, got * exact.sign() > 0.9 * largest, agrees))

        judged = exact.isfinite() & ~overflows
        error, once, lost = (got - exact).abs()[judged], once[judged], self.differences[:, judged]
        least = LEAST + UNIT * exact[judged].abs()
        inside = 2 * self.slack * max(float(run.norm()) for run in lost)
        limit = float(once.norm()) + inside + float(least.norm()) + self.extra
        limit = max(limit, LEAST)  # of an empty tensor, too
        if not limit < float("inf"):
            raise ValueError(f"the limit of {name} is {limit}; a tolerance must be finite")
        if (whole := float(error.norm())) > limit:
            raise Wrong(
                f"{name}: error {whole:.3g} is {whole / limit:.3g} times its limit {limit:.3g} (norm "
                f"{float(exact[judged].norm()):.3g}; rounding it once {float(once.norm()):.3g}, float32 inside "
                f"{inside:.3g}{f', tolerance {self.extra:.3g}' if self.extra else ''})"
            )
        each = once + 2 * EACH * lost.square().mean(0).sqrt() + least + self.extra
        limits = torch.zeros_like(exact).masked_scatter(judged, each)
        fits = ~judged | ((got - exact).abs() <= limits)
        require_each(name, got, exact, fits)
        return whole / limit

    def is_exceeded_by(self, got: Tensor) -> bool:
        try:
            self.compare("", got)
        except Wrong:
            return True
        return False


def differences(exact: Tensor, runs: Sequence[Tensor]) -> Tensor:
    """(runs, ...) what each differs from the exact result by; 0 where it is not finite."""
    if not exact.is_floating_point():
        return torch.zeros(len(runs), *exact.shape, dtype=torch.float64)
    return (torch.stack(list(runs)) - exact).nan_to_num(0.0, 0.0, 0.0)


def require_each(name: str, got: Tensor, exact: Tensor, agrees: Tensor) -> None:
    if not agrees.all():
        at = tuple((~agrees).nonzero()[0].tolist())
        count = int((~agrees).sum())
        raise Wrong(f"{name}{list(at)} is {got[at].item():.5g}, not {exact[at].item():.5g} ({count} such elements)")
