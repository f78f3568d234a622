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

from kernels.lab import ladder
from kernels.lab.calls import Call, cotangents_for, describe, dtype_of, prepare
from kernels.lab.check import parsed, require_fitting
from kernels.lab.compile import launches
from kernels.lab.find import UsageError, add_kernel_argument, find
from kernels.lab.instruments import Ceilings, Instruments, cuda_instruments, in_turn, measure_ceilings, versions
from kernels.lab.limits import Wrong
from kernels.lab.machine_code import resources
from kernels.lab.output import table, write_json
from kernels.lab.spec import Case, Spec
from kernels.lab.surroundings import Names

PHASES = ("forward", "backward", "both")
MOST_PERCENT = 120.0
"""Of the measured roofline: a time below this is none. Its ceilings are those of a copy and a product, which may be
bested a little."""
MOST_PERCENT_IN_CACHE = 250.0
"""The same where results may stay in the cache, and are written to memory later."""
MOST_PERCENT_TOGETHER = 200.0
"""Of forward and backward, where the forward computes the gradient too, and reads what both need once."""
MOST_UNSEEN = 0.1
"""Milliseconds; to wait for a device that has nothing to do takes hundredths."""


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
    cotangents = cotangents_for(call.forward(spec.reference))
    least = _least_milliseconds(spec, case, ceilings)
    judge = _judge(spec, call, cotangents)

    def measured(function: Callable[..., Any]) -> dict[str, Any]:
        found = {**_times(function, call, cotangents, instruments, least), **judge(function)}
        judging.require_unchanged()
        require_possible(found, instruments.cache_bytes < call.bytes)
        return found

    peers = {"eager": spec.reference, "compile": torch.compile(spec.reference, dynamic=False)}
    peers |= spec.peers() if spec.peers is not None else {}
    implementations = {spec.name: _or_refused(measured, spec.op)}
    for name, function in peers.items():
        implementations[name] = _or_failure(measured, function)
    return {
        "op": spec.name,
        "case": case,
        "least_ms": least,
        "implementations": implementations,
        "kernels": _kernels(spec, call, cotangents),
    }


def _or_failure(measured: Callable[..., dict[str, Any]], function: Callable[..., Any]) -> dict[str, Any]:
    """A peer that does not take this case, or needs more memory than there is, is no reason to stop."""
    try:
        return measured(function)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}


def _or_refused(measured: Callable[..., dict[str, Any]], function: Callable[..., Any]) -> dict[str, Any]:
    """The op may not fail; where it cheats, that stands in the place of its times."""
    try:
        return measured(function)
    except Wrong as wrong:
        return {"failed": f"refused: {wrong}", "refused": True}


def require_possible(found: dict[str, Any], is_past_the_cache: bool) -> None:
    """Raises Wrong for times that no work has: below the roofline, or of a device that goes on afterwards."""
    most = MOST_PERCENT if is_past_the_cache else MOST_PERCENT_IN_CACHE
    ms, percent = found["ms"], found["roofline_percent"]
    impossible = "forward" if percent.get("forward", 0.0) > most else ""
    if "backward" in ms and percent:
        # What a backward does not do, its forward may have done: then both together take their time.
        least = sum(ms[phase] * percent[phase] / 100 for phase in ("forward", "backward"))
        together = ms["forward"] + ms["backward"]
        if percent["backward"] > most and 100 * least > MOST_PERCENT_TOGETHER * together:
            impossible = impossible or "backward"
    if impossible:
        raise Wrong(
            f"its {impossible} takes {ms[impossible]:.4f} ms, {percent[impossible]:.0f}% of what the device can do: "
            "the work is not done, or not in the time that is measured"
        )
    if found["unseen_ms"] > MOST_UNSEEN:
        raise Wrong(
            f"the device goes on for {found['unseen_ms']:.2f} ms when its stream is done: it works on another one, "
            "which no timer waits for"
        )


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
) -> dict[str, Any]:
    """Milliseconds, with the standard errors at which measuring stopped, and percent of the roofline by phase; the time
    of a whole call from Python; how long it goes on elsewhere; the peak of memory."""
    copies = [call.copy() for _ in range(max(2, math.ceil(2 * instruments.cache_bytes / max(call.bytes, 1))))]

    def both(copy: Call) -> list[Tensor]:
        return copy.backward(copy.forward(function), cotangents)

    whole = in_turn([lambda c=c: both(c) for c in copies])
    both(call)  # compiles
    timings = {"forward": instruments.timing(in_turn([lambda c=c: c.forward(function) for c in copies]))}
    if cotangents:
        timings["both"] = instruments.timing(whole)
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
                timings["backward"] = instruments.timing(in_turn(backwards))
    times = {phase: timing.median for phase, timing in timings.items()}
    roofline = {phase: 100 * least[phase] / time for phase, time in times.items() if phase in least}
    whole_call = instruments.call_timing(whole)
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


def _judge(spec: Spec, call: Call, cotangents: list[Tensor]) -> Callable[..., dict[str, Any]]:
    """Returns what tells an implementation's error: its distance to float64 over the eager version's, the worst of all
    outputs and gradients."""

    def quantities(function: Callable[..., Any], call: Call, cotangents: list[Tensor]) -> list[Tensor]:
        outputs = call.forward(function)
        return [*(y.detach() for y in outputs), *call.backward(outputs, cotangents)]

    try:
        exact = quantities(spec.reference, call.copy(torch.float64), [c.double() for c in cotangents])
    except torch.OutOfMemoryError:  # the case was made to fill the device
        return lambda function: {"error_over_naive": None}
    naive = quantities(spec.reference, call, cotangents)

    def error_over_naive(function: Callable[..., Any]) -> dict[str, Any]:
        ratios = []
        for y, y_naive, r in zip(quantities(function, call, cotangents), naive, exact):
            if r.is_floating_point():
                # Where eager is exact by luck, rounding the result once is what it is compared with.
                rounding = torch.finfo(y.dtype).eps * r.norm() / 2
                ratios.append(float((y - r).norm() / torch.maximum((y_naive - r).norm(), rounding)))
        return {"error_over_naive": max(ratios)}

    return error_over_naive


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
    judging = Names()  # before a file is loaded that may replace what measures
    specs = [kernel.spec for kernel in find(options.kernel)]
    instruments = cuda_instruments()
    case = vars(options).get("case")
    if vars(options).get("calls"):
        return run_calls(specs, instruments, options)
    if case is not None:
        raise UsageError("--case is for --calls; without it all cases of the spec are measured")
    if instruments is None:
        print("no CUDA device here: nothing measured, nothing written")
        return 0
    measured = measure(specs, instruments, measure_ceilings(instruments), judging)
    print(report(measured))
    if options.json is not None:
        write_json(options.json, measured)
    if options.plot is not None:
        plot(measured, options.plot)
    return int(any(one.get("refused") for case in measured["cases"] for one in case["implementations"].values()))


def run_calls(specs: Sequence[Spec], instruments: Instruments | None, options: argparse.Namespace) -> int:
    if options.plot is not None:
        raise UsageError("--plot draws the roofline, which --calls does not measure")
    case = None
    if options.case is not None:
        case = parsed(options.case)
        for spec in specs:
            require_fitting(spec, case)
    measured = ladder.measure(specs, instruments, case)
    print(ladder.report(measured))
    if options.json is not None:
        write_json(options.json, measured)
    return 0
