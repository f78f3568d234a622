"""Every kernel that has a spec is checked by that alone, on a GPU natively and elsewhere in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

from kernels.lab.calls import prepare
from kernels.lab.check import check, check_case
from kernels.lab.find import Kernel, op_name, package_kernels
from kernels.lab.mutants import run_mutants
from kernels.lab.spec import DTYPES

KERNELS = [pytest.param(kernel, id=op_name(kernel)) for kernel in package_kernels()]
EQUAL_SCORES = {"width": 2, "vocabulary": 130, "size": 0.0}
FEW_ROWS = {"width": 1, "vocabulary": 10, "size": 8.0, "are_alike": False, "unknown": 0, "with_entropy": False}


def test_there_are_kernels():
    assert KERNELS


@pytest.mark.parametrize("kernel", KERNELS)
def test_values_and_gradients(kernel: Kernel):
    report = check(kernel.spec, settings().max_examples, every_dtype=False, target=kernel.target)
    assert report.failure is None, str(report)
    # A dtype that no example happened to draw has one of its own.
    judged = {name for row in report.worst.values() for name in row}
    for name in {name for name, dtype in DTYPES.items() if dtype in kernel.spec.dtypes} - judged:
        report = check(kernel.spec, 1, [name], target=kernel.target)
        assert report.failure is None and report.worst, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_planted_bugs_are_caught(kernel: Kernel):
    outcomes = list(run_mutants(kernel, examples=200))
    assert len(outcomes) >= 6
    assert [outcome for outcome in outcomes if not outcome.is_caught] == []


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="sums are those of the interpreter")
def test_a_limit_holds_however_the_naive_version_happens_to_add_up():
    """4,096 rows summed into 16 keys: with one thread of PyTorch, and with two, the naive sums differ."""
    (kernel,) = (kernel for kernel in package_kernels() if op_name(kernel) == "attention")
    sizes = {"batch": 1, "queries": 4096, "keys": 16, "kv_heads": 1, "group": 1, "head_dim": 16}
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            case = {"seed": 0, **sizes, "drift": 4.0, "size": 0.0}
            report = check_case(kernel.spec, case, ["float32"], ["summed"], kernel.target)
            assert report.failure is None, str(report)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("swiglu", {"seed": 0, "rows": 5, "columns": 20, "scale": 30.0}),
        ("swiglu", {"seed": 3, "rows": 5, "columns": 20, "scale": 40.0}),
        ("gelu", {"seed": 1, "rows": 5, "columns": 20, "scale": 30.0, "approximate": "tanh"}),
        ("linear_logprobs", {"seed": 10, "rows": 10, **FEW_ROWS}),
        ("linear_logprobs", {"seed": 11, "rows": 3, **FEW_ROWS}),
        *(("linear_logprobs", {"seed": seed, "rows": 1, **FEW_ROWS, **EQUAL_SCORES}) for seed in (1, 2)),
        ("linear_cross_entropy", {"seed": 3, "rows": 1, "are_alike": False, "unknown": 0, **EQUAL_SCORES}),
    ],
)
def test_a_limit_holds_where_few_numbers_matter_or_a_factor_is_tiny(name: str, case: dict):
    """One element is most of a gradient's norm; sigmoid of -88 is smaller than any normal number; 130 equal weights are
    rounded alike."""
    (kernel,) = (kernel for kernel in package_kernels() if op_name(kernel) == name)
    report = check_case(kernel.spec, case, ["float32", "float16", "bfloat16"], ["contiguous"], kernel.target)
    assert report.failure is None, str(report)


@pytest.mark.parametrize("kernel", KERNELS)
def test_builds_return_all_that_is_judged(kernel: Kernel):
    """A GPU judges them, so they must not leave out a result."""
    call = prepare(kernel.spec, kernel.spec.builds[0], torch.device("cpu"))
    assert len(call.forward(kernel.spec.reference)) == len(kernel.spec.outputs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kernel", KERNELS)
def test_realistic_sizes_natively(kernel: Kernel):
    """What ships, at the sizes that it ships for: right, and the same bits twice."""
    for case in kernel.spec.builds:
        report = check_case(kernel.spec, case, [case.get("dtype", "bfloat16")], ["contiguous", "padded"], kernel.target)
        assert report.failure is None, str(report)
