"""The lab as its user meets it: commands, names, mistakes, a kernel of one's own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.lab.__main__ import main
from kernels.lab.find import UsageError, find, load, package_kernels
from kernels.lab.new import TEMPLATE

ROOT = Path(__file__).parents[3]


def python_from(folder: Path) -> str:
    return os.path.relpath(sys.executable, folder)


def lab(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The lab in a process of its own, started in `folder` without any of our settings, by a path as users write it."""
    settings = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [python_from(folder), "-m", "kernels.lab", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**settings, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )


def test_a_new_kernel_passes_and_a_bug_in_it_is_found(tmp_path: Path):
    written = lab(tmp_path, "new", "my_kernel")
    assert written.returncode == 0, written.stderr
    path = tmp_path / "my_kernel.py"
    assert "squared_relu" not in path.read_text(encoding="utf-8")
    right = lab(tmp_path, "check", "my_kernel.py", "--examples", "10")
    assert (right.returncode, right.stderr) == (0, "")
    assert right.stdout.startswith("my_kernel.py: right in 10 examples") and "bfloat16" in right.stdout
    path.write_text(path.read_text(encoding="utf-8").replace("= 2 * tl.", "= 3 * tl."), encoding="utf-8")
    wrong = lab(tmp_path, "check", "my_kernel.py", "--examples", "10")
    assert wrong.returncode == 1 and "dx: error" in wrong.stdout
    assert f"\nAgain: {python_from(tmp_path)} -m kernels.lab check my_kernel.py --case '{{" in wrong.stdout
    refused = lab(tmp_path, "new", "my_kernel")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1) and "exists already" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("check sofmax", "did you mean 'softmax'?"),
        ("check zzz", "there are"),
        ("check no/such/file.py", "no file no/such/file.py"),
        ("check tests/conftest.py", "has no function `spec`"),
        ("check softmax --case {", "--case is not JSON"),
        ("check softmax --case 3", "must be a JSON object"),
        ("check softmax --examples 0", "it must be at least 1"),
        ("check softmax --dtype float8", "invalid choice: 'float8'"),
        ("chek softmax", "did you mean 'check'?"),
        ("new 3d", "cannot be an op's name"),
        ("", "required: COMMAND"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments: str, message: str, capsys: pytest.CaptureFixture[str]):
    try:
        status = main(arguments.split())
    except SystemExit as ended:
        status = ended.code
    told = capsys.readouterr().err
    assert status == 2 and told.startswith("error: ") and told.count("\n") == 1
    assert message in told


def test_list_names_every_kernel(capsys: pytest.CaptureFixture[str]):
    kernels = package_kernels()
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    for kernel in kernels:
        assert find(kernel.target) == [kernel] and kernel.target in listed


def test_what_the_terminal_cannot_show_is_spelt(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert main(["list"]) == 0
    print("–", flush=True)
    assert sys.stdout.buffer.getvalue().endswith(b"\\u2013\n")  # pyright: ignore[reportAttributeAccessIssue]


def test_a_case_is_judged_alone(capsys: pytest.CaptureFixture[str]):
    case = json.dumps({"rows": 2, "columns": 3})
    assert main(["check", str(TEMPLATE), "--case", case, "--dtype", "bfloat16"]) == 0
    assert "float16 " not in capsys.readouterr().out


VERDICT = 'print("mine.py: right in 100 examples", flush=True)\n'


@pytest.mark.parametrize(
    ("at", "planted", "code", "told"),
    [
        ("    x = x.contiguous()\n", f"    {VERDICT}    import os; os._exit(0)\n", 1, "its process died (exit code 0)"),
        pytest.param(
            "import torch\n",
            f"{VERDICT}import os; os._exit(0)\n",
            2,
            "its process died when it was imported (exit code 0)",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "import torch\n",
            f"import kernels.lab.check as c\nc.in_order = lambda *_: [({VERDICT[6:-14]}, 0)]\n",
            1,
            "it replaces kernels.lab.check.in_order",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["in the op", "on import", "replaces who asks"],
)
def test_a_verdict_is_the_labs_alone(
    at: str, planted: str, code: int, told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """What a file prints goes to stderr, and a process that ends is none that passes."""
    source = TEMPLATE.read_text(encoding="utf-8").replace("my_kernels::", "judged::")
    assert at in source
    path = tmp_path / "mine.py"
    path.write_text(source.replace(at, planted + at, 1), encoding="utf-8")
    assert main(["check", str(path), "--examples", "2"]) == code
    printed = capfd.readouterr()
    assert "right in 100 examples" not in printed.out
    assert told in (printed.err if code == 2 else printed.out)


def test_a_file_with_several_ops(tmp_path: Path):
    path = tmp_path / "two.py"
    path.write_text(
        "from kernels.lab.new import TEMPLATE\ndef first_spec(): pass\ndef _helper(): pass\ndef second_spec(): pass\n",
        encoding="utf-8",
    )
    assert [kernel.target for kernel in find(str(path))] == [f"{path}:first", f"{path}:second"]
    assert [kernel.declare.__name__ for kernel in find(f"{path}:second")] == ["second_spec"]
    with pytest.raises(UsageError, match="no op 'third'; it has first, second"):
        find(f"{path}:third")
    assert load(path).TEMPLATE == TEMPLATE


def test_kernels_can_be_imported_without_triton():
    program = "import sys; sys.modules['triton'] = None; from kernels.launch import tl; assert tl is None"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
