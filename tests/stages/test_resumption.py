"""--resume: what may change meanwhile, what may not, and what is said of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from instructgpt.flags import run_main
from instructgpt.stages import main, resumption
from instructgpt.stages.resumption import inputs
from instructgpt.stages.sft import SFTConfig
from instructgpt.training.checkpoint import load_tensors, save_tensors
from instructgpt.training.metrics import read_metrics

SMALL = "--context 64 --layers 1 --width 32 --heads 2 --rows 2 --max-steps 2 --val-rows 4 --device cpu --dtype float32"
PAIRS = [{"instruction": f"How many, {i}?", "output": f"{i % 7} birds"} for i in range(30)]
TUNING = "--rows 2 --val-share 0.2 --device cpu --dtype float32 --warmup-steps 1 --schedule linear".split()


def stage(*argv: object) -> int:
    return run_main(lambda: main([str(word) for word in argv]))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "d.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS), encoding="utf-8")
    return file


@pytest.fixture
def tune(runs: Path, data: Path, tmp_path: Path) -> Callable[..., int]:
    """`sft` on `data` into tmp_path/o, with these further flags; its exit code."""
    return lambda *flags: stage(
        "sft", "--data", data, "--init", runs / "pretrain", "--out", tmp_path / "o", *TUNING, *flags
    )


def test_a_longer_end_is_said_with_what_it_does_to_the_learning_rate(
    tune: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune("--max-steps", 4) == 0
    assert "was to end" not in capsys.readouterr().out
    assert tune("--max-steps", 10, "--resume", "--log-every", 1) == 0
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "was to end" in line]
    # After a step of warm-up, 6 of 9 are left of the new run and none of the old one.
    assert "after 4 updates, and now ends after 10 updates" in said and "0.667 of its peak instead of 0 " in said
    records = [r for r in read_metrics(tmp_path / "o" / "metrics.jsonl") if "learning_rate" in r]
    assert [r["step"] for r in records] == [4, 5, 6, 7, 8, 9, 10]
    assert tune("--max-steps", 10, "--resume") == 0
    assert "was to end" not in capsys.readouterr().out, "the same end as before"


def test_how_closely_a_run_is_watched_may_change(tune: Callable[..., int], tmp_path: Path) -> None:
    assert tune("--max-steps", 2, "--eval-every", 2) == 0
    free = "--log-every 1 --save-every 1 --eval-every 1 --patience 5 --max-bad-steps 2 --max-minutes 5"
    assert tune("--max-steps", 4, "--resume", *free.split()) == 0
    losses = [r["step"] for r in read_metrics(tmp_path / "o" / "metrics.jsonl") if "val_loss" in r]
    assert losses == [2, 3, 4]
    assert tune("--max-steps", 4, "--resume", "--learning-rate", 0.5) == 2, "what decides what is learnt may not"


@pytest.mark.parametrize("change", ["appended", "one letter", "another order"])
def test_data_that_have_changed_are_refused(
    change: str, tune: Callable[..., int], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune("--max-steps", 2) == 0
    times, text = data.stat(), data.read_text()
    model = (tmp_path / "o" / "model.safetensors").read_bytes()
    changed = {
        "appended": text + '{"instruction": "x", "output": "y"}\n',
        "one letter": text.replace("3 birds", "4 birds", 1),
        "another order": "".join(sorted(text.splitlines(keepends=True), reverse=True)),
    }
    data.write_text(changed[change])
    os.utime(data, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copy that keeps its times would have them
    capsys.readouterr()
    assert tune("--max-steps", 4, "--resume") == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"error: {data}: has changed since the run") and "--overwrite" in message
    assert (tmp_path / "o" / "model.safetensors").read_bytes() == model
    data.write_text(text)  # written anew, with another time: the same data
    assert tune("--max-steps", 4, "--resume") == 0


def test_a_text_and_a_start_that_have_changed_are_refused(
    runs: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    text, base, tokenizer = tmp_path / "t.txt", tmp_path / "base", tmp_path / "tokenizer"
    shutil.copy(runs / "text.txt", text)
    shutil.copytree(runs / "tokenizer", tokenizer)
    arguments = ["pretrain", "--text", text, "--tokenizer", tokenizer, "--out", base, *SMALL.split()]
    assert stage(*arguments) == 0
    text.write_text(text.read_text().replace("cat number 7 ", "dog number 7 "))
    assert str(text) in refused(*arguments, "--resume")
    more = ["pretrain", "--text", "world", "--init", base, "--out", tmp_path / "o", "--device", "cpu", "--rows", "2"]
    assert stage(*more, "--max-steps", 1, "--val-rows", 2) == 0
    tensors, _ = load_tensors(base / "model.safetensors")
    save_tensors(base / "model.safetensors", {name: tensor + 0.01 for name, tensor in tensors.items()})
    message = refused(*more, "--max-steps", 2, "--val-rows", 2, "--resume")
    assert "model.safetensors: has changed since" in message


def test_digests_of_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name: tmp_path / name for name in ("a.en", "b.fr", "big.txt", "f.py")}
    for file in files.values():
        file.write_bytes(bytes(range(256)) * 16)
    os.mkfifo(tmp_path / "pipe")
    config = SFTConfig(data=(f"{files['a.en']}+{files['b.fr']}", str(tmp_path / "pipe"), "world"))
    assert list(inputs(config)) == [str(files["a.en"]), str(files["b.fr"])], "a pipe can be read only once"
    assert set(resumption._files(f"{files['f.py']}:score")) == {files["f.py"]}
    monkeypatch.setattr(resumption, "_READ_WHOLE", 1000)
    monkeypatch.setattr(resumption, "_SAMPLE", 8)
    monkeypatch.setattr(resumption, "_SAMPLES", 3)
    digests = {resumption._digest(files["big.txt"])}
    for place in (0, 2044, 4095):  # its beginning, its middle, its end
        changed = bytearray(bytes(range(256)) * 16)
        changed[place] ^= 1
        files["big.txt"].write_bytes(changed)
        digests.add(resumption._digest(files["big.txt"]))
    files["big.txt"].write_bytes(bytes(range(256)) * 16 + b"x")
    assert len(digests | {resumption._digest(files["big.txt"])}) == 5


def test_eval_json_is_never_of_other_weights_than_those_saved(
    tune: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished run that is gone on with, and killed: its weights are new ones, which nobody has measured."""
    report = tmp_path / "o" / "eval.json"
    assert tune("--max-steps", 2) == 0 and report.exists()
    monkeypatch.setattr("instructgpt.stages.common.plot_curves", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert tune("--max-steps", 4, "--resume") == 130
    assert not report.exists()


def test_patience_reports_the_weights_that_it_keeps(tune: Callable[..., int], tmp_path: Path) -> None:
    flags = (
        "--max-steps 60 --learning-rate 0.5 --muon-learning-rate 0.5 --eval-every 2 --patience 2 --schedule constant"
    )
    assert tune(*flags.split()) == 0
    report = json.loads((tmp_path / "o" / "eval.json").read_text())
    measured = {r["step"]: r["val_loss"] for r in read_metrics(tmp_path / "o" / "metrics.jsonl") if "val_loss" in r}
    best = min(measured.values())
    assert report["val_loss"] == pytest.approx(best, abs=1e-6) and measured[report["weights_of_step"]] == best
    assert report["steps"] > report["weights_of_step"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--max-steps 3 --warmup-steps 6", "after 3 updates, within its warm-up of 6 (--warmup-steps)"),
        ("--max-steps 3 --warmup-steps 6", "the learning rate only rises, to 50% of its peak"),
        ("--max-steps 3 --warmup-steps 3", "to 100% of its peak"),
        ("--max-steps 0 --max-minutes 0.0001 --warmup-steps 1000", "within its warm-up of 1000"),
        ("--max-steps 4 --warmup-steps 3", ""),
    ],
)  # fmt: skip
def test_a_warmup_that_outlasts_the_run_is_told(
    flags: str, told: str, tune: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(*flags.split()) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "warm-up" in line]
    assert told in "".join(lines) and len(lines) == bool(told)


def test_patience_that_would_never_count_is_refused(runs: Path, data: Path, refused: Callable[..., str]) -> None:
    out = data.parent / "o"
    arguments = ("sft", "--data", data, "--init", runs / "pretrain", "--out", out, *TUNING, "--patience", 2)
    assert "set --eval-every" in refused(*arguments, "--eval-every", 0)
    assert "hold some data out" in refused(*arguments, "--eval-every", 1, "--val-share", 0)
    assert not (out / "config.json").exists()
