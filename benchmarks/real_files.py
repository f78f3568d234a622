"""Every kind of real file, trained on and scored: `python -m benchmarks.real_files --data DIR`.

DIR holds public sets, wherever below it; `python -m instructgpt data get NAME --out DIR/NAME` brings them:
alpaca-chinese, alpaca-demo, chinese-poetry, dpo-demo, fewclue, financial-phrasebank, multi30k, raschka-instruction,
self-instruct, tinyshakespeare. A set that is not there is passed over, and said to be. The models are small and trained
for minutes on whatever machine this is: the figures show that each file goes the whole way, not how good one can be.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from instructgpt.flags import parse, run_main
from instructgpt.settings import FilePath, Settings
from instructgpt.strict_json import write_json

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class RealFilesConfig(Settings):
    """Trains and scores on real files."""

    data: FilePath = "data"
    """The directory with the public sets."""
    out: FilePath = "runs/real"
    """Where the runs go."""
    minutes: float = 3.0
    """Training time of each run."""
    json: FilePath = ""
    """A file to write all figures to."""
    only: tuple[str, ...] = ()
    """Names of runs to make; all by default. `base` must have been made before the others."""


@dataclass(frozen=True)
class Run:
    """A fine-tuning on files and what it is scored on."""

    files: tuple[str, ...]
    """Patterns of file names below the data directory; `a+b` are two files with a sentence a line."""
    flags: tuple[str, ...] = ()
    """How records become instructions, for training and scoring alike."""
    test: str = ""
    """A pattern of test files; without it, the records held out in training are scored."""
    limit: int = 0
    """Most conversations scored."""


BASE_TEXT = (
    "tinyshakespeare/**/input.txt", "wiki_demo.txt", "poet.tang.*.json", "ci.song.*.json", "train.en.gz", "train.fr.gz",
)  # fmt: skip
RUNS = {
    "raschka-instruction": Run(("instruction-data.json",)),
    "alpaca-chinese": Run(("alpaca_chinese_part_*.json",), limit=200),
    "financial-phrasebank": Run(
        ("all-data.csv",),
        ("--prompt", "Is this headline positive, negative or neutral? {Headline}", "--answer", "{Sentiment}"),
    ),
    "multi30k-en-fr": Run(
        ("train.en.gz+train.fr.gz",),
        ("--columns", "en,fr", "--prompt", "Translate to French: {en}", "--answer", "{fr}"),
        test="test_2016_flickr.en.gz+test_2016_flickr.fr.gz",
    ),
    "self-instruct": Run(("seed_tasks.jsonl", "user_oriented_instructions.jsonl")),
    "llamafactory-demo": Run(
        ("alpaca_en_demo.json", "alpaca_zh_demo.json", "identity.json", "v1_sft_demo.jsonl", "dpo_en_demo.json",
         "kto_en_demo.json", "glaive_toolcall_en_demo.json"),
    ),
    "fewclue-tnews": Run(
        ("tnews/train_few_all.json",),
        ("--prompt", "这条新闻属于哪一类？{sentence}", "--answer", "{label_desc}"),
        test="tnews/test_public.json",
    ),
    "fewclue-ocnli": Run(
        ("ocnli/train_few_all.json",),
        ("--prompt", "前提：{sentence1}\n假设：{sentence2}\n关系是什么？", "--answer", "{label}"),
        test="ocnli/test_public.json",
    ),
}  # fmt: skip


def find(data: Path, pattern: str) -> list[str]:
    """The files below `data` that a pattern names; empty when one is missing."""
    parts = [sorted(map(str, data.rglob(part))) for part in pattern.split("+")]
    return ["+".join(files) for files in zip(*parts)] if len(parts) > 1 else parts[0]


def call(*words: object) -> str:
    """Runs a command of the project, showing it and what it prints; returns what it printed."""
    command = [sys.executable, *map(str, words)]
    print("$", *command[1:], flush=True)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout, flush=True)
    return done.stdout


def shakespeare(data: Path, out: Path, minutes: float) -> dict[str, object]:
    """Pretraining on one book: bits per byte of its last tenth, by a tokenizer that never saw it."""
    text = find(data, "tinyshakespeare/**/input.txt")
    call("train.py", "tokenizer", "--text", *text, "--vocab-size", 1024, "--out", out / "tokenizer", "--overwrite")
    call(
        "train.py", "pretrain", "--text", *text, "--tokenizer", out / "tokenizer", "--out", out / "base", "--overwrite",
        "--max-minutes", minutes, "--max-steps", 0, "--val-rows", 10**6, "--dropout", 0.1, "--cooldown", 0.6,
    )  # fmt: skip
    return json.loads((out / "base" / "eval.json").read_text())


def base(data: Path, out: Path, minutes: float) -> dict[str, object]:
    """A base model in three languages for the runs below."""
    text = [file for pattern in BASE_TEXT for file in find(data, pattern)]
    call("train.py", "tokenizer", "--text", *text, "--vocab-size", 8192, "--out", out / "tokenizer", "--overwrite")
    call(
        "train.py", "pretrain", "--text", *text, "--tokenizer", out / "tokenizer", "--out", out / "base", "--overwrite",
        "--max-minutes", minutes, "--max-steps", 0, "--context", 512, "--rows", 4,
    )  # fmt: skip
    return json.loads((out / "base" / "eval.json").read_text())


def tune(run: Run, data: Path, start: Path, out: Path, minutes: float) -> dict[str, object]:
    """Fine-tunes on a run's files and scores the result."""
    files = [file for pattern in run.files for file in find(data, pattern)]
    printed = call(
        "train.py", "sft", "--data", *files, "--init", start, "--out", out, "--overwrite", *run.flags,
        "--max-minutes", minutes, "--max-steps", 0, "--rows", 4, "--patience", 3, "--eval-every", 100,
    )  # fmt: skip
    account = [line.replace(f"{data}/", "") for line in printed.splitlines() if not line.startswith("sft")]
    tested = find(data, run.test) if run.test else [str(out / "val.jsonl")]
    flags = run.flags if run.test else ()
    call(
        "-m", "instructgpt", "eval", "--model", out, "--data", *tested, *flags, "--limit", run.limit,
        "--json", out / "scores.json", "--samples", out / "samples.md",
    )  # fmt: skip
    scores = json.loads((out / "scores.json").read_text())["results"]
    (result,) = scores.values()
    trained = json.loads((out / "eval.json").read_text())
    return {
        "account": account,
        "scores": {key: value for key, value in result.items() if key != "samples"},
        "training": trained,
    }


def measure(config: RealFilesConfig) -> int:
    data, out = Path(config.data), Path(config.out)
    results: dict[str, object] = {}
    wanted = config.only or ("tinyshakespeare", "base", *RUNS)
    if config.json and Path(config.json).exists():
        results = json.loads(Path(config.json).read_text())
    for name in wanted:
        if name == "tinyshakespeare":
            results[name] = shakespeare(data, out / name, config.minutes)
        elif name == "base":
            results[name] = base(data, out / name, config.minutes)
        elif all(find(data, pattern) for pattern in RUNS[name].files):
            results[name] = tune(RUNS[name], data, out / "base" / "base", out / name, config.minutes)
        else:
            print(f"{name}: its files are not below {data}, passed over", flush=True)
        if config.json:
            write_json(config.json, results)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: measure(parse(RealFilesConfig, sys.argv[1:], "benchmarks.real_files"))))
