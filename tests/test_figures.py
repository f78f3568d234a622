from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.figures import shown, tidy, write_json


@pytest.mark.parametrize(
    ("value", "kept", "text"),
    [
        (3e-08, 0.0, "0.0"),
        (-2e-17, 0.0, "0.0"),
        (17.69616287772074, 17.696163, "17.7"),
        (0.7593360995850622, 0.759336, "0.7593"),
        (0.00012345678, 0.000123, "0.0001"),
        (0.000027, 0.0, "0.0"),
        (-0.00007, -0.0001, "-0.0001"),
        (999.96, 999.96, "1000.0"),
        (36789.4, 36789.4, "36,789"),
        (4.5e16, 4.5e16, "over 10^15"),
        (100.0, 100.0, "100.0"),
        (12000, 12000, "12,000"),
        (True, True, "1"),
        (math.inf, None, "inf"),
        (math.nan, None, "nan"),
    ],
)
def test_a_figure_is_rounded_and_never_in_powers_of_ten(value: float, kept: float | None, text: str) -> None:
    assert repr(tidy(value)) == repr(kept) and shown(value) == text


@given(st.floats(-1e15, 1e15))
def test_no_figure_is_written_in_powers_of_ten(value: float) -> None:
    assert "e" not in json.dumps(tidy(value)) and abs(tidy(value) - value) <= 5.1e-5


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_no_figure_is_shown_in_scientific_notation(value: float) -> None:
    assert "e" not in shown(value).removeprefix("over ").removeprefix("-over ")


def test_nested_figures_are_written_as_json_that_any_reader_takes(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"bleu": 3e-08, "interval": (math.nan, 1 / 3), "n": {"loss": math.inf, "名": "x"}})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"bleu": 0.0, "interval": [None, 0.333333], "n": {"loss": None, "名": "x"}}
    assert "NaN" not in text and "Infinity" not in text and "名" in text
