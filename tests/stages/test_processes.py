"""Jobs in processes: order, failures, what is left behind."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from instructgpt.errors import UserError
from instructgpt.stages import processes
from instructgpt.stages.processes import Job, run_jobs


def write(path: str, text: str) -> None:
    print(f"writing {text}\n{text}: about 5 minutes at this pace")
    Path(path).write_text(f"{text} at {time.monotonic()}")


def fail(path: str) -> None:
    raise UserError("is no good; make it better", path)


def linger(path: str) -> None:
    time.sleep(60)
    Path(path).write_text("too late")


def test_jobs_run_in_order_and_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs = tmp_path / "logs"
    first = Job("first", write, (str(tmp_path / "a"), "a"), logs / "a.txt", needs=("done before",))
    second = Job("second", write, (str(tmp_path / "b"), "b"), logs / "b.txt", needs=("first",))
    logs.mkdir()
    first.log.write_text("a: about 9 minutes at this pace\n")
    run_jobs([second, first], workers=2)
    a, b = ((tmp_path / name).read_text().split(" at ") for name in "ab")
    assert float(a[1]) < float(b[1])
    assert (logs / "b.txt").read_text().startswith("writing b\n")
    lines = [line.strip().split("  ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "first begins" and lines[2].startswith("first done in") and lines[3] == "second begins"
    assert lines[1] == "first: about 5 minutes at this pace", "by the job's name, and never an earlier log's"


def test_a_failure_is_told_in_one_line_and_stops_the_others(tmp_path: Path) -> None:
    jobs = [
        Job("slow", linger, (str(tmp_path / "slow"),), tmp_path / "slow.txt"),
        Job("bad", fail, ("some.json",), tmp_path / "bad.txt"),
        Job("after", write, (str(tmp_path / "after"), "x"), tmp_path / "after.txt", needs=("bad",)),
    ]
    began = time.monotonic()
    with pytest.raises(UserError, match=r"bad\.txt: bad failed: some\.json: is no good; make it better"):
        run_jobs(jobs, workers=2)
    assert time.monotonic() - began < 30
    assert not (tmp_path / "slow").exists() and not (tmp_path / "after").exists()


def test_threads_follow_from_the_plan_and_not_from_what_happens_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "cores", lambda: 8)

    def job(name: str, *needs: str) -> Job:
        return Job(name, write, (), Path(name), needs)

    jobs = [job("base"), job("sft", "base"), job("a", "sft"), job("b", "sft"), job("b2", "b"), job("c", "gone", "sft")]
    threads = {each.name: processes.threads_of(each, jobs, workers=4) for each in jobs}
    assert threads == {"base": 8, "sft": 8, "a": 2, "b": 2, "b2": 2, "c": 2}
    assert processes.threads_of(jobs[0], jobs[:1], workers=4) == 8
    many = [job(str(i)) for i in range(20)]
    assert {processes.threads_of(each, many, workers=12) for each in many} == {1}


def test_the_clock_never_shows_sixty_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0 + 839.7)
    processes._say(100.0, "dpo begins")
    assert capsys.readouterr().out == " 13:59  dpo begins\n"
