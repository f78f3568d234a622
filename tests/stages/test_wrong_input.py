"""Every wrong input that a user is likely to give: one clear line, exit code 2, nothing lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import instructgpt.atomic
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.checkpoint import RunDirectory, load

Refused = Callable[..., str]
SMALL = "--context 64 --layers 1 --width 32 --heads 2 --rows 2 --max-steps 2 --val-rows 4 --device cpu --dtype float32"
SMALL_SFT = "--rows 2 --max-steps 2 --val-examples 8 --device cpu --dtype float32".split()

GOOD = '{"instruction": "Say hello.", "output": "Hello."}\n'


@pytest.fixture
def sft(refused: Refused, runs: Path, tmp_path: Path) -> Callable[..., str]:
    """`sft` on a file of this content, which must be refused; the complaint without the folder."""

    def run(content: bytes | str, name: str = "data.jsonl", *flags: object) -> str:
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        message = refused(
            "sft", "--data", file, "--init", runs / "pretrain", "--out", tmp_path / "o", *SMALL_SFT, *flags
        )
        assert not (tmp_path / "o" / "config.json").exists(), "a refused run leaves nothing that looks like one"
        return message.replace(f"{tmp_path}/", "")

    return run


def test_missing_file(refused: Refused, runs: Path, tmp_path: Path) -> None:
    message = refused("sft", "--data", tmp_path / "no.json", "--init", runs / "pretrain", "--out", tmp_path / "o")
    assert "no.json" in message and "no such file" in message


@pytest.mark.parametrize(
    ("content", "flags", "complaint"),
    [
        (None, [], "no such file"),
        ('{"a": 1}\n', [], "d.jsonl:1: "),
        (GOOD, ["--weights", 1, 2], "--weights has 2 values for 1 source"),
        (GOOD, ["--prompt", "{instruction}", "--answer", "{outptu}"], "outptu"),
    ],
)
def test_a_pipeline_is_refused_before_it_trains(
    refused: Refused, tmp_path: Path, content: str | None, flags: list[object], complaint: str
) -> None:
    if content is not None:
        (tmp_path / "d.jsonl").write_text(content)
    message = refused("pipeline", "--data", tmp_path / "d.jsonl", *flags, "--out", tmp_path / "o")
    assert complaint in message
    assert not (tmp_path / "o").exists()


def test_missing_text_file(refused: Refused, tmp_path: Path) -> None:
    assert "no.txt" in refused("tokenizer", "--text", tmp_path / "no.txt", "--out", tmp_path / "o")


def test_empty_file(sft: Callable[..., str]) -> None:
    assert "data.jsonl" in (message := sft("")) and "empty" in message


def test_broken_json_names_its_line(sft: Callable[..., str]) -> None:
    assert "data.jsonl:2: " in sft(GOOD + '{"instruction": "x", "output"\n' + GOOD)


def test_record_without_an_answer(sft: Callable[..., str]) -> None:
    assert "data.jsonl:1: " in (message := sft('{"instruction": "Say hello."}\n')) and "answer" in message


def test_record_without_an_answer_among_good_ones_in_strict_mode(sft: Callable[..., str]) -> None:
    assert "data.jsonl:2: " in sft(GOOD + '{"instruction": "Say hello."}\n', "data.jsonl", "--strict")


@pytest.mark.parametrize(("value", "kind"), [("null", "null"), ("[1, 2]", "list")])
def test_null_or_list_where_text_should_be(sft: Callable[..., str], value: str, kind: str) -> None:
    message = sft(f'{{"instruction": {value}, "output": "Hello."}}\n')
    assert "data.jsonl:1: " in message and kind in message


def test_wrong_encoding_names_the_byte(sft: Callable[..., str]) -> None:
    message = sft("sentiment,text\ngood,caf\u00e9\n".encode("latin-1"), "data.csv")
    assert "data.csv" in message and "byte 23" in message and "--encoding" in message


def test_csv_without_the_columns(sft: Callable[..., str]) -> None:
    message = sft("a,b,c\n1,2,3\n", "data.csv", "--prompt", "Is it {text}?", "--answer", "{label}")
    assert "data.csv" in message and "text" in message and "a, b, c" in message


def test_tokenizer_of_another_model(refused: Refused, runs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(runs / "pretrain", other)
    (tmp_path / "t.txt").write_text("other words here\n" * 500)
    Tokenizer.train((tmp_path / "t.txt").open(), 290).save(other)
    assert "tokenizer" in refused("sft", "--data", "world", "--init", other, "--out", tmp_path / "o")


def test_misspelt_preset(refused: Refused, tmp_path: Path) -> None:
    assert "did you mean 'tiny'?" in refused("pipeline", "--preset", "tinny", "--out", tmp_path / "o")


def test_misspelt_flag(refused: Refused, tmp_path: Path) -> None:
    assert "--max-steps" in refused("sft", "--max-step", 3, "--out", tmp_path / "o")


def test_misspelt_stage(refused: Refused) -> None:
    assert "did you mean 'pretrain'?" in refused("pretrian")


def test_out_holds_another_run(refused: Refused, runs: Path) -> None:
    before = (runs / "pretrain" / "model.safetensors").read_bytes()
    message = refused("sft", "--data", "world", "--init", runs / "pretrain", "--out", runs / "pretrain", *SMALL_SFT)
    assert "--resume" in message and "--overwrite" in message
    assert (runs / "pretrain" / "model.safetensors").read_bytes() == before


def test_resuming_with_other_settings(refused: Refused, runs: Path) -> None:
    arguments = ("--text", "world", "--tokenizer", runs / "tokenizer", "--out", runs / "pretrain", "--resume")
    assert "--resume needs the same" in refused("pretrain", *arguments)


def test_a_disk_that_fills_during_a_save(
    refused: Refused, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "pretrain", run)
    before, _ = load(run, "cpu")

    def full(source: Path, target: Path) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(instructgpt.atomic.os, "replace", full)
    text = ("--text", runs / "text.txt", "--tokenizer", runs / "tokenizer")
    message = refused(
        "pretrain", *text, "--out", run, *SMALL.replace("--max-steps 2", "--max-steps 4").split(), "--resume"
    )
    assert "cannot be written: No space left on device" in message and "is kept" in message
    after, _ = load(run, "cpu")
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters()))
    monkeypatch.undo()
    steps = RunDirectory(run).load_state().values["progress"]["step"]
    assert steps == 2, "the state is the previous one, from which --resume goes on"


def test_truncated_weights(refused: Refused, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "pretrain", tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "damaged" in refused("sft", "--data", "world", "--init", tmp_path / "cut", "--out", tmp_path / "o")


def test_tampered_weights(refused: Refused, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "pretrain", tmp_path / "altered")
    weights = tmp_path / "altered" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-50] ^= 4
    weights.write_bytes(data)
    assert "altered" in refused("sft", "--data", "world", "--init", tmp_path / "altered", "--out", tmp_path / "o")


def test_vocabulary_larger_than_the_text_allows(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a few words only\n" * 10)
    message = refused("tokenizer", "--text", tmp_path / "t.txt", "--vocab-size", 5000, "--out", tmp_path / "o")
    assert "5000" in message and any(character.isdigit() for character in message.replace("5000", ""))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_one(refused: Refused, runs: Path, tmp_path: Path) -> None:
    arguments = ("--data", "world", "--init", runs / "pretrain", "--out", tmp_path / "o", "--device", "cuda")
    assert "--device cpu" in refused("sft", *arguments)


@pytest.mark.parametrize("flag", ["--data", "--init", "--out"])
def test_missing_flag(refused: Refused, runs: Path, tmp_path: Path, flag: str) -> None:
    given = {"--data": "world", "--init": runs / "pretrain", "--out": tmp_path / "o"}
    given.pop(flag)
    assert f"{flag} is missing" in refused("sft", *(word for pair in given.items() for word in pair))


def test_context_longer_than_that_of_init(refused: Refused, runs: Path, tmp_path: Path) -> None:
    arguments = ("--data", "world", "--init", runs / "pretrain", "--out", tmp_path / "o", "--row-length", 65)
    assert "64" in refused("sft", *arguments)


def test_weights_that_do_not_fit_the_data(refused: Refused, runs: Path, tmp_path: Path) -> None:
    arguments = ("--data", "world", "--init", runs / "pretrain", "--out", tmp_path / "o", "--weights", 1, 2)
    assert "--weights has 2 values for 1 source" in refused("sft", *arguments)


@pytest.mark.parametrize("given", ["--checkpointing blocks", "--checkpointing=none", "--optimizer-state int8"])
def test_flags_of_the_backward_where_there_is_none(refused: Refused, runs: Path, tmp_path: Path, given: str) -> None:
    message = refused("tokenizer", "--text", runs / "text.txt", "--out", tmp_path / "o", *given.split())
    flag = given.partition(" ")[0].partition("=")[0]
    assert message == f"error: {flag} says how gradients are computed, and tokenizer computes none; leave it out"
    assert not (tmp_path / "o").exists()


def test_misspelt_checkpointing(refused: Refused, tmp_path: Path) -> None:
    message = refused("pretrain", "--text", "world", "--out", tmp_path / "o", "--checkpointing", "block")
    assert message == "error: --checkpointing block is unknown; did you mean 'blocks'?"
