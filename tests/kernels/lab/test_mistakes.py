"""A faulty file or question is told in one line; what the interpreter cannot run is not called wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kernels.lab import Inputs
from kernels.lab.__main__ import main
from kernels.lab.check import check, require_fitting
from kernels.lab.find import UsageError, find, load
from kernels.lab.interpreter import Unsupported
from kernels.launch import INTERPRETED

interpreted = pytest.mark.skipif(not INTERPRETED, reason="these run natively")
TOY = Path(__file__).with_name("toy.py")
START = "from kernels.lab import Inputs, Spec\n"


@interpreted
@pytest.mark.parametrize(
    ("op", "reason"),
    [
        ("libdevice", "calls libdevice.tanh, which only GPUs have"),
        ("cuda", "which only GPUs have"),
        ("assembly", "inline_asm not supported"),
        ("tuned", "@triton.autotune"),
        ("device", "asks for a CUDA device"),
    ],
)
def test_what_the_interpreter_cannot_run_is_not_wrong(op: str, reason: str):
    foreign = load(Path(__file__).with_name("foreign.py"))
    with pytest.raises(Unsupported, match=reason.replace("(", r"\(")):
        check(getattr(foreign, f"{op}_spec")(), examples=2, layouts=["contiguous"])


@interpreted
def test_a_fault_of_the_kernel_is_wrong():
    foreign = load(Path(__file__).with_name("foreign.py"))
    report = check(foreign.misspelt_spec(), examples=2, shrink=False)
    assert report.failure is not None and report.failure.is_exception and "'M' is not defined" in report.failure.what


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def spec(:\n    pass\n", "mine.py:1: invalid syntax"),
        ("x = 1\nimport no_such_module\n", "mine.py:2: importing it raised ModuleNotFoundError: No module named"),
        ("from kernels import no_such_op\n", "mine.py:1: importing it raised ImportError"),
        (START + "def spec():\n    return missing\n", "mine.py:3: spec() raised NameError: name 'missing'"),
        (START + "def spec():\n    return Spec()\n", "mine.py:3: spec() raised TypeError: Spec.__init__() missing"),
        (START + "def spec():\n    return None\n", "mine.py: spec() returned NoneType, not a Spec"),
        (START + "def spec(size):\n    pass\n", "spec() raised TypeError: spec() missing 1 required positional"),
        ("raise ValueError('two\\nlines')\n", "mine.py:1: importing it raised ValueError: two lines"),
        ("import sys\nsys.exit(3)\n", "mine.py:2: importing it raised SystemExit: 3"),
    ],
)
def test_a_faulty_file_is_told_in_one_line(text: str, message: str, tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as told:
        assert [kernel.spec for kernel in find(str(path))]
    assert message in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"columns": 3}, "missing a required argument: 'rows'; a case has rows, columns"),
        ({"rows": 2, "columns": 3, "depth": 1}, "got an unexpected keyword argument 'depth'; a case has rows, columns"),
        ({"rows": "two", "columns": 3}, "--case does not fit toy: TypeError"),
        ({"rows": -1, "columns": 3}, "--case does not fit toy: RuntimeError"),
        ({"rows": 2, "columns": 3, "seed": "x"}, "--case does not fit toy: "),
        ({"rows": 2, "columns": 3, "dtype": "float8"}, "dtype is 'float8'; it must be one of float32"),
    ],
)
def test_a_case_that_the_spec_does_not_have(case: dict, message: str):
    (kernel,) = find(str(TOY))
    with pytest.raises(UsageError) as told:
        require_fitting(kernel.spec, case)
    assert message in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("check tests", "tests is a folder; name a file in it"),
        ("compile softmax --arch 70", "invalid choice: '70'"),
        ("mutants sofmax", "did you mean 'softmax'?"),
        ("mutants softmax --examples 0", "it must be at least 1"),
        ("compile tests/kernels/lab/cheats", "no kernel"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setattr("kernels.lab.__main__.begin_anew_where_triton_must", lambda *_: None)
    try:
        status = main(arguments.split())
    except SystemExit as ended:
        status = ended.code
    told = capsys.readouterr().err
    assert status == 2 and told.startswith("error: ") and told.count("\n") == 1 and message in told


def test_inputs_that_do_not_fit_are_told():
    tensors = {"x": torch.ones(3)}
    for fields in ({"gradients": ("z",)}, {"float32": ("z",)}, {"contiguous": ("x", "z")}):
        with pytest.raises(ValueError, match="name 'z'; the tensors are x"):
            Inputs(tensors, **fields)  # pyright: ignore[reportArgumentType]
    (kernel,) = find(str(TOY))
    with pytest.raises(TypeError, match="made dict of a case; it must be Inputs"):
        replace(kernel.spec, inputs=lambda *_, **__: tensors).make({})


def test_a_reference_that_fails_is_the_specs_fault(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    path = tmp_path / "mine.py"
    source = TOY.read_text(encoding="utf-8").replace("return 2 * x + bias\n", "return 2 * x + biass\n", 1)
    path.write_text(source.replace("lab_tests::toy", "lab_tests::toy_with_a_faulty_reference"), encoding="utf-8")
    assert main(["check", str(path), "--examples", "2"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {path}:") and "NameError: name 'biass' is not defined" in told
    assert told.count("\n") == 1
