"""`instructgpt exercise`, from an empty folder to a solved exercise."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from instructgpt.cli import run_command
from instructgpt.course import attempt, exercises
from instructgpt.course.exercise import exercise, names
from instructgpt.flags import program, run_main

Call = Callable[..., tuple[int, str, str]]
RIGHT = "    log_ratio = reference - logprobs\n    return log_ratio.expm1() - log_ratio\n"

RIGHT_FILE = f"def kl_k3(logprobs, reference):\n{RIGHT}"


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Runs `exercise ARGV` in an empty folder: exit code, standard output, standard error."""

    def call(*argv: str) -> tuple[int, str, str]:
        code = run_main(lambda: run_command(["exercise", *argv, "--folder", str(tmp_path / "mine")]))
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def begun(call: Call, tmp_path: Path) -> Path:
    """The file of an exercise that was started."""
    assert call("start", "kl_estimators")[0] == 0
    return tmp_path / "mine" / "kl_estimators.py"


def write(path: Path, body: str) -> None:
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("    raise NotImplementedError\n", body), encoding="utf-8")


def test_start_check_hint_solution_list(call: Call, begun: Path) -> None:
    text = begun.read_text(encoding="utf-8")
    assert "def kl_k3(logprobs: Tensor, reference: Tensor) -> Tensor:" in text and "expm1" not in text
    code, told, _ = call("check", "kl_estimators")
    assert code == 1 and told.count("\n") == 1 and "still to be written" in told
    hints = [call("hint", "kl_estimators")[1] for _ in range(4)]
    assert [hint.partition(":")[0] for hint in hints] == [f"hint {n} of 3" for n in (1, 2, 3, 3)]
    assert len(set(hints)) == 3 and hints[2] == hints[3]
    write(begun, "    return logprobs - reference\n")
    code, told, _ = call("check", "kl_estimators")
    assert code == 1 and "known mistake: this is k1" in told and "expected  [0.3069]" in told
    write_anew = begun.read_text(encoding="utf-8").replace("    return logprobs - reference\n", RIGHT)
    begun.write_text(write_anew, encoding="utf-8")
    code, told, _ = call("check", "kl_estimators")
    assert code == 0 and told.startswith("right: kl_estimators passes all 7 checks")
    code, shown, _ = call("solution", "kl_estimators")
    assert code == 0 and shown.startswith("# instructgpt/objectives/policy.py:") and "expm1" in shown
    progress = json.loads((begun.parent / "progress.json").read_text(encoding="utf-8"))
    assert progress == {"kl_estimators": {"tries": 3, "hints": 3, "solved": True, "seen": True}}
    code, listed, _ = call("list")
    assert code == 0 and f"1 of {len(names())} solved (✓; begun: ·) in {begun.parent}. Begin" in listed
    assert [line for line in listed.splitlines() if "✓" in line and "kl_estimators" in line]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            "    import time\n    while True:\n        time.sleep(1)\n",
            "wrong: it had not ended after 2 s, in check 1 of 7 (both models agree: 0)",
        ),
        ("    import os\n    os._exit(3)\n", "wrong: it ended its process (exit code 3), in check 1 of 7"),
        ("    raise SystemExit('no')\n", "wrong: it ended its process (exit code 1), in check 1 of 7"),
        ("    return logprobs[1000]\n", "got       IndexError: index 1000 is out of bounds"),
        ("    logprobs -= reference\n    return logprobs\n", "got       changes what it is given: logprobs"),
        (
            "    print('here')\n    print(1)\n" + RIGHT,
            "it printed:\n  here\n  1\n  here\n" + "  1\n  here\n" * 5 + "  1\nright:",
        ),
        ("    print('no\\x1b[1m')\n    return None\n", "it printed in check 1:\n  no [1m\nwrong:"),
        (
            "    for i in range(25):\n        print(len(logprobs), i)\n    return logprobs * 0\n",
            "it printed in check 2:\n  1 0\n"
            + "".join(f"  1 {i}\n" for i in range(1, 20))
            + "  … 5 more lines\nwrong:",
        ),
        ("    import os\n    print('last', flush=True)\n    os._exit(3)\n", "it printed in check 1:\n  last\nwrong:"),
        ("    return None\n", "got       None"),
    ],
)
def test_what_goes_wrong_is_told(
    call: Call, begun: Path, body: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = replace(exercise("kl_estimators"), seconds=2.0)
    monkeypatch.setattr(attempt, "exercise", lambda name: quick)
    write(begun, body)
    code, out, err = call("check", "kl_estimators")
    assert told in out and not err and code == int("right:" not in told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def kl_k3(:\n", ":1: is not Python: "),
        ("import torch\n\nx = 1\n", ": has no function 'kl_k3' at its left margin"),
        ("import torch\nx = y\ndef kl_k3(logprobs, reference): ...\n", ":2: importing it raised NameError: name 'y'"),
        ("def kl_k3(logprobs, reference): ...\ndel kl_k3\n", ": has no function 'kl_k3'"),
    ],
)
def test_a_file_that_cannot_be_judged_is_the_users_mistake(call: Call, begun: Path, text: str, told: str) -> None:
    begun.write_text(text, encoding="utf-8")
    code, out, err = call("check", "kl_estimators")
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith(f"error: {begun}{told}")


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbf" + RIGHT_FILE.encode(),  # what Windows' editor puts in front
        b"# coding: latin-1\n# \xe9\n" + RIGHT_FILE.encode(),
        RIGHT_FILE.encode() + b"x = '\\d'\n",
    ],
)
def test_a_file_is_read_as_python_reads_it(begun: Path, text: bytes, recwarn: pytest.WarningsRecorder) -> None:
    begun.write_bytes(text)
    attempt.require_function(begun, "kl_k3", "")
    assert not recwarn.list and attempt.function_of(begun, "kl_k3")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"x = '\xff'\n" + RIGHT_FILE.encode(), "is not Python: "),
        (b"x = '\0'\n", "is not Python: "),
        (b"(" * 1000, "is not Python: "),
        (b"x = " + b"-" * 200_000 + b"1\n", "is not Python: "),
        (RIGHT_FILE.replace("kl_k3", "kl_3").encode(), "has no function 'kl_k3' at its left margin"),
    ],
)
def test_what_is_no_such_file_is_told(call: Call, begun: Path, text: bytes, told: str) -> None:
    begun.write_bytes(text)
    code, out, err = call("check", "kl_estimators")
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith(f"error: {begun}:") and told in err


OURS = "from instructgpt.objectives.policy import kl_k3 as ours\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"import sys\nsys.exit(0)\n{RIGHT_FILE}", "wrong: it ended its process (exit code 0), on import\n"),
        (f"{RIGHT_FILE}{OURS}kl_k3 = ours\n", "wrong: its kl_k3 is our own, imported: write it yourself\n"),
        (
            f"{OURS}def kl_k3(logprobs, reference):\n    return ours(logprobs, reference)\n",
            "wrong: it calls our own kl_k3, which it is to replace: write it yourself\n",
        ),
        (
            "from instructgpt.course import judge\ndef kl_k3(logprobs, reference):\n"
            "    judge.same = lambda *given: True\n",
            "wrong: it replaces instructgpt.course.judge.same, which others rely on\n",
        ),
        (
            "from instructgpt.course import attempt, judge\nattempt.judge = lambda *given: judge.Verdict(7, 0)\n"
            "def kl_k3(logprobs, reference): ...\n",
            "wrong: it replaces instructgpt.course.attempt.judge, which others rely on\n",
        ),
        (
            "def kl_k3(logprobs, reference):\n    for _ in range(200):\n        print('x' * 10000)\n",
            "wrong: it had printed 1 MB, in check 7 of 7 (the gradient): does a loop print for ever?\n",
        ),
    ],
)
def test_what_a_file_may_try(call: Call, begun: Path, text: str, told: str) -> None:
    begun.write_text(text, encoding="utf-8")
    code, out, err = call("check", "kl_estimators")
    assert (
        code == 1 and not err and out.endswith(told) and out.count("\n") == (23 if out.startswith("it printed") else 1)
    )


def test_a_folder_in_the_place_of_the_file_is_told(call: Call, begun: Path) -> None:
    begun.unlink()
    begun.mkdir()
    code, out, err = call("check", "kl_estimators")
    assert (code, out, err) == (2, "", f"error: {begun}: cannot be read: Is a directory\n")


def test_a_file_that_removes_the_record_of_progress_loses_nothing(call: Call, begun: Path) -> None:
    call("hint", "gae")
    text = f"import shutil\nshutil.rmtree({str(begun.parent)!r})\n{RIGHT_FILE}"
    begun.write_text(text, encoding="utf-8")
    assert call("check", "kl_estimators")[0] == 0
    found = json.loads(begun.with_name("progress.json").read_text(encoding="utf-8"))
    assert found == {"gae": {"hints": 1}, "kl_estimators": {"tries": 1, "solved": True}}


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["start"], "needs the name of an exercise"),
        (["strat", "gae"], "did you mean 'start'?"),
        (["check", "gea"], "there is no exercise 'gea'; did you mean 'gae'?"),
        (["check", "gae"], "gae.py: there is no such file; write one with: "),
        (["check", "gae", "more"], "has no use for 'more'"),
    ],
)
def test_a_wrong_command_is_told_in_one_line(call: Call, argv: list[str], told: str) -> None:
    code, _, err = call(*argv)
    assert code == 2 and told in err and err.count("\n") == 1


def commands_in(text: str) -> list[list[str]]:
    """The commands at the ends of a text's lines, as a shell splits them, without the program."""
    lines = re.findall(rf"^.*{re.escape(program())} (exercise .*)$", text, re.MULTILINE)
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize(
    ("folder", "flag"),
    [
        ("exercises", []),  # the default
        ("mine", ["--folder", "mine"]),
        ("../its a 'b'", ["--folder", "../its a 'b'"]),
        ("$HOME;ls", ["--folder", "$HOME;ls"]),
        ("C:\\new\\Umlaut", ["--folder", "C:\\new\\Umlaut"]),
        ("--old", ["--folder=--old"]),
        ("", ["--folder", ""]),
    ],
)
def test_every_command_that_is_said_names_the_folder(
    folder: str, flag: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def said(*argv: str) -> list[list[str]]:
        run_main(lambda: run_command(["exercise", *argv, f"--folder={folder}"]))
        return commands_in("".join(capfd.readouterr()))

    assert said("list") == [["exercise", "start", "NAME", *flag]]
    assert said("check") == [["exercise", "list", *flag]]
    assert said("check", "gae") == [["exercise", "start", "gae", *flag]]
    assert said("start", "gae") == [["exercise", "check", "gae", *flag]]
    text = Path(folder, "gae.py").read_text(encoding="utf-8")
    assert commands_in(text) == [["exercise", "check", "gae", *flag]]
    ast.parse(text)


def test_a_file_begun_is_python_whatever_its_folder_is_called() -> None:
    ast.parse(attempt.beginning("gae", 'exercise check gae --folder \'two\nlines """ \\U\''))


@pytest.mark.parametrize("action", ["list", "start", "check", "hint", "solution"])
@pytest.mark.parametrize("below", [".", "below", "far/below"])
def test_a_file_in_the_place_of_the_folder_is_told(
    action: str, below: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file.md").write_text("mine", encoding="utf-8")
    argv = [action, *(["gae"] if action != "list" else []), "--folder", str(tmp_path / "file.md" / below)]
    code = run_main(lambda: run_command(["exercise", *argv]))
    told = capfd.readouterr()
    assert code == 2 and not told.out
    assert told.err == f"error: {tmp_path}/file.md: is a file, and --folder names a folder\n"


def test_the_list_says_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(["exercise"]) == 0
    assert f"0 of {len(names())} solved (✓; begun: ·) in {tmp_path}/exercises, which is not there yet." in (
        capfd.readouterr().out
    )


def test_a_file_that_is_there_stays(call: Call, begun: Path) -> None:
    begun.write_text("mine", encoding="utf-8")
    code, _, err = call("start", "kl_estimators")
    assert code == 2 and "is there already" in err and begun.read_text(encoding="utf-8") == "mine"


def test_a_broken_record_of_progress_is_told(call: Call, begun: Path) -> None:
    record = begun.with_name("progress.json")
    for text in ("{", "[]", '{"gae": 1}'):
        record.write_text(text, encoding="utf-8")
        for argv in (["list"], ["start", "gae"], ["check", "kl_estimators"], ["hint", "gae"], ["solution", "gae"]):
            code, out, err = call(*argv)
            assert code == 2 and err.startswith(f"error: {record}: is no record of progress") and not out
        assert record.read_text(encoding="utf-8") == text and not record.with_name("gae.py").exists()


def test_the_file_that_a_teacher_adds_is_found(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "halves.py").write_text(
        "from instructgpt.course.exercise import Check, Exercise, Mistake\n"
        "EXERCISE = Exercise(place=999, title='Halves', about='One. Two.',\n"
        "    target='instructgpt.objectives.policy.kl_k1',\n"
        "    checks=(Check('by hand', {'logprobs': 3.0, 'reference': 1.0}, 2.0),),\n"
        "    mistakes=(Mistake('the sign is wrong', 'logprobs - reference', 'reference - logprobs'),),\n"
        "    hints=('a', 'b', 'c'))\n"
    )
    assert isinstance(exercises, ModuleType)
    monkeypatch.setattr(exercises, "__path__", [*exercises.__path__, str(tmp_path)])
    assert names()[-1] == "halves"
    assert " Halves" in call("list")[1]
    assert call("start", "halves")[0] == 0
    assert "def kl_k1" in (tmp_path / "mine" / "halves.py").read_text(encoding="utf-8")


def test_help_says_what_there_is(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(["exercise", "--help"]) == 0
    told = capfd.readouterr().out
    assert all(word in told for word in ("list", "start", "check", "hint", "solution"))
