"""Every kind of real file, trained on and scored: `python -m benchmarks.real_files --data DIR`.

DIR holds public sets, wherever below it; `python -m instructgpt data get NAME --out DIR/NAME` brings most of them. One
that is not there is passed over, and said to be. The models are small and trained for some hundred updates on one core:
the figures show that each file goes the whole way, and what of it was kept, dropped and not used, not how good a model
can be. Updates, not minutes, end a training, so that the same machine gives the same figures again.

JSON is written after each set, and a set that stands there already, with the same limits, is not run again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructgpt.figures import write_json
from instructgpt.flags import parse, run_main
from instructgpt.settings import FilePath, NonNegative, Positive, PositiveInt, Settings

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class RealFilesConfig(Settings):
    """Trains and scores on real files."""

    data: FilePath = "data"
    """The directory with the public sets."""
    out: FilePath = "runs/real"
    """Where the runs go."""
    json: FilePath = "benchmarks/results/cpu-real-files.json"
    """The file that all figures are written to, after each set."""
    sets: tuple[str, ...] = ()
    """Names of sets to run; all by default. Most start from `base`, which is made first where it is missing."""
    scale: Positive = 1.0
    """Multiplies the updates of every training."""
    minutes: NonNegative = 0.0
    """Most minutes of each training, beside its updates; 0 sets none. A small value tries everything quickly."""
    threads: PositiveInt = 1
    """Threads of PyTorch."""
    again: bool = False
    """Run sets anew that stand in --json."""


class Failed(Exception):
    """A command of the project ended with an error; the message is its last line."""


@dataclass(frozen=True)
class Bench:
    """What every set is run with."""

    config: RealFilesConfig

    @property
    def data(self) -> Path:
        return Path(self.config.data)

    def out(self, name: str) -> Path:
        return Path(self.config.out) / name

    def find(self, patterns: tuple[str, ...]) -> list[str]:
        """The files below the data directory that the patterns name, `a+b` a pair; empty when one names none."""
        found = [_find(self.data, pattern) for pattern in patterns]
        return [file for files in found for file in files] if all(found) else []

    def limits(self, steps: int) -> list[object]:
        """The flags that end a training."""
        minutes = ["--max-minutes", self.config.minutes] if self.config.minutes else []
        return ["--max-steps", max(1, round(steps * self.config.scale)), *minutes]

    def call(self, *words: object) -> list[str]:
        """Runs a command of the project, showing it and what it prints; returns what it said of the data."""
        command = [sys.executable, *map(str, words)]
        print("$", *command[1:], flush=True)
        threads = {"OMP_NUM_THREADS": str(self.config.threads), "OMP_WAIT_POLICY": "passive"}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | threads)
        print(done.stdout, flush=True)
        if done.returncode:
            raise Failed((done.stderr.strip().splitlines() or ["no message"])[-1])
        lines = done.stdout.replace(f"{self.data}/", "").replace(f"{self.config.out}/", "").splitlines()
        return [line for line in lines if " read, " in line or line.startswith("  ")]


def _find(data: Path, pattern: str) -> list[str]:
    parts = [sorted(map(str, data.rglob(part))) for part in pattern.split("+")]
    return ["+".join(files) for files in zip(*parts)] if len(parts) > 1 else parts[0]


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


# ---- the kinds of set


@dataclass(frozen=True)
class Book:
    """A text with a tokenizer and a model of its own: bits per byte of its last tenth, which neither has seen."""

    files: tuple[str, ...]
    steps: int = 150
    vocabulary: int = 1024
    flags: tuple[str, ...] = ()

    def run(self, bench: Bench, name: str) -> dict[str, Any]:
        out, text = bench.out(name), bench.find(self.files)
        tokenizer = out / "tokenizer"
        size = ("--vocab-size", self.vocabulary)
        bench.call("train.py", "tokenizer", "--text", *text, *size, "--out", tokenizer, "--overwrite")
        account = bench.call(
            "train.py", "pretrain", "--text", *text, "--tokenizer", tokenizer, "--out", out / "base", "--overwrite",
            *bench.limits(self.steps), "--rows", 4, *self.flags,
        )  # fmt: skip
        return {"account": account, "training": read_json(out / "base" / "eval.json")}


@dataclass(frozen=True)
class Text:
    """A text that the base model goes on with: bits per byte of its last tenth."""

    files: tuple[str, ...]
    steps: int = 60
    flags: tuple[str, ...] = ()

    def run(self, bench: Bench, name: str) -> dict[str, Any]:
        out = bench.out(name)
        account = bench.call(
            "train.py", "pretrain", "--text", *bench.find(self.files), "--init", base_of(bench), "--out", out,
            "--overwrite", *bench.limits(self.steps), "--rows", 4, *self.flags,
        )  # fmt: skip
        return {"account": account, "training": read_json(out / "eval.json")}


@dataclass(frozen=True)
class Tune:
    """A fine-tuning on files, and answers to its held-out records or to a test file."""

    files: tuple[str, ...]
    flags: tuple[str, ...] = ()
    """How records become instructions, for training and scoring alike."""
    test: str = ""
    """A pattern of test files; without it, the records held out in training are scored."""
    scored: tuple[str, ...] = ()
    """Flags of scoring alone."""
    limit: int = 100
    """Most conversations scored."""
    steps: int = 100

    def run(self, bench: Bench, name: str) -> dict[str, Any]:
        out = bench.out(name)
        account = bench.call(
            "train.py", "sft", "--data", *bench.find(self.files), "--init", base_of(bench), "--out", out,
            "--overwrite", *self.flags, *bench.limits(self.steps), "--rows", 4,
        )  # fmt: skip
        tested = bench.find((self.test,)) if self.test else [str(out / "val.jsonl")]
        flags = (*(self.flags if self.test else ()), *self.scored)
        asked = ask(bench, out, tested, flags, self.limit)
        return {"account": account, **asked, "training": read_json(out / "eval.json")}


@dataclass(frozen=True)
class Compare:
    """A reward model on compared answers, and which of two held-out ones it prefers."""

    files: tuple[str, ...]
    steps: int = 40

    def run(self, bench: Bench, name: str) -> dict[str, Any]:
        out = bench.out(name)
        account = bench.call(
            "train.py", "reward", "--data", *bench.find(self.files), "--init", base_of(bench), "--out", out,
            "--overwrite", *bench.limits(self.steps), "--prompts", 8,
        )  # fmt: skip
        found = read_json(out / "eval.json")
        pairs = found.pop("pairs", {})
        pairs.pop("reliability", None)
        return {"account": account, "pairs": pairs, "training": found}


@dataclass(frozen=True)
class Ask:
    """Prompts for evaluation alone, answered by a model that another set has tuned."""

    files: tuple[str, ...]
    flags: tuple[str, ...] = ()
    limit: int = 60
    tuned: str = "llamafactory-demo"

    def run(self, bench: Bench, name: str) -> dict[str, Any]:
        model = bench.out(self.tuned)
        if not (model / "eval.json").exists():
            raise Failed(f"the model that answers, {self.tuned}, has not been made yet; run that set first")
        return {"model": self.tuned, **ask(bench, model, bench.find(self.files), self.flags, self.limit, name)}


def ask(
    bench: Bench, model: Path, files: list[str], flags: tuple[str, ...], limit: int, name: str = ""
) -> dict[str, Any]:
    """Scores of a model on files; its answers lie in answers.jsonl, to be read."""
    out = bench.out(name) if name else model
    account = bench.call(
        "-m", "instructgpt", "eval", "--model", model, "--data", *files, *flags, "--limit", limit,
        "--json", out / "scores.json", "--samples", out / "samples.md", "--predictions", out / "answers.jsonl",
    )  # fmt: skip
    results = read_json(out / "scores.json")["results"]
    results = {file.replace(f"{bench.data}/", "").replace(f"{out}/", ""): found for file, found in results.items()}
    samples = {file: [_sample(each) for each in found.pop("samples", ())][:2] for file, found in results.items()}
    return {"scored": account, "scores": results, "samples": samples}


def _sample(sample: dict[str, Any]) -> dict[str, Any]:
    """What was asked last and what was said, as much of it as a table of results should hold."""
    return {
        "asked": sample["messages"][-1]["content"][-200:],
        "answer": sample["answer"][:200],
        "score": sample["score"],
    }


def base_of(bench: Bench) -> Path:
    return bench.out("base") / "base"


# ---- the sets

_FREE = ("--max-new-tokens", "64")
_ZH_EN = ("--columns", "en,zh,licence", "--answer", "{zh}", "--prompt", "Translate to Chinese: {en}")
SETS: dict[str, Book | Text | Tune | Compare | Ask] = {
    "tinyshakespeare": Book(("tinyshakespeare/**/input.txt",), flags=("--dropout", "0.1", "--cooldown", "0.6")),
    "base": Book(
        ("tinyshakespeare/**/input.txt", "wiki_demo.txt", "poet.tang.*.json", "ci.song.*.json", "train.en.gz",
         "train.fr.gz"),
        steps=300, vocabulary=8192, flags=("--context", "512"),
    ),
    "wizard-of-oz": Text(("wizard-of-oz/tinystories.txt",)),
    "chinese-poetry": Text(
        ("lunyu.json", "四书五经/*.json", "baijiaxing.json", "qianziwen.json", "sanzijing-*.json",
         "zhuzijiaxun.json"),
    ),
    "cs336-fixtures": Text(
        ("tinystories_sample.txt", "cs336-fixtures/address.txt", "cs336-fixtures/german.txt"), steps=20,
        flags=("--separator", "<|endoftext|>"),
    ),
    "raschka-instruction": Tune(("instruction-data.json",), scored=_FREE),
    "alpaca-chinese": Tune(("alpaca_chinese_part_*.json",), scored=_FREE),
    "financial-phrasebank": Tune(
        ("all-data.csv",),
        ("--prompt", "Is this headline positive, negative or neutral? {Headline}", "--answer", "{Sentiment}"),
        scored=("--labels", "positive", "negative", "neutral"), limit=240,
    ),
    "multi30k-en-fr": Tune(
        ("train.en.gz+train.fr.gz",),
        ("--columns", "en,fr", "--prompt", "Translate to French: {en}", "--answer", "{fr}"),
        test="test_2016_flickr.en.gz+test_2016_flickr.fr.gz", limit=200, steps=150,
    ),
    "multi30k-en-de": Tune(
        ("train.en.gz+train.de.gz",),
        ("--columns", "en,de", "--prompt", "Translate to German: {en}", "--answer", "{de}"),
        test="test_2016_flickr.en.gz+test_2016_flickr.de.gz",
    ),
    "tatoeba-cmn-eng": Tune(("cmn.txt",), _ZH_EN, scored=("--metric", "translation"), limit=200, steps=150),
    "self-instruct": Tune(("seed_tasks.jsonl", "user_oriented_instructions.jsonl"), scored=_FREE, steps=60),
    "llamafactory-demo": Tune(
        ("alpaca_en_demo.json", "alpaca_zh_demo.json", "identity.json", "v1_sft_demo.jsonl", "dpo_en_demo.json",
         "kto_en_demo.json", "glaive_toolcall_en_demo.json"),
        scored=_FREE, steps=150,
    ),
    "fewclue-tnews": Tune(
        ("tnews/train_few_all.json",),
        ("--prompt", "这条新闻属于哪一类？{sentence}", "--answer", "{label_desc}"),
        test="tnews/test_public.json", limit=200, steps=60,
    ),
    "fewclue-ocnli": Tune(
        ("ocnli/train_few_all.json",),
        ("--prompt", "前提：{sentence1}\\n假设：{sentence2}\\n关系是什么？", "--answer", "{label}"),
        test="ocnli/test_public.json", limit=200, steps=60,
    ),
    "gsm8k": Tune(("gsm8k/**/train.jsonl",), scored=("--metric", "number", "--max-new-tokens", "240")),
    "hh-rlhf": Compare(("harmless-base/test.jsonl.gz",)),
    "raschka-preference": Compare(("instruction-data-with-preference.json",)),
    "llamafactory-dpo": Compare(("dpo_en_demo.json",)),
    "human-eval": Ask(
        ("HumanEval.jsonl.gz",), ("--prompt", "{prompt}", "--answer", "{canonical_solution}", "--max-new-tokens", "96")
    ),
    "alpaca-eval": Ask(("text_davinci_003/model_outputs.json",), _FREE),
    "fastchat": Ask(
        ("mt_bench/question.jsonl", "vicuna_bench/question.jsonl"), ("--prompt", "{turns[0]}", *_FREE), limit=80
    ),
}  # fmt: skip


def measure(config: RealFilesConfig) -> int:
    """Runs the sets that are not in --json yet; 1 when one of them failed."""
    if unknown := [name for name in config.sets if name not in SETS]:
        raise SystemExit(f"error: there is no set {unknown[0]!r}; there are {', '.join(SETS)}")
    bench = Bench(config)
    results = read_json(Path(config.json))
    limits = {"scale": config.scale, "minutes": config.minutes, "threads": config.threads}
    wanted = list(config.sets or SETS)
    if not (base_of(bench) / "eval.json").exists():
        results.pop("base", None)  # its figures without its model are of no use to the others
        wanted = ["base", *(name for name in wanted if name != "base")]
    for name in wanted:
        if not config.again and results.get(name, {}).get("limits") == limits and "error" not in results[name]:
            print(f"{name}: stands in {config.json}", flush=True)
            continue
        if not bench.find(SETS[name].files):
            print(f"{name}: its files are not below {config.data}, passed over", flush=True)
            continue
        results[name] = {"limits": limits, **_timed(SETS[name].run, bench, name)}
        write_json(config.json, results)
    return int(any("error" in results.get(name, {}) for name in wanted))


def _timed(run: Callable[[Bench, str], dict[str, Any]], bench: Bench, name: str) -> dict[str, Any]:
    """What a run gives, or the error that it ended with, and the minutes that it took."""
    began = time.monotonic()
    try:
        found = run(bench, name)
    except Failed as failed:
        print(f"{name}: {failed}", flush=True)
        found = {"error": str(failed)}
    minutes = (time.monotonic() - began) / 60
    print(f"{name}: {minutes:.1f} minutes", flush=True)
    return {**found, "wall_minutes": minutes}


if __name__ == "__main__":
    sys.exit(run_main(lambda: measure(parse(RealFilesConfig, sys.argv[1:], "benchmarks.real_files"))))
