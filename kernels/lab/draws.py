"""Examples drawn from a spec's strategy by hypothesis, and the smallest one that fails like a given one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from kernels.lab.spec import Case

SHRINKING = 20.0
"""Seconds after which the smallest failure found so far is good enough."""


@dataclass(frozen=True)
class Drawn:
    """One thing to try."""

    case: Case
    layout: str
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class Draws:
    """The same ones each time."""

    cases: st.SearchStrategy[Case]
    layouts: Sequence[str]
    dtypes: tuple[str, ...]
    every_dtype: bool
    count: int
    seed: int

    def all(self) -> list[Drawn]:
        drawn: list[Drawn] = []
        self._run(drawn.append, (Phase.generate,))
        return drawn

    def smallest(self, failing: Drawn, try_it: Callable[[Drawn], None]) -> None:
        """Has `try_it` try smaller and smaller examples than `failing`, as long as it raises AssertionError."""
        end = time.monotonic() + SHRINKING
        is_reached = False

        def once_reached(drawn: Drawn) -> None:
            nonlocal is_reached
            is_reached |= drawn == failing
            if is_reached and time.monotonic() < end:
                try_it(drawn)

        # Flaky: it did not fail again, be it that time is over or that it fails by chance, as a race does.
        with contextlib.suppress(AssertionError, Flaky):
            self._run(once_reached, (Phase.generate, Phase.shrink))

    def _run(self, body: Callable[[Drawn], None], phases: tuple[Phase, ...]) -> None:
        settings = hypothesis.settings(
            max_examples=self.count,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            phases=phases,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        )

        @hypothesis.seed(self.seed)
        @settings
        @hypothesis.given(
            case=self.cases,
            layout=st.sampled_from(self.layouts),
            number=st.integers(0, 999),
            chosen=st.just(self.dtypes) if self.every_dtype else st.sampled_from([(name,) for name in self.dtypes]),
        )
        def drawing(case: Case, layout: str, number: int, chosen: Any) -> None:
            body(Drawn({"seed": number, **case}, layout, chosen))

        drawing()
