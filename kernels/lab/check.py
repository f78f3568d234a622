"""Is a kernel right? Property tests drawn from its spec, in Triton's interpreter or natively on a CUDA device."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

import hypothesis
import torch
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from kernels.lab.example import Raised, Wrong, judge
from kernels.lab.find import UsageError, add_kernel_argument, find
from kernels.lab.memory import LAYOUTS
from kernels.lab.spec import DTYPES, Case, Spec
from kernels.launch import INTERPRETED, triton


@dataclass(frozen=True)
class Failure:
    """An example that a kernel gets wrong, and how."""

    case: Case
    dtype: str
    layout: str
    what: str
    is_exception: bool = False
    """The op raised instead of returning something."""

    def command(self, target: str) -> str:
        """The command line that shows it again."""
        command = ["python", "-m", "kernels.lab", "check", target, "--case", json.dumps(self.case)]
        command += ["--dtype", self.dtype, "--layout", self.layout]
        if INTERPRETED and torch.cuda.is_available():
            command.append("--interpret")
        return shlex.join(command)


@dataclass
class Report:
    """What `check` found; printed, it is the table or the failure."""

    target: str
    """The kernel, as the command line names it."""
    examples: int = 0
    """Examples tried until the first failure, or in all."""
    worst: dict[str, dict[str, float]] = field(default_factory=dict)
    """Quantity -> dtype -> the largest error over its limit."""
    failure: Failure | None = None

    def __str__(self) -> str:
        if self.failure is not None:
            return (
                f"{self.target}: wrong after {self.examples} examples. The smallest one found:\n"
                f"  case    {json.dumps(self.failure.case)}\n"
                f"  dtype   {self.failure.dtype}\n"
                f"  layout  {self.failure.layout}\n"
                f"  {self.failure.what}\n"
                f"Again: {self.failure.command(self.target)}"
            )
        where = "in the interpreter" if INTERPRETED else f"on {torch.cuda.get_device_name()}"
        dtypes = list(dict.fromkeys(dtype for row in self.worst.values() for dtype in row))
        width = max(map(len, self.worst), default=0)
        lines = [
            f"{self.target}: right in {self.examples} examples, {where}. Worst error, as a fraction of its limit:",
            " ".join([" " * width, *(f"{dtype:>9}" for dtype in dtypes)]),
        ]
        for quantity, row in self.worst.items():
            cells = (f"{row[dtype]:9.2f}" if dtype in row else f"{'–':>9}" for dtype in dtypes)
            lines.append(" ".join([f"{quantity:{width}}", *cells]))
        return "\n".join(lines)

    def add(self, dtype: str, ratios: dict[str, float]) -> None:
        for quantity, ratio in ratios.items():
            row = self.worst.setdefault(quantity, {})
            row[dtype] = max(ratio, row.get(dtype, 0.0))


def check(
    spec: Spec,
    examples: int = 100,
    dtypes: Sequence[str] = (),
    layouts: Sequence[str] = LAYOUTS,
    every_dtype: bool = True,
    seed: int = 0,
    shrink: bool = True,
    target: str = "",
) -> Report:
    """Draws `examples` cases and layouts and judges the op on each, in every dtype (or in a drawn one of them).

    dtypes: names in `DTYPES`, the spec's by default. shrink: look for the smallest example that fails, which takes more
    runs than finding the first. The same seed draws the same examples.
    """
    names = tuple(dtypes) or tuple(name for name, dtype in DTYPES.items() if dtype in spec.dtypes)
    report = Report(target or spec.name)

    def example(case: Case, layout: str, number: int, chosen: tuple[str, ...]) -> None:
        case = {"seed": number, **case}
        if report.failure is None:
            report.examples += 1
        for dtype in chosen:
            try:
                ratios = judge(spec, case, DTYPES[dtype], layout)
            except Wrong as wrong:
                report.failure = Failure(case, dtype, layout, str(wrong), isinstance(wrong, Raised))
                raise
            if report.failure is None:
                report.add(dtype, ratios)

    settings = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    drawn = hypothesis.given(
        case=spec.cases,
        layout=st.sampled_from(layouts),
        number=st.integers(0, 999),
        chosen=st.just(names) if every_dtype else st.sampled_from([(name,) for name in names]),
    )
    try:
        hypothesis.seed(seed)(settings(drawn(example)))()
    # Flaky: a failure that did not come again, which a kernel with a race can do; it is one all the same.
    except (Wrong, Flaky):
        assert report.failure is not None
    return report


def check_case(spec: Spec, case: Case, dtypes: Sequence[str], layouts: Sequence[str], target: str = "") -> Report:
    """Judges the op on one given case, in each dtype and layout."""
    report = Report(target or spec.name)
    for dtype in dtypes:
        for layout in layouts:
            report.examples += 1
            try:
                report.add(dtype, judge(spec, case, DTYPES[dtype], layout))
            except Wrong as wrong:
                report.failure = Failure(case, dtype, layout, str(wrong), isinstance(wrong, Raised))
                return report
    return report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_kernel_argument(parser)
    parser.add_argument("--examples", type=int, default=100, metavar="N", help="cases to draw (default 100)")
    parser.add_argument("--dtype", choices=DTYPES, help="only this one (default: every dtype, for each case)")
    parser.add_argument("--layout", choices=LAYOUTS, help="only this one")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="draws other examples (default 0)")
    parser.add_argument("--case", metavar="JSON", help="judge this one case, as a failure printed it")
    parser.add_argument("--interpret", action="store_true", help="in the interpreter, on a machine with a GPU too")


def run(options: argparse.Namespace) -> int:
    """The command: prints a report for each op of the kernel; 1 where one is wrong."""
    if triton is None:
        raise UsageError("Triton is not installed here: there is nothing to run kernels with")
    if options.examples < 1:
        raise UsageError(f"--examples is {options.examples}; it must be at least 1")
    case = parsed(options.case) if options.case is not None else None
    failed = False
    for kernel in find(options.kernel):
        spec, target = kernel.spec, kernel.target
        dtypes = [options.dtype] if options.dtype else [name for name, dtype in DTYPES.items() if dtype in spec.dtypes]
        layouts = [options.layout] if options.layout else LAYOUTS
        if case is not None:
            report = check_case(spec, case, dtypes, layouts, target)
        else:
            report = check(spec, options.examples, dtypes, layouts, seed=options.seed, target=target)
        print(report)
        failed |= report.failure is not None
    return int(failed)


def parsed(text: str) -> Case:
    try:
        case = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--case is not JSON: {error}") from error
    if not isinstance(case, dict):
        raise UsageError(f'--case must be a JSON object, such as {{"columns": 3}}, not {text}')
    return case
