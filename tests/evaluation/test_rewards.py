"""Held-out pairs: accuracy, kinds of fault, lengths, calibration."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from instructgpt.data.comparisons import Ranked, collate_comparisons
from instructgpt.data.tokens import Tokens
from instructgpt.errors import UserError
from instructgpt.evaluation.rewards import PairReport, compare_pairs


def report(margins: list[float], kinds: list[str] | None = None, lengths: list[int] | None = None) -> PairReport:
    n = len(margins)
    return PairReport(np.array(margins), kinds or ["a"] * n, np.array(lengths or [0] * n))


def test_accuracy_by_hand_with_a_tie_as_half() -> None:
    found = report([1.0, -1.0, 0.0, 2.0], ["a", "b", "b", "a"], [3, -2, -1, 0])
    assert found.accuracy.mean == 0.625
    assert {kind: i.mean for kind, i in found.by_kind.items()} == {"a": 1.0, "b": 0.25}
    assert {side: i.mean for side, i in found.by_length.items()} == {
        "the better is longer": 1.0,
        "the better is shorter": 0.25,
    }


def test_a_model_that_is_right_as_often_as_it_is_sure_is_calibrated() -> None:
    # Of 100 pairs that it gives 75%, 75 are right.
    margin = math.log(3)
    found = report([margin] * 75 + [-margin] * 25)
    assert found.calibration_error == pytest.approx(0) and len(found.bins) == 1
    assert found.bins[0].confidence == pytest.approx(0.75) and found.bins[0].accuracy.mean == 0.75


def test_an_over_sure_model_is_not() -> None:
    found = report([10.0] * 60 + [-10.0] * 40)
    assert found.calibration_error == pytest.approx(0.4, abs=1e-3)


def test_bins_hold_every_pair_once() -> None:
    margins = np.linspace(-9, 9, 101).tolist()
    assert sum(each.accuracy.n for each in report(margins).bins) == 101
    figures = report(margins).to_json()
    assert figures["n"] == 101 and sum(each["n"] for each in figures["reliability"]) == 101


def test_text_and_plot(tmp_path: Path) -> None:
    found = report([1.0, -1.0, 0.3], ["wrong_answer", "rambling", "rambling"], [1, -1, 2])
    assert "wrong_answer" in found.plain() and "calibration" in found.plain()
    pytest.importorskip("matplotlib")
    assert found.plot(tmp_path / "calibration.png") and (tmp_path / "calibration.png").stat().st_size > 1000


def test_rewards_are_compared_pair_by_pair() -> None:
    def tokens(n: int) -> Tokens:
        return Tokens(np.arange(n, dtype=np.int32), np.arange(n) >= 1)

    batch = collate_comparisons([Ranked((tokens(3), tokens(5))), Ranked((tokens(4), tokens(2), tokens(6)))], 16)
    found = compare_pairs(lambda b: b.lengths.float(), [batch], ["x"] + ["y"] * 3, torch.device("cpu"))
    assert found.margins.tolist() == [-2, 2, -2, -4] == found.length_differences.tolist()
    with pytest.raises(ValueError, match="1 kinds for 4 pairs"):
        compare_pairs(lambda b: b.lengths.float(), [batch], ["x"], torch.device("cpu"))
    with pytest.raises(UserError, match="no pair"):
        compare_pairs(lambda b: b.lengths.float(), [], [], torch.device("cpu"))
