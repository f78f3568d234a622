"""Is a kernel right? Property tests drawn from its spec, in Triton's interpreter or natively on a CUDA device."""

from __future__ import annotations

import argparse
import inspect
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from kernels.lab.calls import describe
from kernels.lab.conduct import Conduct, examine
from kernels.lab.draws import Drawn, Draws
from kernels.lab.example import Judged, example, judge
from kernels.lab.find import UsageError, add_kernel_argument, find, targets_of, told_in_one_line
from kernels.lab.interpreter import Unsupported
from kernels.lab.limits import Wrong
from kernels.lab.memory import LAYOUTS
from kernels.lab.output import program
from kernels.lab.processes import Ended, in_order
from kernels.lab.spec import DTYPES, Case, Spec
from kernels.lab.surroundings import Names
from kernels.lab.trial import Endless, Raised
from kernels.launch import INTERPRETED, triton

IN_EVERY_DTYPE = 1 / 3
"""Which share of the examples, the smallest ones, is tried in every dtype; larger ones take turns."""
LARGE = 16_384
"""Elements of an example's inputs above which it is not examined."""
EXAMINED = (0.1, 0.5, 0.9)
"""Which of the examples that are not large are examined for how the op goes about them, by their place among these."""
ENOUGH, ENOUGH_IN_ONE_DTYPE = 6, 20
"""Results that must have been judged before it is said that none of them shows anything."""
LONGEST = 3600.0
"""Seconds after which a kernel is given up that does not end on a device, and cannot be interrupted there."""
LARGEST_BUILD = 2**18
"""Elements of a realistic size that the interpreter still runs."""
NOT_LOOKED_AT = (
    "races that running the programs in reversed order does not show, tf32, reads outside of tensors beyond 4,096 "
    "elements, what a GPU's compiler makes of it"
)


@dataclass(frozen=True)
class Failure:
    """An example that a kernel gets wrong, and how."""

    case: Case
    dtype: str
    layout: str
    what: str
    is_exception: bool = False
    """The op raised instead of returning something."""

    def command(self, target: str, lab: str) -> str:
        """The command line that shows it again."""
        flags = ["--case", json.dumps(self.case), "--dtype", self.dtype, "--layout", self.layout]
        if INTERPRETED and torch.cuda.is_available():
            flags.append("--interpret")
        return f"{lab} check {shlex.join([target, *flags])}"


@dataclass
class Report:
    """What `check` found; printed, it is the table or the failure."""

    target: str
    """The kernel, as the command line names it."""
    examples: int = 0
    """Examples tried until the first failure, or in all."""
    worst: dict[str, dict[str, float]] = field(default_factory=dict)
    """Quantity -> dtype -> the largest error over its limit."""
    telling: dict[tuple[str, str], list[bool]] = field(default_factory=dict)
    """Quantity and dtype -> of each result that was judged, whether a wrong one would have been seen."""
    failure: Failure | None = None
    conduct: Conduct | None = None
    """How the op went about the last example that was examined."""
    realistic: list[str] | None = None
    """Those of the spec's builds that were run too; None where none was asked for."""
    lab: str = "python -m kernels.lab"
    """How the lab is called from the command line."""

    def __str__(self) -> str:
        if self.failure is not None:
            return (
                f"{self.target}: wrong after {self.examples} examples. The smallest one found:\n"
                f"  case    {json.dumps(self.failure.case)}\n"
                f"  dtype   {self.failure.dtype}\n"
                f"  layout  {self.failure.layout}\n"
                f"  {self.failure.what}\n"
                f"Again: {self.failure.command(self.target, self.lab)}"
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
        if self.conduct is not None:
            lines.append(str(self.conduct))
        if self.realistic is not None:
            lines.append(f"Builds that it is right at: {'; '.join(self.realistic) or 'none, they are too large here'}")
            lines.append(f"Not looked at: {NOT_LOOKED_AT if INTERPRETED else 'races that do not show in two runs'}")
        return "\n".join(lines)

    def add(self, dtype: str, judged: dict[str, Judged]) -> None:
        for quantity, found in judged.items():
            row = self.worst.setdefault(quantity, {})
            row[dtype] = max(found.ratio, row.get(dtype, 0.0))
            self.telling.setdefault((quantity, dtype), []).append(found.tells)

    def require_telling(self) -> None:
        """Raises Wrong where nothing can be seen to be wrong: the examples are trivial, or the limits too wide."""
        for quantity in self.worst:
            rows = {dtype: tells for (name, dtype), tells in self.telling.items() if name == quantity}
            groups = [(", ".join(rows), [tell for tells in rows.values() for tell in tells], ENOUGH)]
            groups += [(dtype, tells, ENOUGH_IN_ONE_DTYPE) for dtype, tells in rows.items()]
            for dtypes, tells, enough in groups:
                if len(tells) >= enough and not any(tells):
                    raise Wrong(
                        f"{quantity}: {len(tells)} results in {dtypes} are right, and none would be refused if it were "
                        "wrong by a tenth: they are all 0, or the reference or the tolerance makes the limits too wide"
                    )


def check(
    spec: Spec,
    examples: int = 100,
    dtypes: Sequence[str] = (),
    layouts: Sequence[str] = LAYOUTS,
    every_dtype: bool = True,
    seed: int = 0,
    shrink: bool = True,
    target: str = "",
    judging: Names | None = None,
) -> Report:
    """Draws `examples` cases and layouts and judges the op on each, those with few elements first: in every dtype, or
    where these take long in one after the other (in a drawn one each without `every_dtype`).

    dtypes: names in `DTYPES`, the spec's by default. shrink: look for the smallest example that fails, which takes more
    runs than finding the first. The same seed draws the same examples. judging: the functions that judge, as
    they were before the op's file was loaded. Raises Unsupported where the interpreter cannot run it.
    """
    names = tuple(dtypes) or dtypes_of(spec)
    judging, report = judging or Names(), Report(target or spec.name)
    draws = Draws(spec.cases, tuple(layouts), names, every_dtype, examples, seed)
    ordered = sorted(((elements_of(spec, drawn.case), drawn) for drawn in draws.all()), key=lambda pair: pair[0])
    small = [index for index, (elements, _) in enumerate(ordered) if 0 < elements <= LARGE]
    examined = {small[int(place * len(small))] for place in EXAMINED} if small else set()

    def attempt(drawn: Drawn, dtype: str, how: Callable[..., Any]) -> Any:
        """What `how` returns; where it raises Wrong, the failure is the report's, and raised on."""
        try:
            seen = how(spec, drawn.case, DTYPES[dtype], drawn.layout)
            judging.require_unchanged()
        except Wrong as wrong:
            report.failure = Failure(drawn.case, dtype, drawn.layout, str(wrong), isinstance(wrong, Raised))
            raise
        return seen

    for number, (_, drawn) in enumerate(ordered):
        report.examples += 1
        is_small = number <= IN_EVERY_DTYPE * len(ordered)
        tried = drawn.dtypes if is_small else (drawn.dtypes[number % len(drawn.dtypes)],)
        ways: list[tuple[str, Callable[..., Any]]] = [(dtype, judge) for dtype in tried]
        if number in examined:
            ways.append((tried[number % len(tried)], observe))
        for dtype, how in ways:
            try:
                seen = attempt(drawn, dtype, how)
            except Wrong as wrong:
                if shrink and not isinstance(wrong, Endless):
                    draws.smallest(drawn, partial(attempt, dtype=dtype, how=how))
                return report
            if isinstance(seen, Conduct):
                report.conduct = seen
            else:
                report.add(dtype, seen)
    if ordered:
        with suppress(Wrong):
            attempt(ordered[-1][1], ordered[-1][1].dtypes[0], lambda *_: report.require_telling())
    return report


def observe(spec: Spec, case: Case, dtype: torch.dtype, layout: str) -> Conduct:
    return examine(example(spec, case, dtype, layout))


def dtypes_of(spec: Spec) -> tuple[str, ...]:
    return tuple(name for name, dtype in DTYPES.items() if dtype in spec.dtypes)


def elements_of(spec: Spec, case: Case) -> int:
    return sum(t.numel() for t in spec.make(case).tensors.values())


def check_case(spec: Spec, case: Case, dtypes: Sequence[str], layouts: Sequence[str], target: str = "") -> Report:
    """Judges the op on one given case, in each dtype and layout, and how it goes about the first."""
    report, judging = Report(target or spec.name), Names()
    for dtype in dtypes:
        for layout in layouts:
            report.examples += 1
            try:
                report.add(dtype, judge(spec, case, DTYPES[dtype], layout))
                if report.conduct is None:
                    report.conduct = observe(spec, case, DTYPES[dtype], layout)
                judging.require_unchanged()
            except Wrong as wrong:
                report.failure = Failure(case, dtype, layout, str(wrong), isinstance(wrong, Raised))
                return report
    return report


def check_builds(spec: Spec, report: Report, judging: Names) -> None:
    """Adds to a report the realistic sizes that the interpreter can run: what small ones do not show."""
    report.realistic = []
    for case in spec.builds:
        if INTERPRETED and elements_of(spec, case) > LARGEST_BUILD:
            continue
        dtype = case.get("dtype", "bfloat16")
        try:
            report.add(dtype, judge(spec, case, DTYPES[dtype], "contiguous"))
            judging.require_unchanged()
        except Wrong as wrong:
            report.failure = Failure(case, dtype, "contiguous", str(wrong), isinstance(wrong, Raised))
            return
        report.realistic.append(describe(case))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_kernel_argument(parser)
    parser.add_argument("--examples", type=int, default=100, metavar="N", help="cases to draw (default 100)")
    parser.add_argument("--dtype", choices=DTYPES, help="only this one (default: all of the spec's)")
    parser.add_argument("--layout", choices=LAYOUTS, help="only this one")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="draws other examples (default 0)")
    parser.add_argument("--case", metavar="JSON", help="judge this one case, as a failure printed it")
    parser.add_argument("--interpret", action="store_true", help="in the interpreter, on a machine with a GPU too")


def run(options: argparse.Namespace) -> int:
    """The command: prints a report for each op of the kernel; 1 where one is wrong, 2 where one cannot be judged."""
    if triton is None:
        raise UsageError("Triton is not installed here: there is nothing to run kernels with")
    if options.examples < 1:
        raise UsageError(f"--examples is {options.examples}; it must be at least 1")
    options.case = parsed(options.case) if options.case is not None else None
    options.lab = program()  # a process of a kernel's own was called otherwise
    targets = targets_of(options.kernel)
    status = 0
    for target, answer in zip(targets, in_order(judge_kernel, [(target, options) for target in targets], LONGEST)):
        if isinstance(answer, Ended):
            died = f"its process died (exit code {answer.exit_code})"
            answer = f"{target}: wrong: {died if answer.exit_code is not None else f'no end after {LONGEST:g} s'}", 1
        text, code = answer
        print(text, file=sys.stderr if code == 2 else sys.stdout, flush=True)
        status = max(status, code)
    return status


def judge_kernel(target: str, options: argparse.Namespace) -> tuple[str, int]:
    """In a process of its own: what to print of one op, and the exit code that it asks for."""
    torch.set_num_threads(1)
    judging = Names()
    try:
        (kernel,) = find(target)
        spec = kernel.spec
        dtypes = (options.dtype,) if options.dtype else dtypes_of(spec)
        layouts = (options.layout,) if options.layout else LAYOUTS
        with told_in_one_line(kernel.path, "judging it"):
            if options.case is not None:
                require_fitting(spec, options.case)
                dtypes = (options.dtype or options.case["dtype"],) if "dtype" in options.case else dtypes
                report = check_case(spec, options.case, dtypes, layouts, target)
            else:
                report = check(
                    spec, options.examples, dtypes, layouts, seed=options.seed, target=target, judging=judging
                )
                if report.failure is None:
                    check_builds(spec, report, judging)
    except Unsupported as reason:
        return (
            f"error: {target}: not judged, right or wrong: {reason}. Triton's interpreter cannot run it; on a machine "
            f"with a CUDA device `check` runs it natively, and `compile` builds it anywhere",
            2,
        )
    except UsageError as error:
        return f"error: {error}", 2
    report.lab = options.lab
    return str(report), int(report.failure is not None)


def parsed(text: str) -> Case:
    try:
        case = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--case is not JSON: {error}") from error
    if not isinstance(case, dict):
        raise UsageError(f'--case must be a JSON object, such as {{"columns": 3}}, not {text}')
    return case


def require_fitting(spec: Spec, case: Case) -> None:
    """UsageError where the case is not one of the spec's."""
    settings = {key: value for key, value in case.items() if key not in ("seed", "dtype")}
    try:
        inspect.signature(spec.inputs).bind(None, **settings)
    except TypeError as error:
        named = list(inspect.signature(spec.inputs).parameters)[1:]
        raise UsageError(f"--case does not fit {spec.name}: {error}; a case has {', '.join(named)}") from error
    if case.get("dtype", "float32") not in DTYPES:
        raise UsageError(f"--case: dtype is {case['dtype']!r}; it must be one of {', '.join(DTYPES)}")
    try:
        spec.make(case)
    except Exception as error:
        raise UsageError(f"--case does not fit {spec.name}: {type(error).__name__}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
