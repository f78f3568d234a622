import json
import math

import pytest
import torch

from instructgpt.runtime import Precision
from instructgpt.training.metrics import ConsoleLog, JsonLines, Metrics, measure_peak_flops, open_tracker, read_metrics
from instructgpt.training.plot import plot_curves


def test_json_lines_survive_a_cut_line_and_a_resumption(tmp_path):
    file = tmp_path / "metrics.jsonl"
    log = JsonLines(file)
    for step in (10, 20, 30):
        log.write({"step": step, "loss": math.nan if step == 20 else 1.0})
    log.close()
    with file.open("a") as f:
        f.write('{"step": 40, "lo')  # a kill in the middle of a line
    assert [r["step"] for r in read_metrics(file)] == [10, 20, 30]
    assert read_metrics(file)[1]["loss"] is None
    log = JsonLines(file, from_step=20)
    log.write({"step": 30, "loss": 2.0})
    log.close()
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [10, 20, 30]
    assert read_metrics(file)[-1]["loss"] == 2.0


def test_what_a_finished_run_says_again_when_it_is_resumed_is_not_written_twice(tmp_path):
    file = tmp_path / "metrics.jsonl"
    records = [{"step": 40, "loss": 1.0}, {"step": 40, "val_loss": 2.0}]
    for from_step in (0, 40, 40):
        log = JsonLines(file, from_step)
        for record in records[from_step > 0 :]:
            log.write(record)
        log.close()
    assert read_metrics(file) == records


def test_a_new_run_starts_a_new_file(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 5}\n')
    JsonLines(file).close()
    assert read_metrics(file) == []


def test_plain_lines_where_there_is_no_terminal(capsys):
    log = ConsoleLog("sft", lambda r: r["step"] / 10, flops_per_token=1e6, peak_flops=1e10)
    log.write({"step": 5, "loss": 2.0, "tokens_per_second": 1000.0, "seconds": 60.0})
    log.write({"step": 5, "val_loss": 1.5})
    log.write({"step": 6, "skipped": 1.0})
    log.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "sft step 5 (50%)  loss 2.000  1,000 tokens/s  MFU 10%  1:00 left"
    assert lines[1] == "sft step 5  val_loss 1.5"
    assert lines[2] == "sft step 6: not finite, skipped"


@pytest.mark.parametrize(("seconds", "left"), [(179.7, "3:00"), (59.6, "1:00"), (60.4, "1:00"), (8.9, "0:09")])
def test_what_is_left_is_rounded_to_whole_seconds(seconds: float, left: str, capsys):
    log = ConsoleLog("sft", lambda r: 0.5, flops_per_token=1e6, peak_flops=1e10)
    log.write({"step": 1, "loss": 2.0, "seconds": seconds})
    log.close()
    assert capsys.readouterr().err.splitlines()[0].endswith(f"  {left} left")


@pytest.mark.parametrize(
    ("expected", "told"),
    [
        (0.0, "sft: about 8 minutes at this pace"),
        (4.5, "sft: about 8 minutes at this pace"),
        (3.0, "sft: about 8 minutes at this pace instead of 3; a lower --max-steps, or --max-minutes, shortens it"),
    ],
)
def test_the_first_steps_foretell_the_time(expected, told, capsys):
    log = ConsoleLog("sft", lambda r: r["step"] / 2400, 1e6, 1e10, expected_minutes=expected)
    for step in (4, 8, 12, 16):  # 0.2 s each; the first four take three times as long, which is no pace
        log.write({"step": step, "loss": 2.0, "seconds": 0.2 * step if step > 4 else 2.4})
    assert [line for line in capsys.readouterr().err.splitlines() if "pace" in line] == [told]


def test_a_resumed_run_foretells_what_is_left_of_it(capsys):
    log = ConsoleLog("sft", lambda r: r["step"] / 100, 1e6, 1e10, {"step": 50, "seconds": 7000.0})
    log.write({"step": 60, "loss": 2.0, "seconds": 7024.0})
    assert "sft: about 2 minutes at this pace" in capsys.readouterr().err.splitlines()


def test_short_runs_foretell_nothing(capsys):
    log = ConsoleLog("sft", lambda r: r["step"] / 100, 1e6, 1e10)
    log.write({"step": 10, "loss": 2.0, "seconds": 1.0})
    assert "pace" not in capsys.readouterr().err


def test_tensorboard_gets_the_records(tmp_path):
    metrics = Metrics(open_tracker("tensorboard", tmp_path))
    metrics({"step": 1, "loss": 2.0})
    metrics.close()
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_peak_is_plausible_and_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    assert 1e8 < measure_peak_flops(torch.device("cpu"), Precision(torch.float32, None, False), seconds=0.02) < 1e16
    assert torch.equal(before, torch.get_rng_state())


def test_curves(tmp_path):
    log = JsonLines(tmp_path / "metrics.jsonl")
    for step in range(3):
        log.write({"step": step, "loss": 3.0 - step, "learning_rate": 0.1, "gradient_norm": 1.0})
    log.write({"step": 3, "val_loss": 1.0})
    log.close()
    assert plot_curves({"pretrain": tmp_path / "metrics.jsonl"}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not plot_curves({"none": tmp_path / "missing.jsonl"}, tmp_path / "no.png")
    assert not (tmp_path / "no.png").exists()
