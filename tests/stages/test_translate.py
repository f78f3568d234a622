"""The worked example as a user runs it: what it leaves behind, and every wrong input in one line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from instructgpt.evaluation.scores import has_sacrebleu
from instructgpt.flags import run_main
from instructgpt.stages import main, translate
from instructgpt.stages.translate import TranslateConfig, pairs_of
from instructgpt.text.chat import render_conversation
from instructgpt.training.checkpoint import load

Refused = Callable[..., str]
QUICK = "--steps 2 --rows 1 --eval-every 1 --lora-rank 2 --test-pairs 3 --device cpu --dtype float32".split()
WORDS = {"red": "rouge", "blue": "bleu", "dog": "chien", "bird": "oiseau"}
pytestmark = pytest.mark.skipif(not has_sacrebleu(), reason="needs sacrebleu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sets as multi30k has them: packed, below the folder, with more in the names; and a language nobody asks for."""
    below = tmp_path / "data" / "raw"
    below.mkdir(parents=True)
    for name, count in (("train", 40), ("val", 6), ("test_2016_flickr", 9)):
        lines = [(f"{a} {b} {name} {i}", f"{WORDS[b]} {WORDS[a]} {name} {i}")
                 for i in range(count) for a, b in [(list(WORDS)[i % 2], list(WORDS)[2 + i % 2])]]  # fmt: skip
        for language, texts in zip(("en", "fr", "de"), (*zip(*lines), ["nein"] * count)):
            (below / f"{name}.{language}.gz").write_bytes(gzip.compress("".join(t + "\n" for t in texts).encode()))
    return tmp_path / "data"


def run(*words: object) -> int:
    return run_main(lambda: main(["translate", *map(str, words)]))


@pytest.mark.parametrize("ways", [("lora",), pytest.param(("lora", "full"), marks=pytest.mark.slow)])
def test_what_is_trained_is_scored_and_shown(
    ways: tuple[str, ...], runs: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    out = tmp_path / "out"
    asked = ("--init", runs / "pretrain", "--data", folder, "--out", out, "--tune", *ways, *QUICK)
    assert run(*asked) == 0
    printed = capsys.readouterr().out
    found = json.loads((out / "eval.json").read_text())
    assert list(found) == ["before", *ways]
    for name, values in found.items():
        assert values["examples"] == 3 and {"bleu", "chrf", "signature"} <= set(values["metrics"])
        assert 0 <= values["token_accuracy"] <= 1 and 0 <= values["teacher_forced_argmax"] <= 1
        assert len((out / f"{name}.jsonl").read_text().splitlines()) == 3 and f"{name}: BLEU" in printed
    trained = [found[way]["training"]["trained_parameters"] for way in ways]
    assert trained == sorted(trained) and trained[0] < found["lora"]["training"]["parameters"] / 4
    rows = (out / "samples.md").read_text().splitlines()
    assert len(rows) == 5 and rows[0] == f"| sentence | reference | {' | '.join(ways)} | before |"
    assert "red dog test_2016_flickr 0" in rows[2] and "chien rouge test_2016_flickr 0" in rows[2]
    validated = [json.loads(line)["messages"] for line in (out / "lora" / "val.jsonl").read_text().splitlines()]
    assert len(validated) == 6 and validated[0][0] == {"role": "system", "content": "Translate English to French."}
    assert (out / "curves.png").exists()
    if len(ways) > 1:
        before = (out / "full" / "model.safetensors").read_bytes()
        assert run(*asked) == 2 and "go on with --resume" in capsys.readouterr().err
        assert run(*asked, "--resume") == 0 and (out / "full" / "model.safetensors").read_bytes() == before


def test_the_worlds_pairs_are_written_down(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(translate, "_WORLD_PAIRS", {"train": 5, "val": 2, "test": 3})
    pairs = pairs_of(TranslateConfig(out=str(tmp_path), source="fr", target="en"))
    records = [json.loads(line) for line in Path(pairs.train).read_text().splitlines()]
    assert len(records) == 5 and all(len(record["messages"]) == 2 for record in records)
    test = [json.loads(line)["messages"] for line in Path(pairs.test).read_text().splitlines()]
    assert len(test) == 3 and not any(record["messages"] in test for record in records)


def test_what_is_learnt_is_the_translation_and_its_end(runs: Path, folder: Path, tmp_path: Path):
    pairs = pairs_of(TranslateConfig(data=str(folder), out=str(tmp_path)))
    (first, *_) = translate._conversations(pairs.train, pairs.reading)
    tokenizer = load(runs / "pretrain", "cpu")[1]
    ids, is_answer = render_conversation(first, tokenizer)
    learnt = [i for i, chosen in zip(ids, is_answer) if chosen]
    assert tokenizer.decode(learnt) == "chien rouge train 0" and learnt[-1] == tokenizer.end


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "raw" / "val.fr.gz").unlink(), "one file val….fr should be in it or below"),
        (lambda folder: (folder / "test.en").write_text("a\n"), "there is"),
        (lambda folder: (folder / "raw" / "train.fr.gz").write_bytes(gzip.compress(b"un\n")), "ends after 1 lines"),
    ],
)
def test_wrong_sets_are_told_before_anything_is_trained(
    change: Callable[[Path], object], said: str, runs: Path, folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    change(folder)
    out = tmp_path / "out"
    assert run("--init", runs / "pretrain", "--data", folder, "--out", out, *QUICK) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (out / "lora").exists()


def test_wrong_words_are_told(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = ("--out", tmp_path / "out")
    for words, said in (
        (out, "--init is missing"),
        (("--init", runs / "pretrain"), "--out is missing"),
        (("--init", tmp_path / "no", *out), "no such run directory"),
        (("--init", runs / "pretrain", "--data", tmp_path / "no", *out), "is no folder"),
        (("--init", runs / "pretrain", "--source", "xx", *out), "translate_xx_fr"),
    ):
        assert run(*words) == 2
        assert said in capsys.readouterr().err
