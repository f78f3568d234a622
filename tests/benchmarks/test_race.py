"""Our records of the race: measured into a file that keeps what is not measured anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import race as benchmark
from benchmarks.race import RaceBenchmarkConfig, measure
from instructgpt.course.race.entry import Rules
from instructgpt.course.race.judge import Finish


def test_records_are_added_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"change": "x", "updates": 1, "tokens": 1, "parameters": 1, "vocab_size": 1, "cpu_seconds": 1.0,
            "stopped_by": ""}  # fmt: skip
    asked: list[tuple[str, int]] = []

    def race(file: Path, rules: Rules, seed: int) -> Finish:
        assert file.is_file()
        asked.append((file.stem, seed))
        return Finish(seed, told, [1.0, 2.0 + len(asked)], [1, 2])

    monkeypatch.setattr(benchmark, "race", race)
    path = tmp_path / "race.json"
    for names in (("muon",), ("gpt2", "muon")):
        assert measure(RaceBenchmarkConfig(records=names, seeds=2, json=str(path))) == 0
    assert asked == [("muon", 0), ("muon", 1), ("gpt2", 0), ("gpt2", 1), ("muon", 0), ("muon", 1)]
    found = json.loads(path.read_text())
    assert [one["entry"] for one in found["records"]] == ["gpt2", "muon"] and found["device"] == "cpu"
    assert found["records"][1]["bits_per_byte"] == pytest.approx((1 + 2 + 5.5) / 3)
    assert measure(RaceBenchmarkConfig(records=("gpt2",), seeds=1, minutes=0.5, json=str(path))) == 0  # only tried
    found = json.loads(path.read_text())["records"]
    assert [(one["entry"], one["minutes"]) for one in found] == [("gpt2", 5.0), ("muon", 5.0), ("gpt2", 0.5)]
