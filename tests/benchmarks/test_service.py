from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.service import Outcome, ServiceConfig, measure, shown, summary


def test_what_became_of_the_requests_is_counted_and_timed():
    outcomes = [Outcome("answered", 0.1 * i, 1.0 * i, [0.01] * 3, 4) for i in range(1, 11)]
    found = summary(2.0, [*outcomes, Outcome("refused", whole=0.02), Outcome("lost", why="cut")], seconds=5)
    assert (found["answered"], found["refused"], found["lost"], found["why_lost"]) == (10, 1, 1, ["cut"])
    assert found["tokens_per_second"] == 8 and found["first_p50"] == pytest.approx(0.6)
    assert found["whole_p99"] == 10 and found["between_p50"] == 0.01 and found["refusal_p50"] == 0.02
    assert "answered    10  refused     1  lost     1  first token     600 ms" in shown(found)
    nothing = summary(1.0, [Outcome("lost")], seconds=1)
    assert nothing["first_p50"] is None and "first token       - ms" in shown(nothing)


@pytest.mark.slow
def test_rates_rise_until_some_are_refused_and_nothing_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("openai", reason="OpenAI's client is in the extra `dev`")
    file = tmp_path / "service.json"
    config = ServiceConfig(first_rate=10, seconds=1.5, max_rows=2, max_queue=2, max_tokens=32, json=str(file))
    assert measure(config) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == json.loads(file.read_text()) and last["lost"] == 0
    assert last["rates"][-1]["refused"] > 0 and last["rates"][0]["answered"] > 0
