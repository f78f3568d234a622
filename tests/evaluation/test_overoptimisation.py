"""The best of n from one pool, against counting every subset; and what is written about it."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.evaluation.overoptimisation import (
    Point,
    best_of_n_curve,
    best_of_n_kl,
    best_of_n_means,
    parting,
    trajectory,
    write_overoptimisation,
)


@given(data=st.data(), pool=st.integers(1, 6))
def test_the_expectation_is_the_mean_over_all_subsets(data: st.DataObject, pool: int) -> None:
    n = data.draw(st.integers(1, pool))
    scores = data.draw(st.lists(st.integers(0, 3), min_size=pool, max_size=pool))  # few values: ties are common
    measured = data.draw(st.lists(st.integers(-5, 5), min_size=pool, max_size=pool))
    expected = []
    for subset in itertools.combinations(range(pool), n):
        best = max(scores[i] for i in subset)
        ties = [measured[i] for i in subset if scores[i] == best]
        expected.append(sum(ties) / len(ties))
    result = best_of_n_means(np.array([scores], dtype=float), np.array([measured], dtype=float), n)
    assert result[0] == pytest.approx(sum(expected) / len(expected))


def test_more_than_the_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="best of 3 from a pool of 2"):
        best_of_n_means(np.zeros((1, 2)), np.zeros((1, 2)), 3)


def test_kl_by_hand() -> None:
    assert best_of_n_kl(1) == 0 and best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75)


def test_a_reward_that_is_right_up_to_a_point_shows_where_the_rewards_part() -> None:
    rewards = np.tile(np.arange(8.0), (5, 1))
    true = np.where(rewards < 6, rewards, 0.0)  # the two answers it likes best are bad
    points = best_of_n_curve(rewards, true, most=64)
    assert [point.n for point in points] == [1, 2, 4, 8]
    assert points[0].reward == pytest.approx(3.5) and points[-1].reward == 7 and points[-1].true_reward == 0
    sentence = parting(points)
    assert "falls to 0.000" in sentence and "to 7.000" in sentence
    assert "do not part" in parting(best_of_n_curve(rewards, rewards))


def test_the_trajectory_is_the_validations_of_a_run(tmp_path: Path) -> None:
    records = [{"step": 1, "reward": 3.0}, {"step": 2, "val_kl": 0.5, "val_reward": 1.0, "val_true_reward": 0.25}]
    points = trajectory(records)
    assert points == [Point(0.5, 1.0, 0.25)]
    verdicts = write_overoptimisation({"PPO": points, "best of n": best_of_n_curve(np.eye(4), np.eye(4))}, tmp_path)
    written = json.loads((tmp_path / "overoptimisation.json").read_text())
    assert written["PPO"]["points"][0]["kl"] == 0.5 and written["PPO"]["points"][0]["true_half_width"] is None
    assert written["best of n"]["parting"] == verdicts["best of n"]
    assert (tmp_path / "overoptimisation.png").stat().st_size > 10_000
