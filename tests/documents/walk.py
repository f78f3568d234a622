"""Does what a page says, as a reader would, in a copy of the repository: commands in a shell, Python, edits.

The copy holds what git tracks. Its `.venv/bin` leads to the environment of these tests, by way of `shorter.py`; files
that a page brings along (a book, instructions) are made up by their kind, and runs that another page makes are given.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.untrained import random_run
from instructgpt.config import model_preset
from tests.documents.reading import Step

FIRST = ("make setup", "make train")
"""What every other page builds on; it is run when the copy is made."""
PROGRAMS = ("python", "pytest", "instructgpt", "pip", "ruff", "pyright")
_READ = ("--init", "--model", "--base", "--reward", "--tokenizer", "--run", "--runs")
"""Flags that name a run to read."""
_WRITTEN = ("--out", "--to", "--json", "--plot", "--predictions")
"""Flags that name what is written."""
_RUN_OF_STAGE = {"tokenizer": "tokenizer", "pretrain": "pretrain"}
"""Which run of the copy stands for what a stage makes; any other stage leaves a tuned model."""
_MADE_UP = (".txt", ".csv", ".json", ".jsonl", ".gz")
"""Files that a reader is to bring along."""
_SMALL: dict[str, Any] = dict(layers=2, width=48, heads=4, kv_heads=2, context=128, vocab_size=300)
"""In the shape of a model of others."""
_LONGEST = 900
"""Seconds for one command, on a machine that others use, too."""


def copy_of(root: Path, to: Path) -> None:
    """The tracked files of a repository, with an environment that shortens what is run in it."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, stdout=subprocess.PIPE, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, to / name)
    install(to)


def install(copy: Path) -> None:
    """An environment of which each program shortens what it is to run."""
    bin = copy / ".venv" / "bin"
    bin.mkdir(parents=True, exist_ok=True)
    text = Path(__file__).with_name("shorter.py").read_text(encoding="utf-8")
    for name in PROGRAMS:
        (bin / name).write_text(f"#!{sys.executable}\n{text}", encoding="utf-8")
        (bin / name).chmod(0o755)


@dataclass
class Walk:
    """One page in one copy."""

    root: Path
    made_by: dict[str, str]
    """Which stage makes a run, of all runs that some page makes."""
    port: int = 0
    server: subprocess.Popen[str] | None = None
    done: list[Step] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """That of a reader whose `python` is the copy's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "TRITON"))}
        path = f"{self.root / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return kept | {
            "PATH": path, "PYTHONPATH": str(self.root), "REAL_PYTHON": sys.executable, "PORT": str(self.port),
            "COLUMNS": "120", "MPLBACKEND": "agg", "TORCHDYNAMO_DISABLE": "1",  # compiling takes minutes
        }  # fmt: skip

    def take(self, step: Step) -> None:
        """Does one step, and prints what it costs. Raises AssertionError with what was printed where it ends in another
        way than it should."""
        before = _processor_seconds()
        if step.kind == "edit":
            self.edit(step)
        elif step.kind == "file":
            (self.root / step.text.split()[1]).write_text(step.text, encoding="utf-8")
        elif step.kind == "python":
            text = step.text.replace(":8000", f":{self.port}")
            self.ends(step, [sys.executable, "-"], text, TRITON_INTERPRET="1")  # kernels, where there is no GPU
        elif "serve" in step.text.split("#")[0].split():
            self.serve(step)
        else:
            self.give(step)
            self.ends(step, ["bash", "-c", step.text], "Hello\n/quit\n")
        self.done.append(step)
        print(f"{_processor_seconds() - before:6.1f} s  {step}", flush=True)

    def ends(self, step: Step, words: list[str], given: str, **environment: str) -> None:
        """Runs a command to its end."""
        running = subprocess.Popen(
            words, cwd=self.root, env=self.environment() | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, encoding="utf-8", start_new_session=True,
        )  # fmt: skip
        try:
            printed, _ = running.communicate(given, timeout=_LONGEST)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{step}\ntook over {_LONGEST} seconds") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)  # what it left, too
        assert running.returncode == step.exit_code, f"{step}\nended with {running.returncode}:\n{printed[-3000:]}"

    def edit(self, step: Step) -> None:
        """Writes a block where its page says."""
        assert step.edit
        file, old = self.root / step.edit.file, step.edit.old.strip()
        text = file.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{step}\n{step.edit.file} has {text.count(old)} times: {old}"
        file.write_text(text.replace(old, step.text.strip()), encoding="utf-8")

    def serve(self, step: Step) -> None:
        """Starts a service, and asks whether it is ready. It stays until the next one, or the page's end."""
        self.leave()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.give(step)
        self.server = subprocess.Popen(
            ["bash", "-c", f"exec {step.text}"], cwd=self.root, env=self.environment(), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, encoding="utf-8", start_new_session=True,
        )  # fmt: skip
        for _ in range(600):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            if self.server.poll() is not None:
                break
            time.sleep(0.2)
        printed = self.leave()
        raise AssertionError(f"{step}\nserves nothing:\n{printed}")

    def leave(self) -> str:
        """Stops what is served, as Ctrl-C and process managers do. Returns what it printed."""
        if not self.server:
            return ""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.server.pid, signal.SIGTERM)
        printed, _ = self.server.communicate(timeout=60)
        self.server = None
        return printed

    def give(self, step: Step) -> None:
        """Makes up the files that a command reads, and gives the runs that it starts from."""
        words = shlex.split(step.text, comments=True)
        flag = ""
        for word in words:
            flag = word if word.startswith("-") else flag
            path = self.root / word
            if flag in _WRITTEN or word.startswith("-") or path.exists():
                continue
            if word.startswith("runs/") and flag in _READ:
                self.give_run(step, word)
            elif word.startswith("runs/"):
                continue
            elif path.suffix in _MADE_UP:
                make_up(path, self.root)
            elif word.partition("=")[2] == "FOLDER" or word == "FOLDER":
                self.give_folder()

    def give_run(self, step: Step, run: str) -> None:
        """A run that another page makes."""
        stage = self.made_by.get(run)
        assert stage, f"{step}\nno page makes {run}"
        if stage == "import":
            random_run(self.root / run, replace(model_preset("llama-124m"), **_SMALL))
        else:
            shutil.copytree(self.root / "runs" / "tiny" / _RUN_OF_STAGE.get(stage, "sft"), self.root / run)

    def give_folder(self) -> None:
        """What `FOLDER` stands for: a model of others, and sentence pairs in line-aligned files."""
        if not (self.root / "FOLDER").exists():
            random_run(self.root / "runs" / "any", replace(model_preset("llama-124m"), **_SMALL))
            words = shlex.split("-m instructgpt export --model runs/any --to FOLDER --format hf")
            subprocess.run([sys.executable, *words], cwd=self.root, env=self.environment(), check=True)
        for part in ("train", "val", "test"):
            for language, sentence in (("en", "two red cats"), ("fr", "deux chats rouges")):
                (self.root / "FOLDER" / f"{part}.{language}").write_text(
                    "".join(f"{sentence} {part} {number}\n" for number in range(20)), encoding="utf-8"
                )


def _processor_seconds() -> float:
    """Of all processes that were begun here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def make_up(path: Path, root: Path) -> None:
    """A small file of the kind that its name says: sums as instructions, labelled texts, and these pages as a book."""
    asked = [(f"What is {a} + {b}?", str(a + b)) for a in range(12) for b in range(12)]
    records = [json.dumps({"instruction": question, "output": answer}) for question, answer in asked]
    book = "".join(page.read_text(encoding="utf-8") for page in sorted((root / "docs").glob("*[!h].md")))
    contents = {
        ".txt": book,
        ".csv": "text,label\n"
        + "".join(f"{question} Sure.,{('bad', 'good')[len(answer) % 2]}\n" for question, answer in asked),
        ".json": f"[{','.join(records)}]",
        ".jsonl": "\n".join(records),
        ".gz": "\n".join(json.dumps({"text": paragraph}) for paragraph in book.split("\n\n")),
    }
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8") as file:
        file.write(contents[path.suffix])


def made_by(steps: list[Step]) -> dict[str, str]:
    """Which stage makes a run, of all runs that a page makes."""
    made = {"runs/tiny/tokenizer": "tokenizer", "runs/tiny/pretrain": "pretrain", "runs/tiny/sft": "sft"}
    made |= {"runs/smollm2": "import"}
    for step in steps:
        words = shlex.split(step.text, comments=True) if step.kind == "command" else []
        if "--out" in words[:-1]:
            stage = words[2] if words[1] == "train.py" else words[3]
            made[words[words.index("--out") + 1]] = stage
    return made
