"""Makes a documented command short: stands in for `.venv/bin/python` and its neighbours in a copy of the repository.

Flags are set by program and stage, so that a command that is documented tomorrow is short, too. Reads nothing of the
project: every command begins here.
"""

from __future__ import annotations

import os
import shlex
import sys
from fnmatch import fnmatchcase

SHORTER = {
    "train.py ?*": "--max-steps 2",
    "train.py plan*": "--layers 1",
    "train.py tokenizer*": "--vocab-size 400",
    "train.py pipeline*": "--max-steps 2 --examples 1",
    "train.py rlhf*": "--max-steps 2 --base-steps 2 --seeds 1 --n 1",
    "train.py translate*": "--steps 2 --test-pairs 2",
    "train.py reward*": "--max-steps 2 --val-pairs 8",
    "train.py dpo*": "--max-steps 2 --val-pairs 8",
    "train.py ppo*": "--max-steps 2 --prompts 8 --val-examples 8",
    "train.py grpo*": "--max-steps 2 --prompts 8 --val-examples 8",
    "train.py best_of_n*": "--max-steps 2 --prompts 8 --val-examples 8",
    "-m instructgpt generate*": "--max-new-tokens 4",
    "-m instructgpt eval*": "--max-new-tokens 4",
    "-m instructgpt eval*--data world*": "--n 1 --max-new-tokens 4",
    "-m instructgpt ledger*": "--n 1",
    "-m instructgpt serve*": "--port $PORT",
    "-m instructgpt race run*": "--minutes 0.01",
    "-m kernels.lab check*": "--examples 2",
    "-m kernels.lab mutants*": "--examples 20",
    "-m kernels.lab compile*": "--first",
    "-m pytest -n*": "-n 0 -k tidy tests/notebooks",
    "-m pytest tests/*": "--collect-only",
    "-m pyright*": "instructgpt/figures.py",
    "-m pip*": "--dry-run --no-deps --no-index --no-build-isolation",
    "-m benchmarks.train_step*": "--shape minute --dtypes float32 --rows 1 --steps 1 --rounds 1 --only 'sdpa, off'",
    "-m benchmarks.ladder*": "--shape minute --rows 1 --steps 1 --rounds 1",
    "-m benchmarks.memory*": "--steps 1 --rounds 1 --shapes minute:1",
    "-m benchmarks.profile*": "--shape minute --rows 1 --steps 1",
    "-m benchmarks.head_memory*": "--rows 8 --rounds 1",
    "-m benchmarks.decode*": "--quick",
    "-m benchmarks.batching*": "--quick",
    "-m benchmarks.service*": "--first-rate 2 --most-rates 1 --seconds 2 --max-tokens 4",
    "-m benchmarks.masking*": "--characters 10000",
    "-m benchmarks.lora*": "--scale 0.001 --seeds 1 --n 1 --only places",
    "-m benchmarks.lookup_heads*": "--least 0 --found-on 4 --n 1 --others 0 --controls 1",
    "-m benchmarks.mistakes*": "--scale 0.001 --seeds 1 --n 1 --only 'labels shifted twice'",
    "-m benchmarks.race*": "--seeds 1 --records gpt2 --minutes 0.01",
    "-m benchmarks.gpu*": "--stand-in --parts check",
}
"""What is added to a command, or set anew in it, by its beginning; the longest pattern that fits counts."""
INSTEAD = {"-m kernels.lab": {"all": "softmax"}, "-m pip install": {"jupyterlab": "pip"}}
"""Words that stand for much, and what stands for less."""


def shorter(words: list[str]) -> list[str]:
    """A command line of Python's, made short."""
    line = " ".join(words)
    for beginning, less in INSTEAD.items():
        if line.startswith(beginning):
            words = [less.get(word, word) for word in words]
    fitting = [pattern for pattern in SHORTER if fnmatchcase(line, pattern)]
    if not fitting:
        return words
    added = shlex.split(os.path.expandvars(SHORTER[max(fitting, key=len)]))
    flags = [word for word in added if word.startswith("-")]
    return [*_without(words, flags), *added]


def _without(words: list[str], flags: list[str]) -> list[str]:
    """The words without these flags and their values."""
    kept: list[str] = []
    is_dropped = False
    for position, word in enumerate(words):
        if position and word.startswith("-"):
            is_dropped = word.partition("=")[0] in flags
        if not is_dropped:
            kept.append(word)
    return kept


def main() -> None:
    """Becomes the Python that this stands in for."""
    program, words = os.path.basename(sys.argv[0]), sys.argv[1:]
    python = os.environ["REAL_PYTHON"]
    words = words if program.startswith("python") else ["-m", program, *words]
    os.execv(python, [python, *shorter(words)])


if __name__ == "__main__":
    main()
