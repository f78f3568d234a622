from __future__ import annotations

import pytest

from benchmarks.lora import KNOWN, NEW, VARIANTS, best_rate, chosen, runs, table
from instructgpt import world
from instructgpt.errors import UserError
from instructgpt.stages.adapting import AdapterFlags


def test_new_families_are_none_that_the_base_knows() -> None:
    assert set(NEW) | set(KNOWN) == set(world.FAMILIES) and not set(NEW) & set(KNOWN)


def test_every_variant_can_be_made_and_rates_come_first() -> None:
    assert all(AdapterFlags(**variant.adapter) for variant in VARIANTS)
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS)
    order = [variant.part for variant, _ in runs(chosen(()), 2)]
    assert order == sorted(order, key=("rates", "ranks", "places", "kinds", "grpo").index)
    with pytest.raises(UserError, match="did you mean 'ranks'"):
        chosen(("rank",))


def test_the_best_rate_is_by_validation_and_differences_are_within_a_seed() -> None:
    def scores(validated: float, *learnt: float) -> list[dict[str, float]]:
        rest = {"kept": 0.5, "rate": 1e-3, "trained_share": 1.0, "minutes": 1.0, "tokens_per_second": 1.0}
        return [{"validated": validated, "learnt": each, **rest} for each in learnt]

    found = {
        "whole, rate 0.001": scores(0.9, 0.7, 0.9),
        "whole, rate 0.003": scores(0.8, 0.9, 0.9),
        "rank 16, rate 0.01": scores(0.6, 0.5, 0.8),
    }
    assert best_rate(found, "whole") == 0.001 and best_rate(found, "lora") == 0.01
    row = next(row for row in table(found, {"kept": 0.6}) if row["variant"] == "rank 16, rate 0.01")
    assert row["from_whole"] == pytest.approx(-0.15) and row["from_whole_interval"][0] < -0.2 and row["seeds"] == 2
