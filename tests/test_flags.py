from __future__ import annotations

import errno
import io
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.errors import UserError
from instructgpt.flags import Escaped, given_value, parse, program, run_main, train_command, unescape


@dataclass(frozen=True)
class Inner:
    """How to train."""

    max_steps: int = 0
    """Stop after this many updates."""
    learning_rate: float = 1e-3
    """Size of an update."""


@dataclass(frozen=True)
class Outer:
    """What to train."""

    text: tuple[str, ...] = ()
    """Files to read."""
    kind: Literal["bpe", "unigram"] = "bpe"
    """How to cut words."""
    prompt: str = "hello"
    """What to say."""
    resume: bool = False
    """Go on."""
    weights: tuple[float, ...] = ()
    """How often."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decays."""
    limit: int | None = None
    """At most."""
    stop: tuple[Escaped, ...] = ()
    """Where to end."""
    pairs: tuple[tuple[int, float], ...] = ()
    """Which, and how much."""
    fit: Inner = field(default_factory=Inner)


def read(*argv: str, default: Outer | None = None) -> Outer:
    return parse(Outer, argv, "train.py test", default)


def test_flags_of_every_type():
    argv = "--text a b --kind unigram --resume --weights 1 2.5 --betas 0.5 0.6 --limit 3"
    assert read(*argv.split(), "--max-steps", "7", "--learning-rate", "3e-4") == Outer(
        ("a", "b"), "unigram", "hello", True, (1.0, 2.5), (0.5, 0.6), 3, (), (), Inner(7, 3e-4)
    )
    assert read("--pairs", "5", "-100", "7", "2.5").pairs == ((5, -100.0), (7, 2.5))


def test_defaults_come_from_the_given_instance():
    default = Outer(text=("x",), resume=True, fit=Inner(max_steps=5))
    assert read(default=default) == default
    assert read("--learning-rate", "1", default=default).fit == Inner(5, 1.0)
    assert not read("--no-resume", default=default).resume
    assert read("--text", default=default).text == ()


def test_underscores_equals_signs_and_the_last_of_two():
    assert read("--max_steps=3").fit.max_steps == 3
    assert read("--max-steps", "3", "--max-steps", "4").fit.max_steps == 4


@given(st.text().filter(lambda text: not text.startswith("--") and text != "-h"))
def test_any_text_is_a_value(text: str):
    assert read("--prompt", text).prompt == text
    assert read(f"--prompt={text}", "--max-steps", "1").prompt == text


@pytest.mark.parametrize("text", ["--hello", "-h", "--max-steps", "--a=b", "--hello world"])
def test_a_text_that_looks_like_a_flag_goes_with_an_equals_sign(text: str):
    assert read(f"--prompt={text}").prompt == text


MISTAKES = {
    "--max-stps 3": "train.py test has no flag --max-stps; did you mean '--max-steps'?",
    "--no-resum": "train.py test has no flag --no-resum; did you mean '--no-resume'?",
    "--qqqqqqq 1": "train.py test has no flag --qqqqqqq; see --help",
    "--kind unigran": "--kind unigran is unknown; did you mean 'unigram'?",
    "--kind zzz": "--kind zzz is unknown; choose one of: bpe, unigram",
    "--kind": "--kind needs a value: one of bpe, unigram",
    "--max-steps 3.5": "--max-steps '3.5' is not a whole number",
    "--max-steps": "--max-steps needs a value: a whole number",
    "--max-steps --resume": "--max-steps needs a value: a whole number",
    "--learning-rate fast": "--learning-rate 'fast' is not a number",
    "--learning-rate 1 2": "--learning-rate takes one value; '2' is one too many (put a text with spaces in quotes)",
    "--weights 1 x": "--weights 'x' is not a number",
    "--pairs 5 1 6": "--pairs takes 2 values for each, and 3 cannot be divided so",
    "--pairs 5 x": "--pairs 'x' is not a number",
    "--pairs 1.5 2": "--pairs '1.5' is not a whole number",
    "--betas 0.9": "--betas takes 2 values, not 1",
    "--limit many": "--limit 'many' is not a whole number",
    "--resume true": "--resume takes no value, but got 'true'; write --resume or --no-resume",
    "--no-resume=1": "--no-resume takes no value, but got '1'; write --resume or --no-resume",
    "stray --resume": "train.py test has no use for 'stray': every value follows its flag, see --help",
    "--prompt --hello": "--prompt needs a value; one that begins with -- goes --prompt=VALUE",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line(line: str, capsys: pytest.CaptureFixture[str]):
    assert run_main(lambda: read(*line.split()) and None) == 2
    assert capsys.readouterr() == ("", f"error: {MISTAKES[line]}\n")


@given(st.lists(st.sampled_from(["--text", "--resume", "--kind", "-x", "--", "1", "a b", "", "--max-steps=", "-1"])))
def test_no_command_line_shows_a_box_or_a_traceback(argv: list[str]):
    try:
        assert isinstance(read(*argv), Outer)
    except UserError as error:
        assert "\n" not in str(error) and "│" not in str(error) and len(str(error)) > 10


def test_help_shows_docstrings_and_defaults(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit:
        read("--kind", "unigram", "--help", default=Outer(fit=Inner(max_steps=123)))
    assert exit.value.code == 0
    told = capsys.readouterr().out
    assert all(part in told for part in ("--max-steps", "Stop after this many updates.", "default: 123", "--no-resume"))


def test_a_value_is_found_ahead_of_parsing():
    assert given_value(["--a", "1", "--preset", "tiny", "--b"], "--preset") == "tiny"
    assert given_value(["--preset=small"], "--preset") == "small"
    assert given_value(["--prompt", "use --preset tiny"], "--preset") is None
    assert given_value(["--preset"], "--preset") is None


def raising(error: BaseException):
    def function() -> int:
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (UserError("is broken", "file.json", 3), 2, "error: file.json:3: is broken\n"),
        (UserError("two\nlines"), 2, "error: two lines\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (OSError(errno.ENOSPC, "No space left on device", "x.bin"), 2, "error: x.bin: the disk is full"),
        (ValueError("a bug"), 1, "Traceback (most recent call last)"),
        (OSError(errno.EIO, "I/O error"), 1, "Traceback (most recent call last)"),
    ],
)
def test_exceptions_become_exit_codes(error: BaseException, code: int, told: str, capsys: pytest.CaptureFixture[str]):
    assert run_main(raising(error)) == code
    assert capsys.readouterr().err.startswith(told)


def test_a_command_returns_its_own_code():
    assert run_main(lambda: None) == 0
    assert run_main(lambda: 3) == 3


def test_a_reader_that_goes_away_is_no_traceback():
    program = (
        "import sys; from instructgpt.flags import run_main\n"
        "sys.exit(run_main(lambda: [print('x' * 100) for _ in range(10_000)] and None))"
    )
    running = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout and running.stderr
    running.stdout.readline()
    running.stdout.close()
    assert (running.stderr.read(), running.wait()) == (b"", 1)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"\n", "\n"),
        (r"a\tb\r\n", "a\tb\r\n"),
        (r"\\n", r"\n"),
        (r"\\\n", "\\\n"),
        (r"C:\data", r"C:\data"),
        ("\\", "\\"),
        ("\n", "\n"),
        ("", ""),
    ],
)
def test_escapes_of_a_flag(written: str, meant: str):
    assert unescape(written) == meant


@given(st.text())
def test_what_is_escaped_comes_back(text: str):
    escaped = text.replace("\\", r"\\").replace("\n", r"\n").replace("\t", r"\t").replace("\r", r"\r")
    assert unescape(escaped) == text


def test_only_texts_that_say_so_have_escapes():
    assert read("--stop", r"\n", r"a\tb", r"C:\\n", "--prompt", r"a\nb") == Outer(
        prompt=r"a\nb", stop=("\n", "a\tb", r"C:\n")
    )
    assert read(r"--stop=\n").stop == ("\n",)
    assert read(default=Outer(stop=(r"\n",))).stop == (r"\n",)


@pytest.mark.parametrize(
    ("called", "name", "trains"),
    [
        ("train.py", "train.py", "train.py sft"),
        ("/somewhere/instructgpt/train.py", "train.py", "train.py sft"),
        ("/lib/instructgpt/__main__.py", "bin/python -m instructgpt", "bin/python -m instructgpt train sft"),
        ("/usr/bin/instructgpt", "instructgpt", "instructgpt train sft"),
        (r"instructgpt.exe", "instructgpt", "instructgpt train sft"),
        ("", "instructgpt", "instructgpt train sft"),
    ],
)
def test_the_program_is_named_as_it_was_called(called: str, name: str, trains: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", [called, "sft"])
    monkeypatch.setattr("sys.orig_argv", ["bin/python", "-m", "instructgpt", "sft"])
    assert (program(), train_command("sft")) == (name, trains)


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", r"\u5e3d\xe9 \U0001f600"),
        ("cp1252", r"\u5e3dé \U0001f600"),
        ("gbk", r"帽é \U0001f600"),
        ("utf-8", "帽é 😀"),
    ],
)
def test_what_the_terminal_cannot_show_is_spelt(encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding=encoding))
    assert run_main(lambda: print("帽é 😀", flush=True)) == 0
    assert written.getvalue() == f"{shown}\n".encode(encoding)
