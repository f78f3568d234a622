"""Learning-rate schedules, as a multiplier of the peak rate."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["cosine", "linear", "constant", "wsd"]


def learning_rate_factor(
    schedule: Schedule, step: int, progress: float, warmup_steps: int, final: float, cooldown: float
) -> float:
    """The factor in [final, 1] for the update numbered `step` (from 0) at `progress` in [0, 1] of the run.

    Linear warm-up over `warmup_steps`, then: `cosine` (Loshchilov & Hutter 2017) or `linear` from 1 to `final`;
    `constant` stays at 1; `wsd` (warmup-stable-decay, Hu et al. 2024) stays at 1 and falls linearly to `final` in the
    last `cooldown` share of the run. Progress may be measured in steps or in time, whichever ends the run.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(max(progress, 0.0), 1.0)
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "linear":
        return 1 - (1 - final) * progress
    return 1 - (1 - final) * max(0.0, progress - (1 - cooldown)) / max(cooldown, 1e-9)
