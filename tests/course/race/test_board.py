"""Results: one number of several seeds, kept in a file, shown the best first."""

from __future__ import annotations

from pathlib import Path

import pytest

from instructgpt.course.race import board
from instructgpt.course.race.entry import RECORDS, Rules
from instructgpt.course.race.judge import Finish
from instructgpt.errors import UserError
from instructgpt.strict_json import to_json

TOLD = {"change": "a try", "updates": 9, "tokens": 99, "parameters": 2_500_000, "vocab_size": 1500, "cpu_seconds": 90.0,
        "stopped_by": ""}  # fmt: skip


def finish(seed: int, bits: list[float]) -> Finish:
    return Finish(seed, TOLD, bits, [10, 20, 30])


def test_several_seeds_are_one_number_with_two_intervals() -> None:
    found = board.result("mine", Rules(), [finish(0, [8.0, 18.0, 34.0]), finish(1, [12.0, 22.0, 38.0])])
    assert found["bits_per_byte"] == pytest.approx(132 / 120)
    assert found["seeds"] == pytest.approx({"0": 1.0, "1": 1.2})
    low, high = found["over_seeds"]
    assert (high - low) / 2 == pytest.approx(12.706 * 0.1, rel=1e-3)
    low, high = found["interval"]
    assert low < 1.1 < high
    alone = board.result("mine", Rules(), [finish(0, [8.0, 18.0, 34.0])])
    assert alone["over_seeds"] is None and board.rows([alone])[0][3] == ""


def test_a_result_takes_the_place_of_the_entrys_older_one(tmp_path: Path) -> None:
    for bits in ([9.0, 20.0, 31.0], [5.0, 10.0, 16.0]):
        board.keep(tmp_path, board.result("mine", Rules(), [finish(0, bits)]))
    board.keep(tmp_path, board.result("mine", Rules(minutes=1), [finish(0, bits)]))
    board.keep(tmp_path, board.result("other", Rules(), [finish(0, [1.0, 2.0, 3.5])]))
    assert [(one["entry"], one["minutes"]) for one in board.read(tmp_path)] == [("mine", 5), ("mine", 1), ("other", 5)]
    assert [row[0] for row in board.rows(board.read(tmp_path))] == ["other", "mine", "mine"]


RESULT = board.result("mine", Rules(), [finish(0, [9.0, 20.0, 31.0])])


@pytest.mark.parametrize(
    "text",
    [
        "{", "3", '[{"entry": "mine"}]', "[3]", '{"a": 1}',
        *(to_json([RESULT | bad]) for bad in ({"entry": 3}, {"minutes": "5"}, {"bits_per_byte": None}, {"seeds": 1})),
        to_json([{key: value for key, value in RESULT.items() if key != "minutes"}]),
    ],
)  # fmt: skip
def test_a_broken_file_is_told_and_kept(text: str, tmp_path: Path) -> None:
    (tmp_path / board.RESULTS).write_text(text)
    with pytest.raises(UserError, match=r"results\.json: holds no results of races"):
        board.keep(tmp_path, RESULT)
    assert (tmp_path / board.RESULTS).read_text() == text


def test_our_records_are_those_that_were_measured() -> None:
    assert {one["entry"] for one in board.ours()} <= set(RECORDS)
    assert all(one["flops"] == 2e13 and one["documents"] == 256 for one in board.ours())
