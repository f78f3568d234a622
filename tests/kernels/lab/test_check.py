"""Faults of every kind in a toy kernel are found, and told; the same kernel without them passes."""

from __future__ import annotations

import json
import math
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.lab.check import check, check_case
from kernels.lab.find import Kernel, find, load, package_kernels
from kernels.lab.limits import Wrong
from kernels.lab.mutants import plant, run_mutants
from kernels.lab.spec import Inputs, Mutant, Spec, Tolerance
from kernels.lab.trial import require_written_out
from kernels.launch import INTERPRETED, jit, tl

TOY = Path(__file__).with_name("toy.py")
toy = load(TOY)
DTYPES = ("float32", "float16", "bfloat16")


class WrongBias(torch.autograd.Function):
    """The toy with a gradient of its bias that is off by 1%."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        return toy.toy(x, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (dy,) = gradients
        return 2 * dy, 1.01 * dy.sum(0)


@jit
def last_program(out):
    tl.store(out, tl.program_id(0))


@jit
def shapes_that_do_not_fit(x):
    tl.store(x + tl.arange(0, 4) + tl.arange(0, 8), 0.0)


@jit
def calls_what_does_not_fit(x):
    shapes_that_do_not_fit(x)


def altered(**changes: Any) -> Spec:
    return replace(toy.spec(), **changes)


def fault(spec: Spec) -> str:
    """What `check` says is wrong."""
    report = check(spec, examples=40, shrink=False)
    assert report.failure is not None, str(report)
    return report.failure.what


def test_a_right_kernel_passes_in_every_dtype_and_layout():
    report = check(toy.spec(), examples=30)
    assert report.failure is None, str(report)
    assert report.examples == 30
    assert {name: tuple(row) for name, row in report.worst.items()} == dict.fromkeys(("y", "dx", "dbias"), DTYPES)
    assert all(0 <= ratio <= 1 for row in report.worst.values() for ratio in row.values())
    assert "bfloat16" in str(report) and "dbias" in str(report)


def test_wrong_values_are_told_with_the_smallest_example_and_its_command_line():
    report = check(altered(op=lambda x, bias: toy.toy(x, bias) * (1 if x.size(1) < 5 else 1.1)), target="toy.py")
    failure = report.failure
    assert failure is not None and failure.case["columns"] == 5 and failure.case["rows"] == 1
    assert failure.what.startswith("y: error") and "times its limit" in failure.what
    words = shlex.split(failure.command("toy.py", "python -m kernels.lab"))
    assert words[:5] == ["python", "-m", "kernels.lab", "check", "toy.py"]
    assert json.loads(words[words.index("--case") + 1]) == failure.case
    assert shlex.join(words) in str(report)
    again = check_case(altered(op=lambda x, bias: toy.toy(x, bias) * 1.1), failure.case, [failure.dtype], ["padded"])
    assert again.failure is not None


def test_each_gradient_is_judged_by_itself():
    assert fault(altered(op=lambda x, bias: WrongBias.apply(x, bias))).startswith("dbias: error")


def test_a_missing_gradient_is_a_fault():
    assert "dbias: autograd gave no gradient" in fault(altered(op=lambda x, bias: toy.toy(x, bias.detach())))


def test_wrong_shapes_dtypes_and_counts_are_faults():
    assert "the reference gives" in fault(altered(op=lambda x, bias: toy.toy(x, bias)[None]))
    assert "the reference gives" in fault(altered(op=lambda x, bias: toy.toy(x, bias).double()))
    assert "returned 2 results" in fault(altered(op=lambda x, bias: (toy.toy(x, bias), x)))


def test_nan_and_infinity_must_be_where_the_reference_has_them():
    def inputs(generator: torch.Generator, rows: int, columns: int) -> Inputs:
        plain = toy.spec().inputs(generator, rows, columns)
        plain.tensors["x"][0, 0] = math.inf
        return plain

    spec = altered(inputs=inputs)
    assert check(spec, examples=10).failure is None
    assert "y[0, 0] is" in fault(replace(spec, op=lambda x, bias: toy.toy(x, bias).nan_to_num(posinf=0)))
    assert "is nan" in fault(altered(op=lambda x, bias: toy.toy(x, bias) * math.nan))


def test_an_input_must_come_back_as_it_was():
    def overwrites(x: Tensor, bias: Tensor) -> Tensor:
        y = toy.toy(x, bias)
        bias.data.add_(1)
        return y

    assert "bias: an input was overwritten" in fault(altered(op=overwrites))


def test_a_write_outside_of_what_was_allocated_is_found():
    def writes_too_far(x: Tensor, bias: Tensor) -> Tensor:
        workspace = torch.empty(4, dtype=x.dtype, device=x.device)
        workspace.as_strided((5,), (1,), workspace.storage_offset()).fill_(1)
        return toy.toy(x, bias)

    assert "wrote outside of a tensor that it allocated, of shape (4,)" in fault(altered(op=writes_too_far))


def test_what_was_never_written_is_found():
    def adds_garbage(x: Tensor, bias: Tensor) -> Tensor:
        return toy.toy(x, bias) + torch.empty_like(x)

    assert "memory that nobody wrote" in fault(altered(op=adds_garbage))


@pytest.mark.parametrize(("kept", "told"), [(0, "15 of its 15"), (1, "10 of its 15"), (2, "5 of its 15")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_not_stored_is_counted(kept: int, told: str, dtype: str):
    """Of three rows, the first are written."""

    def leaves_rows(x: Tensor, bias: Tensor) -> Tensor:
        right, y = toy.toy(x, bias), torch.empty_like(x)
        return torch.cat((right[:kept], y[kept:]))

    report = check_case(altered(op=leaves_rows), {"seed": 0, "rows": 3, "columns": 5}, [dtype], ["contiguous"])
    assert report.failure is not None
    assert report.failure.what.startswith(f"y: nothing was stored in {told} numbers")


@pytest.mark.skipif(not INTERPRETED, reason="the order of programs is the interpreter's")
def test_programs_that_depend_on_each_other_are_found():
    def last_wins(x: Tensor, bias: Tensor) -> Tensor:
        winner = torch.zeros(1, dtype=torch.int32, device=x.device)
        last_program[(3,)](winner)
        return toy.toy(x, bias) * (1 + 2 * winner)

    assert "depend on each other" in fault(altered(op=last_wins))


@pytest.mark.skipif(not INTERPRETED, reason="the order of programs is the interpreter's")
def test_what_is_read_beside_a_tensor_is_found_though_nan_is_mended():
    """As a kernel does that computes again whatever came out as NaN: memory beside a tensor may hold numbers, too."""

    def mending(x: Tensor, bias: Tensor) -> Tensor:
        place = x.storage_offset() + x.size(-1)
        beside = x.detach().as_strided((x.size(0), 1), (x.stride(0), 1), place)
        return toy.toy(x, bias) + beside.nan_to_num(0.0)

    case = {"seed": 0, "rows": 3, "columns": 5}
    report = check_case(altered(op=mending), case, ["float32"], ["padded"])
    assert report.failure is not None and "memory that nobody wrote" in report.failure.what
    assert check_case(toy.spec(), case, ["float32"], ["padded"]).failure is None


def test_sums_by_atomics_have_a_bound_instead_of_equal_bits():
    embedding = load(TOY.with_name("embedding.py"))
    assert "depend on each other" in fault(embedding.spec(order="fixed"))
    report = check(embedding.spec(), examples=12)
    assert report.failure is None, str(report)
    assert report.worst["dweight"]["float32"] > 0

    class HalfLost(embedding.Embedding):
        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
            (dweight, _) = embedding.Embedding.backward(ctx, *gradients)
            return dweight.bfloat16().to(dweight.dtype), None

    assert fault(embedding.spec(op=lambda weight, index: HalfLost.apply(weight, index))).startswith("dweight: ")


def test_one_number_that_stands_for_many_is_a_fault():
    y = torch.ones(3, 1).expand(3, 4)
    with pytest.raises(Wrong, match="y: has stride 0"):
        require_written_out("y", y, torch.ones(3, 4))
    require_written_out("y", y, y)
    require_written_out("y", torch.empty(0, 4).as_strided((0, 4), (4, 0)), torch.empty(0, 4))


def test_an_exception_is_a_fault_of_its_own_kind():
    def refuses(x: Tensor, bias: Tensor) -> Tensor:
        raise TypeError("not today")

    report = check(altered(op=refuses), examples=3, shrink=False)
    assert report.failure is not None and report.failure.is_exception
    assert re.fullmatch(r"raised TypeError: not today \(test_check\.py:\d+\)", report.failure.what)


@pytest.mark.skipif(not INTERPRETED, reason="it is the interpreter that wraps what is raised")
@pytest.mark.parametrize("kernel", [shapes_that_do_not_fit, calls_what_does_not_fit])
def test_what_a_kernel_raises_is_told_with_its_own_line_and_without_the_interpreters_words(kernel: Any):
    """Also where the line stands in a function that the kernel calls: Triton wraps it once more."""

    def launched(x: Tensor, bias: Tensor) -> Tensor:
        kernel[(1,)](x)
        return x

    (line,) = [
        number for number, text in enumerate(Path(__file__).read_text().splitlines(), 1) if text.endswith("8), 0.0)")
    ]
    report = check(altered(op=launched), examples=1, shrink=False)
    assert report.failure is not None and report.failure.is_exception
    assert re.fullmatch(rf"raised ValueError: .*4 and 8 \(test_check\.py:{line}\)", report.failure.what)


def test_a_tolerance_that_nobody_can_exceed_is_refused():
    spec = altered(tolerance=Tolerance(floor=lambda *_: math.inf))
    with pytest.raises(ValueError, match="must be finite"):
        check(spec, examples=1)


def test_mutants_are_caught_and_survivors_told():
    (kernel,) = find(str(TOY))
    caught, survivor = run_mutants(kernel, examples=5)
    assert caught.is_caught and caught.examples == 1 and "y" in caught.what
    assert not survivor.is_caught and survivor.what == "survived" and survivor.examples == 5


def test_a_mutant_that_does_not_run_is_not_caught(tmp_path: Path):
    path = tmp_path / "toy.py"
    source = TOY.read_text(encoding="utf-8")
    path.write_text(source.replace('"value")', '"valu")').replace('"value = 2.0 *', '"value = 2 +* '), encoding="utf-8")
    (kernel,) = find(str(path))
    outcomes = list(run_mutants(kernel, examples=2))
    assert not any(outcome.is_caught for outcome in outcomes)
    assert "valu" in outcomes[0].what and "invalid syntax" in outcomes[1].what


def test_the_text_of_a_mutant_must_occur_once_above_the_specs(tmp_path: Path):
    (kernel,) = find(str(TOY))
    with pytest.raises(ValueError, match="'twice' occurs 2 times"):
        plant(kernel, Mutant("twice", "x.stride(", "x.size("))
    with pytest.raises(ValueError, match="occurs 0 times"):
        plant(kernel, Mutant("only in the spec", "bias forgotten", ""))


@pytest.mark.parametrize("kernel", package_kernels(), ids=lambda kernel: kernel.target)
def test_every_mutant_that_ships_can_be_planted(kernel: Kernel):
    planted = {mutant.name: plant(kernel, mutant) for mutant in kernel.spec.mutants}
    assert len(planted) == len(kernel.spec.mutants) and len(set(planted.values())) == len(planted)
