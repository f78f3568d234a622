from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.memory import MemoryConfig, measure


@pytest.mark.slow  # a process for each row
def test_a_table_of_what_saves_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "memory.json"
    shapes = ("minute:2",)
    assert measure(MemoryConfig("cpu", "float32", shapes, steps=1, rounds=1, json=str(file))) == 0
    document = json.loads(file.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == document
    rows = {row["name"].partition(": ")[2]: row for row in document["rows"]}
    assert all(abs(row["planned_off_by"]) < 0.1 for row in rows.values())
    assert rows["--checkpointing blocks"]["memory_ratio"] < rows["--checkpointing selective"]["memory_ratio"] < 1
    assert rows["--optimizer-state int8"]["memory_ratio"] < rows["--optimizer-state bfloat16"]["memory_ratio"] < 1
