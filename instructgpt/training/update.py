"""One update: forward and backward over its micro-batches, clipping, the optimizer's step. Nothing in it waits.

What the update was (its loss, whether it was finite and made) is known on the device first. There it decides, as a flag
that the optimizer multiplies with; the host reads it when it has to, on a GPU for many updates at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from instructgpt.data.batch import BatchStream
from instructgpt.objectives.lm import Loss
from instructgpt.runtime import Precision, Ranks
from instructgpt.training.averages import Average
from instructgpt.training.optimizer import Optimizer

FIRST_SCALE, GOOD_STEPS_TO_GROW = 2.0**12, 1000
"""float16's loss scale: where it begins, and after how many steps without an overflow it doubles."""


class Outcome(NamedTuple):
    """What came of an update, summed over micro-batches and ranks."""

    step: int
    total: float
    weight: float
    tokens: int
    gradient_norm: float
    """Of the mean's gradient, before clipping."""
    overflowed: bool
    """float16's scale was too large for the gradient, and was halved: that is to be expected now and then."""
    metrics: dict[str, float]

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.total) and math.isfinite(self.gradient_norm)


class Updates:
    """Makes updates one after the other, and says what came of them when it is asked."""

    def __init__(
        self, optimizer: Optimizer, average: Average, loss_fn: Callable[[Any], Loss], micro_batches: int, clip: float,
        device: torch.device, precision: Precision, ranks: Ranks,
    ):  # fmt: skip
        self._optimizer, self._average, self._loss_fn = optimizer, average, loss_fn
        self._micro_batches, self._clip = micro_batches, clip
        self._device, self._precision, self._ranks = device, precision, ranks
        # MPS has no float64, and is waited for anyway: its scalars are on the CPU.
        self._zero = torch.zeros((), dtype=torch.float64, device="cpu" if device.type == "mps" else device)
        self._scale = self._zero + 1.0
        self._good_steps = self._zero.clone()
        self._unread: list[tuple[int, list[str], Tensor]] = []

    @property
    def scale(self) -> tuple[float, int]:
        """float16's loss scale, and for how many steps it has held. To read it is to wait for the device."""
        return self._scale.item(), int(self._good_steps)

    @scale.setter
    def scale(self, value: tuple[float, int]) -> None:
        self._scale.fill_(value[0])
        self._good_steps.fill_(value[1])

    def make(self, batches: BatchStream, step: int, factor: float) -> None:
        """The update number `step` at `factor` times the peak learning rates; where it is not finite, it is none."""
        sums = self._accumulate(batches)
        values = self._ranks.sum(torch.stack(list(sums.values())))  # (sums,) float64
        total, weight = values[0], values[1]
        norm = self._scale_and_clip(weight)
        is_finite = total.isfinite() & norm.isfinite()
        is_good = (is_finite & (weight > 0)).float()
        overflowed = self._adapt_scale(total.isfinite(), is_finite) if self._precision.scale_loss else self._zero
        is_good = is_good.to(self._device)
        self._optimizer.step(factor, is_good)
        self._average.update(self._optimizer.masters, step, is_good)
        self._optimizer.zero_grad()
        self._unread.append((step, list(sums)[3:], torch.cat((values, torch.stack((norm, overflowed))))))

    def outcomes(self) -> list[Outcome]:
        """What came of the updates since the last call, in order. Waits for the device."""
        unread, self._unread = self._unread, []
        if not unread:
            return []
        steps, names, parts = zip(*unread)
        read = torch.cat(parts).cpu().split([len(part) for part in parts])  # one copy for all of them
        found = []
        for step, own_names, values in zip(steps, names, read):
            total, weight, tokens, *metrics, norm, overflowed = values.tolist()
            own_metrics = dict(zip(own_names, metrics))
            found.append(Outcome(step, total, weight, int(tokens), norm, bool(overflowed), own_metrics))
        return found

    def _accumulate(self, batches: BatchStream) -> dict[str, Tensor]:
        """Forward and backward over this rank's micro-batches: the sums of their losses ("total"), weights ("weight"),
        tokens ("tokens"; a batch that does not count them adds 0) and metrics, each by its name, without a graph.

        Every rank reads the same batches, by `next(batches)`: the i-th is that of rank i modulo their number. A batch
        that counts its tokens has them as `batch.tokens`. One whose loss hangs on no parameter has nothing to go back
        to.
        """
        sums: dict[str, Tensor] = {"total": self._zero, "weight": self._zero, "tokens": self._zero}
        for index in range(self._micro_batches * self._ranks.size):
            batch = next(batches)
            if index % self._ranks.size != self._ranks.rank:
                continue
            with self._precision.context(self._device):
                loss = self._loss_fn(batch)
            if loss.total.requires_grad:
                scaled = loss.total * self._scale.to(loss.total) if self._precision.scale_loss else loss.total
                scaled.backward()
                self._optimizer.gather_gradients()
            added = {"total": loss.total, "weight": loss.weight, "tokens": getattr(batch, "tokens", 0), **loss.metrics}
            for name, value in added.items():
                value = value.detach().to(self._zero) if isinstance(value, Tensor) else value
                sums[name] = sums.get(name, self._zero) + value
        return sums

    def _scale_and_clip(self, weight: Tensor) -> Tensor:
        """Turns gradients summed here into the mean's of all ranks, shortened. Returns the norm before clipping."""
        if self._ranks.size > 1:
            self._optimizer.fill_gradients()  # every rank takes part in every sum, even with nothing of its own to add
            self._ranks.sum_all(self._optimizer.gradients())
        gradients = self._optimizer.gradients()
        if not gradients:
            return self._zero
        divisor = torch.where(weight > 0, weight, 1.0) * self._scale
        norm = torch.nn.utils.get_total_norm(gradients).to(self._zero) / divisor
        shorten = (self._clip / (norm + 1e-6)).clamp(max=1.0) if self._clip else 1.0
        self._optimizer.scale_gradients(shorten / divisor)
        return norm * (weight > 0)

    def _adapt_scale(self, is_total_finite: Tensor, is_finite: Tensor) -> Tensor:
        """Halves float16's scale where the gradient alone overflowed, doubles it after many steps in which none did.

        Returns whether it did overflow, as a flag.
        """
        overflowed = is_total_finite & ~is_finite & (self._scale > 1)
        good_steps = torch.where(overflowed, 0.0, self._good_steps + is_finite)
        grows = good_steps >= GOOD_STEPS_TO_GROW
        self._good_steps.copy_(torch.where(grows, 0.0, good_steps))
        self._scale.mul_(torch.where(overflowed, 0.5, torch.where(grows, 2.0, 1.0)))
        return overflowed.to(self._zero)
