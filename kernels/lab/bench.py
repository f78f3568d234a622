"""How fast is it? Measured against its peers, and against what the device can do at best."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._functorch import config as functorch
from torch.cuda import is_available

from kernels.lab import ladder
from kernels.lab.calls import Call, cotangents_for, describe, dtype_of, prepare
from kernels.lab.check import parsed, require_fitting
from kernels.lab.compile import launches
from kernels.lab.find import UsageError, add_kernel_argument, find, targets_of, told_in_one_line
from kernels.lab.instruments import Ceilings, Instruments, Timing, cuda_instruments, in_turn, measure_ceilings, versions
from kernels.lab.limits import Wrong
from kernels.lab.machine_code import resources
from kernels.lab.output import table, write_json
from kernels.lab.plausible import expected, require_enough_declared, require_fresh, require_possible, results_of
from kernels.lab.processes import Ended, in_order
from kernels.lab.spec import Case, Spec
from kernels.lab.surroundings import Names, same_state

PHASES = ("forward", "backward", "both")


def measure(
    specs: Sequence[Spec], instruments: Instruments, ceilings: Ceilings, judging: Names | None = None
) -> dict[str, Any]:
    """All benchmark cases of the specs, as they are written to JSON: one file a device.

    judging: what measures, as it was before the ops' files were loaded.
    """
    judging = judging or Names()
    cases = [measure_case(spec, case, instruments, ceilings, judging) for spec in specs for case in spec.benchmarks]
    return {"device": instruments.name, "versions": versions(), "ceilings": asdict(ceilings), "cases": cases}


def measure_case(
    spec: Spec, case: Case, instruments: Instruments, ceilings: Ceilings, judging: Names | None = None
) -> dict[str, Any]:
    """The op and its peers on the same inputs."""
    with torch.cuda.stream(instruments.stream):
        return _measure_case(spec, case, instruments, ceilings, judging or Names())


def _measure_case(
    spec: Spec, case: Case, instruments: Instruments, ceilings: Ceilings, judging: Names
) -> dict[str, Any]:
    torch.manual_seed(0)
    torch.compiler.reset()  # after a few recompilations for other sizes, what was compiled would quietly run eagerly
    call = prepare(spec, case, instruments.device)
    outputs = call.forward(spec.reference)
    cotangents = cotangents_for(outputs)
    require_enough_declared(spec, case, outputs, call.leaves)
    del outputs
    least = _least_milliseconds(spec, case, ceilings)
    right = expected(spec, call, cotangents)

    def measured(function: Callable[..., Any]) -> dict[str, Any]:
        found = _times(function, call, cotangents, instruments, least)
        error = None if right is None else right.error_over_naive(results_of(function, call, cotangents))
        return {**found, "error_over_naive": error}

    def judged(function: Callable[..., Any]) -> dict[str, Any]:
        """The same of the op, which may not cheat."""

        def look(phase: str, results: list[Tensor]) -> None:
            if right is not None:
                right.of(phase).require_right(results, f"in the runs of {phase} that are timed")

        with same_state():
            found = _times(function, call, cotangents, instruments, least, look)
        judging.require_unchanged()
        require_possible(found, instruments.cache_bytes < call.bytes)
        got = results_of(function, call, cotangents)
        return {**found, "error_over_naive": None if right is None else right.require_right(got, "when it is timed")}

    def fresh() -> dict[str, Any]:
        """Last, for it changes the values that all are measured with."""
        require_fresh(spec, call, cotangents)
        return {}

    own = {"eager": spec.reference, "compile": torch.compile(spec.reference, dynamic=False)}
    peers = {**own, **(spec.peers() if spec.peers is not None else {}), **own}
    implementations = {spec.name: _or_refused(lambda: judged(spec.op))}
    for name, function in peers.items():
        implementations[name] = _or_failure(measured, function)
    kernels = _kernels(spec, call, cotangents)
    if "refused" not in implementations[spec.name]:
        implementations[spec.name] |= _or_refused(fresh)
    return {
        "op": spec.name,
        "case": case,
        "least_ms": least,
        "implementations": implementations,
        "kernels": kernels,
    }


def _or_failure(measured: Callable[..., dict[str, Any]], function: Callable[..., Any]) -> dict[str, Any]:
    """A peer that does not take this case, or needs more memory than there is, is no reason to stop."""
    try:
        return measured(function)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}


def _or_refused(measured: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The op may not fail; where it cheats, that stands in the place of its times."""
    try:
        return measured()
    except Wrong as wrong:
        return {"failed": f"refused: {wrong}", "refused": True}


def _least_milliseconds(spec: Spec, case: Case, ceilings: Ceilings) -> dict[str, float]:
    """By phase, the time that the ceilings leave for the case's work."""
    if spec.work is None:
        return {}
    sizes = {key: value for key, value in case.items() if key not in ("seed", "dtype")}
    forward, backward = (ceilings.milliseconds(w.bytes, w.flops) for w in spec.work(dtype_of(case).itemsize, **sizes))
    return {"forward": forward, "backward": backward, "both": forward + backward}


def _times(
    function: Callable[..., Any],
    call: Call,
    cotangents: list[Tensor],
    instruments: Instruments,
    least: dict[str, float],
    look: Callable[[str, list[Tensor]], None] = lambda phase, results: None,
) -> dict[str, Any]:
    """Milliseconds, with the standard errors at which measuring stopped, and percent of the roofline by phase; the time
    of a whole call from Python; how long it goes on elsewhere; the peak of memory. `look` is shown what the last of a
    phase's runs returned."""
    copies = [call.copy() for _ in range(max(2, math.ceil(2 * instruments.cache_bytes / max(call.bytes, 1))))]

    def both(copy: Call) -> list[Tensor]:
        return copy.backward(copy.forward(function), cotangents)

    def timing(phase: str, calls: list[Callable[[], list[Tensor]]]) -> Timing:
        kept = Kept(in_turn(calls))
        found = instruments.timing(kept)
        if kept.last is not None:
            look(phase, [t.detach() for t in kept.last])
        return found

    both(call)  # compiles
    wholes = [lambda c=c: both(c) for c in copies]
    timings = {"forward": timing("forward", [lambda c=c: c.forward(function) for c in copies])}
    if cotangents:
        timings["both"] = timing("both", wholes)
        # One graph a copy, kept: torch.compile must not reuse the memory of what its backward reads.
        with functorch.patch(donated_buffer=False):
            graphs = [(copy, copy.forward(function)) for copy in copies]
            backwards = [lambda c=c, outputs=y: c.backward(outputs, cotangents, again=True) for c, y in graphs]
            try:
                backwards[0]()
                backwards[0]()
            except RuntimeError:  # an op that overwrites what it saved; its graph can be run backward once
                timings["backward"] = timings["both"] - timings["forward"]
            else:
                timings["backward"] = timing("backward", backwards)
    times = {phase: timing.median for phase, timing in timings.items()}
    roofline = {phase: 100 * least[phase] / time for phase, time in times.items() if phase in least}
    whole_call = instruments.call_timing(in_turn(wholes))
    return {
        "ms": times,
        "standard_error_ms": {phase: timing.standard_error for phase, timing in timings.items()},
        "runs": {phase: timing.runs for phase, timing in timings.items()},
        "roofline_percent": roofline,
        "call_ms": whole_call.median,
        "call_standard_error_ms": whole_call.standard_error,
        "unseen_ms": instruments.unseen_milliseconds(lambda: both(call)),
        "peak_bytes": instruments.peak_bytes(lambda: both(call)),
    }


class Kept:
    """A call that keeps what it returned last: of a CUDA graph, what is in memory after each replay."""

    def __init__(self, call: Callable[[], list[Tensor]]) -> None:
        self.call = call
        self.last: list[Tensor] | None = None

    def __call__(self) -> list[Tensor]:
        self.last = self.call()
        return self.last


def _kernels(spec: Spec, call: Call, cotangents: list[Tensor]) -> list[dict[str, Any]]:
    """Registers, spills and shared memory of what the op launches here."""
    with launches(None) as seen:
        call.backward(call.forward(spec.op), cotangents)
    return [
        {"kernel": launched.kernel, "settings": launched.settings, **asdict(resources(launched.compiled))}
        for launched in seen
    ]


def report(measured: dict[str, Any]) -> str:
    """The measurements as tables."""
    ceilings = Ceilings(**measured["ceilings"])
    lines = [
        f"{measured['device']}: copies {ceilings.bytes_per_second / 1e12:.2f} TB/s, "
        f"multiplies matrices at {ceilings.flops_per_second / 1e12:.0f} TFLOP/s"
    ]
    columns = [f"{phase} {unit}" for phase in PHASES for unit in ("ms", "%")]
    heads = ["", *columns, "± at most", "call ms", "peak MiB", "error/eager"]
    for case in measured["cases"]:
        rows = []
        for name, found in case["implementations"].items():
            if "failed" in found:
                rows.append([name, found["failed"], *[""] * (len(heads) - 2)])
                continue
            cells = [(found["ms"].get(phase), found["roofline_percent"].get(phase)) for phase in PHASES]
            numbers = [text for ms, percent in cells for text in (_number(ms, ".4f"), _number(percent, ".0f"))]
            error = _number(found["error_over_naive"], ".2f")
            doubt = [e / found["ms"][phase] for phase, e in found.get("standard_error_ms", {}).items()]
            numbers.append(f"{max(doubt):.1%}" if doubt else "")
            rows.append([name, *numbers, f"{found['call_ms']:.4f}", f"{found['peak_bytes'] / 2**20:.1f}", error])
        lines += ["", f"{case['op']}: {describe(case['case'])}", table(heads, rows)]
        for kernel in case["kernels"]:
            numbers = (
                f"{kernel['registers']} registers, spills {kernel['spill_bytes']}, shared {kernel['shared_bytes']:,}"
            )
            lines.append(f"  {kernel['kernel']}: {numbers}")
    return "\n".join(lines)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def plot(measured: dict[str, Any], path: Path) -> None:
    """Draws the percentages of the roofline, forward and backward; it reads nothing but what the JSON holds."""
    try:
        import matplotlib

        matplotlib.use("agg")
        import matplotlib.pyplot as plt
        from matplotlib.patches import Patch
    except ImportError:
        raise UsageError("--plot needs matplotlib: install the extra `plot`") from None
    cases = [case for case in measured["cases"] if case["least_ms"]]
    names = list(dict.fromkeys(_role(case, name) for case in cases for name in case["implementations"]))
    # One bar below the other, and a gap after each case: (place, color's number, percent by phase).
    bars: list[tuple[int, int, dict[str, float]]] = []
    labels: dict[float, str] = {}
    place = 0
    for case in cases:
        ran = [(name, found) for name, found in case["implementations"].items() if "failed" not in found]
        labels[place + (len(ran) - 1) / 2] = f"{case['op']}\n{describe(case['case'])}"
        for name, found in ran:
            bars.append((place, names.index(_role(case, name)), found["roofline_percent"]))
            place += 1
        place += 1
    figure, axes = plt.subplots(1, 2, figsize=(14, 1 + 0.2 * place), sharey=True, layout="constrained")
    for axis, phase in zip(axes, PHASES):
        for at, number, percent in bars:
            axis.barh(at, percent.get(phase, 0), 1, color=f"C{number}")
        axis.axvline(100, color="black", linewidth=0.8)
        axis.set(xlabel=f"{phase}: % of the measured roofline", xlim=(0, None))
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(list(labels), list(labels.values()), fontsize=7)
    axes[0].set_ylim(place - 1, -1)
    handles = [Patch(color=f"C{number}") for number in range(len(names))]
    figure.legend(handles, names, fontsize=8, loc="outside lower center", ncols=len(names))
    figure.suptitle(measured["device"])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _role(case: dict[str, Any], name: str) -> str:
    return "this kernel" if name == case["op"] else name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_kernel_argument(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements")
    parser.add_argument(
        "--calls", action="store_true", help="what one call costs, and its Python alone: the only one without a GPU"
    )
    parser.add_argument("--case", metavar="JSON", help="with --calls: there, not at the smallest of the builds")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them; needs matplotlib")


def run(options: argparse.Namespace) -> int:
    if options.calls:
        return run_calls(options)
    if options.case is not None:
        raise UsageError("--case is for --calls; without it all cases of the spec are measured")
    targets = targets_of(options.kernel)
    if not is_available():
        print("no CUDA device here: nothing measured, nothing written")
        return 0
    (measured,) = in_order(measure_targets, [(targets,)])
    if isinstance(measured, Ended):
        print(f"{options.kernel}: refused: its process died (exit code {measured.exit_code})")
        return 1
    print(report(measured))
    if options.json is not None:
        write_json(options.json, measured)
    if options.plot is not None:
        plot(measured, options.plot)
    return int(any(one.get("refused") for case in measured["cases"] for one in case["implementations"].values()))


def measure_targets(targets: Sequence[str]) -> dict[str, Any]:
    """In a process of its own, whose only answer this is."""
    judging = Names()  # before a file is loaded that may replace what measures
    found = [kernel for target in targets for kernel in find(target)]
    with told_in_one_line(found[0].path, "measuring it"):
        instruments = cuda_instruments()
        assert instruments is not None
        return measure([kernel.spec for kernel in found], instruments, measure_ceilings(instruments), judging)


def run_calls(options: argparse.Namespace) -> int:
    if options.plot is not None:
        raise UsageError("--plot draws the roofline, which --calls does not measure")
    case = None if options.case is None else parsed(options.case)
    specs = [kernel.spec for kernel in find(options.kernel)]
    if case is not None:
        for spec in specs:
            require_fitting(spec, case)
    measured = ladder.measure(specs, cuda_instruments(), case)
    print(ladder.report(measured))
    if options.json is not None:
        write_json(options.json, measured)
    return 0
