"""`serve` as a command: what it refuses, and that a process of it drains and ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.untrained import random_run
from instructgpt.cli import run_command
from instructgpt.config import ModelConfig
from instructgpt.flags import run_main

ROOT = Path(__file__).parents[2]
pytest.importorskip("uvicorn", reason="uvicorn is in the extra `serve`")


def make_run(folder: Path, vocab_size: int = 320) -> Path:
    return random_run(folder, ModelConfig(vocab_size, context=256, layers=2, width=32, heads=4))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("serve") / "small")


Serve = Callable[..., tuple[int, str, str]]


@pytest.fixture
def serve(capsys: pytest.CaptureFixture[str]) -> Serve:
    def serve(*flags: Any) -> tuple[int, str, str]:
        code = run_main(lambda: run_command(["serve", *map(str, flags)]))
        return code, *capsys.readouterr()

    return serve


def test_without_keys_only_this_machine_is_served(serve: Serve, run: Path) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"):
        code, _, err = serve("--model", run, "--host", host)
        assert code == 2 and err.count("\n") == 1 and "name a file of keys with --keys" in err


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--keys", "none"), "none: keys cannot be read: No such file"),
        (("--new-key", "anna"), "--new-key needs --keys"),
        (("--port", "70000"), "cannot listen at 127.0.0.1:70000"),
        (("--port", "0"), "--model is missing"),
        (("--port", "0", "--model", "nowhere"), "nowhere: no such run directory"),
        (("--max-queue", "0"), "max_queue is 0"),
        (("--body-seconds", "nan"), "body_seconds is nan"),
    ],
)
def test_mistakes_are_one_line(serve: Serve, tmp_path: Path, monkeypatch: Any, flags: Any, complaint: str) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = serve(*flags)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and complaint in err


def test_a_hook_that_is_none_and_a_port_that_is_taken(serve: Serve, run: Path) -> None:
    assert "has no function nothing" in serve("--model", run, "--port", "0", "--safety", "json:nothing")[2]
    assert "not a reward model" in serve("--model", run, "--port", "0", "--judge", run)[2]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = serve("--model", run, "--port", taken.getsockname()[1])
        assert code == 2 and "Address already in use" in err


def test_a_model_that_guesses_has_the_same_tokenizer(serve: Serve, run: Path, tmp_path: Path) -> None:
    flags = ("--model", run, "--port", "0")
    assert "go together" in serve(*flags, "--draft", "model")[2]
    assert "go together" in serve(*flags, "--draft-model", run)[2]
    other = make_run(tmp_path / "other", vocab_size=300)
    assert "has another tokenizer" in serve(*flags, "--draft", "model", "--draft-model", other)[2]


def test_a_new_key_is_printed_and_opens(serve: Serve, tmp_path: Path) -> None:
    code, out, _ = serve("--keys", tmp_path / "keys", "--new-key", "anna")
    assert code == 0 and out.startswith("sk-") and out.strip() not in (tmp_path / "keys").read_text()
    code, _, err = serve("--keys", tmp_path / "keys", "--new-key", "anna")
    assert code == 2 and "the name is taken" in err


# ---- a process of its own


@contextmanager
def serving(run: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and the address that it says."""
    words = [sys.executable, "-m", "instructgpt", "serve", "--model", str(run), "--port", "0", *flags]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        said = process.stdout.readline()
        found = re.search(r"http://\S+", said)
        assert found, (said, process.stderr and process.stderr.read())
        yield process, found[0]
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_process_answers_and_on_sigterm_finishes_its_streams(run: Path) -> None:
    openai = pytest.importorskip("openai", reason="openai's client is in the extra `dev`")
    with serving(run) as (process, address):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=20)
        stream = client.chat.completions.create(
            model="small", messages=[{"role": "user", "content": "the cat"}], stream=True, max_tokens=200
        )
        next(stream)
        process.send_signal(signal.SIGTERM)
        reasons = [chunk.choices[0].finish_reason for chunk in stream]
        assert reasons[-1] in ("stop", "length")
        assert process.wait(20) == 0
        assert process.stderr and "Traceback" not in (err := process.stderr.read())
        assert json.loads(err.splitlines()[-1])["status"] == 200


@pytest.mark.slow
def test_the_client_that_is_printed_works(run: Path) -> None:
    """The program of the documents that uses the openai client, with the address and the model's name of this one."""
    pytest.importorskip("openai", reason="openai's client is in the extra `dev`")
    text = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    )
    found = re.search(r"^```python\n(from openai import .*?)^```", text, re.DOTALL | re.MULTILINE)
    if not found:
        pytest.skip("no document has a program that uses the client")
    with serving(run) as (_, address):
        program = re.sub(r"http://127\.0\.0\.1:8000", address, found[1])
        program = re.sub(r'model="[^"]*"', 'model="small"', program)
        ran = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.strip()
