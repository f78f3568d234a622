"""Learning-rate schedules, as a multiplier of the peak rate."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["cosine", "linear", "constant", "wsd"]
"""How the learning rate goes on once it is warm, see `learning_rate_factor`."""


def learning_rate_factor(
    schedule: Schedule, step: int, progress: float, warmup_steps: int, warmed_up: float, final: float, cooldown: float
) -> float:
    """The factor for the update numbered `step` (from 0) at `progress` of the run: 1 at its end, more past it.

    Linear warm-up from 1/warmup_steps to 1 over `warmup_steps`, which end at progress `warmed_up`. From there on:
    `cosine` (Loshchilov & Hutter 2017) or `linear` from 1 to `final`; `constant` stays at 1; `wsd` (warmup-stable-
    decay, Hu et al. 2024) stays at 1 and falls linearly to `final` in the last `cooldown` share of the run, or in what
    is left of it. None of them jumps where the warm-up ends, or falls below `final`. Progress may be measured in steps
    or in time, whichever ends the run.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    begin = max(warmed_up, 1 - cooldown) if schedule == "wsd" else warmed_up
    fallen = min(max(progress - begin, 0.0) / max(1 - begin, 1e-9), 1.0)
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * fallen))
    return 1 - (1 - final) * fallen
