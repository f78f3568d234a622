from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.strict_json import to_json, write_json, write_json_lines

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def read_strictly(text: str) -> Any:
    """As a reader does that is not Python's: in UTF-8, and without NaN and Infinity."""
    return json.loads(text.encode("utf-8").decode("utf-8"), parse_constant=refuse)


@given(VALUES, st.sampled_from([None, 2]))
def test_whatever_is_written_is_json_and_says_the_same(value: Any, indent: int | None) -> None:
    def expected(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: expected(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [expected(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    assert read_strictly(to_json(value, indent)) == expected(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"loss": math.nan, "best": math.inf, "worst": [-math.inf]}, '{"loss": null, "best": null, "worst": [null]}'),
        ("红色 \ud83d", '"红色 \\ud83d"'),
        (np.float64("nan"), "null"), (np.float64(0.5), "0.5"), ({math.nan: 1}, '{"nan": 1}'),
        ((1, (2.0, "x")), '[1, [2.0, "x"]]'),
    ],
)  # fmt: skip
def test_examples(value: Any, text: str) -> None:
    assert to_json(value) == text
    read_strictly(to_json(value))


def test_what_has_no_form_is_refused() -> None:
    with pytest.raises(TypeError):
        to_json({"path": Path("x")})


def test_files(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": math.inf})
    write_json_lines(tmp_path / "b.jsonl", ({"i": i, "x": 1e400} for i in range(2)))
    assert read_strictly((tmp_path / "a.json").read_text()) == {"x": None}
    assert [read_strictly(line) for line in (tmp_path / "b.jsonl").open()] == [{"i": i, "x": None} for i in range(2)]
