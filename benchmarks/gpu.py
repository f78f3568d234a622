"""What to run first where there is a GPU: `make gpu`, or `python -m benchmarks.gpu`. Ten minutes at most.

It takes the Python, torch and triton that are there, downloads nothing, and leaves out by name what needs a package
that is not installed. The parts come in the order of their worth, each in a process of its own and within its share of
the time. Each writes its JSON as it measures, and what has become of it stands in DEVICE-gpu.json at once, so that
what was finished survives whatever comes after it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import ROOT, describe, device_name
from instructgpt.errors import UserError
from instructgpt.flags import run_main
from instructgpt.runtime import resolve_device
from instructgpt.strict_json import write_json

_RESERVE = 3.0
"""Seconds kept for ending a part and writing what became of it."""


_START = 15.0
"""Seconds that a part takes to begin: PyTorch is read from a disk that nobody has read from yet."""

_COMMAND = (sys.executable, "-m", "benchmarks.gpu")
"""What runs one part."""


@dataclass(frozen=True)
class Order:
    """What a part is told."""

    device: str
    seconds: float
    """How long it may take; what it leaves unfinished then is cut off."""
    results: Path
    out: Path

    @property
    def is_stand_in(self) -> bool:
        """Whether the parts are only tried, on a CPU, with sizes that take seconds."""
        return self.device == "cpu"

    def json(self, what: str) -> str:
        return str(self.results / f"{device_name(torch.device(self.device))}-{what}.json")


@dataclass(frozen=True)
class Part:
    """One entry of the list."""

    run: Callable[[Order], int]
    """Returns an exit code."""
    most: float
    """Seconds."""
    needs: tuple[str, ...] = ()
    """Packages, as they are imported."""


def tests(order: Order) -> int:
    """The tests that need a GPU."""
    workers = ["-n", "8"] if importlib.util.find_spec("xdist") else []
    # Files without such a test may need packages that this machine lacks to be read at all.
    with_gpu = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    files = ["tests/kernels/test_softmax.py"] if order.is_stand_in else [str(p.relative_to(ROOT)) for p in with_gpu]
    # By name as they end, so that a limit hides no failure.
    return _python("pytest", "-v", "--tb=short", "-m", "gpu", *workers, *files)


def check(order: Order) -> int:
    """Property tests of every kernel, compiled for this GPU instead of interpreted."""
    kernel, examples = ("softmax", "2") if order.is_stand_in else ("all", "12")
    return _python("kernels.lab", "check", kernel, "--examples", examples)


def calls(order: Order) -> int:
    """What a call of each operator costs, from the bare launch to graph replay."""
    kernel = "rms_norm" if order.is_stand_in else "all"
    return _python("kernels.lab", "bench", kernel, "--calls", "--json", order.json("calls"))


def train_step(order: Order) -> int:
    """Training steps of GPT-2 124M in every mode, beside its peers, with MFU."""
    from benchmarks.train_step import TrainStepConfig, measure

    small: dict[str, Any] = {}
    if order.is_stand_in:
        small = dict(shape="minute", rows=2, steps=1, rounds=1, dtypes=("float32",))
    seconds = order.seconds - _RESERVE - _START
    return measure(TrainStepConfig(device=order.device, seconds=seconds, json=order.json("train-step"), **small))


def decode(order: Order) -> int:
    """Tokens a second of generation, by batch size and number format."""
    from benchmarks.decode import DecodeConfig, measure

    small: dict[str, Any] = dict(quick=True) if order.is_stand_in else {}
    seconds = order.seconds - _RESERVE - _START  # what a schedule brings is a part of its own
    return measure(
        DecodeConfig(device=order.device, seconds=seconds, schedule=False, json=order.json("decode"), **small)
    )


def schedule(order: Order) -> int:
    """The engine on requests of unequal length: throughput, latency, shared prefixes."""
    from benchmarks.batching import BatchingConfig, filled_in, measure

    small: dict[str, Any] = dict(quick=True) if order.is_stand_in else dict(requests=64)
    parts, file = ("latency", "prefixes", "throughput"), order.json("batching")
    config = BatchingConfig(device=order.device, parts=parts, seconds=order.seconds / 3, json=file, **small)
    return measure(filled_in(config))


def ladder(order: Order) -> int:
    """From the naive model to the fastest, a trick a row."""
    from benchmarks.ladder import LadderConfig, measure

    small: dict[str, Any] = dict(shape="minute", rows=2, steps=1, rounds=1) if order.is_stand_in else {}
    return measure(LadderConfig(device=order.device, json=order.json("ladder"), **small))


def kernels(order: Order) -> int:
    """Each kernel against its peers and the roofline."""
    return _python("kernels.lab", "bench", "softmax" if order.is_stand_in else "all", "--json", order.json("kernels"))


def profile(order: Order) -> int:
    """Where the time of a step goes, for GPT-2 and for what `make train` trains here; is the GPU busy?"""
    from benchmarks.profile import ProfileConfig, measure

    if order.is_stand_in:
        return measure(ProfileConfig(device="cpu", shape="minute", rows=2, steps=1, json=order.json("profile")))
    gpt2 = ProfileConfig(device=order.device, shape="gpt2", rows=32, compile="step", json=order.json("profile"))
    small = replace(gpt2, shape="small", rows=64, optimizer="muon", json=order.json("profile-small"))
    return measure(gpt2) | measure(small)


def memory(order: Order) -> int:
    """What checkpointing and narrow optimizer states save and cost, and whether the planner is right."""
    from benchmarks.memory import MemoryConfig, measure

    small: dict[str, Any] = dict(shapes=("minute:2",), steps=1, rounds=1) if order.is_stand_in else {}
    return measure(MemoryConfig(device=order.device, json=order.json("memory"), **small))


def train(order: Order) -> int:
    """The road to a tuned model, as `make train` goes it on a GPU; in less time than that takes, with fewer updates."""
    from benchmarks.trained import models
    from instructgpt.stages import pipeline

    preset, limits = "small", dict[str, Any](max_minutes=max(0.5, order.seconds / 60 - 2.0), examples=100)
    if order.is_stand_in:
        preset, limits = "tiny", dict[str, Any](max_steps=2, examples=1)
    out = order.out / "train"
    pipeline.run(pipeline.PipelineConfig(out=str(out), preset=preset, device=order.device, overwrite=True, **limits))
    document = {**describe(torch.device(order.device)), "preset": preset, "models": models(out)}
    write_json(order.json("train"), document)
    return 0


def _python(module: str, *arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT).returncode


PARTS: dict[str, Part] = {
    "tests": Part(tests, 240, ("pytest", "hypothesis")),
    "train_step": Part(train_step, 130),
    "decode": Part(decode, 90),
    "schedule": Part(schedule, 150),
    "calls": Part(calls, 75),
    "train": Part(train, 420, ("rich", "sentencepiece")),
    "profile": Part(profile, 60),
    "memory": Part(memory, 90),
    "ladder": Part(ladder, 90),
    "check": Part(check, 90, ("hypothesis",)),
    "kernels": Part(kernels, 120),
}


def run(options: argparse.Namespace) -> int:
    """All parts asked for, one after the other. The code is 0 where none failed."""
    if options.stand_in:
        device = torch.device("cpu")
    elif torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    else:
        raise UserError("there is no CUDA device here; --stand-in tries the list on a CPU, with sizes of no worth")
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        raise UserError(f"part {unknown[0]} is unknown: it must be one of {', '.join(PARTS)}")
    deadline = time.monotonic() + 60 * options.minutes
    became: dict[str, dict[str, Any]] = {}
    for name in options.parts or PARTS:
        left = deadline - time.monotonic() - _RESERVE
        print(f"\n== {name}: {(PARTS[name].run.__doc__ or '').strip()}", flush=True)
        became[name] = _become(name, device, options, left)
        print(f"== {name} {became[name]['result']}, {became[name]['seconds']:.0f} s", flush=True)
        file = options.results / f"{device_name(device)}-gpu.json"
        write_json(file, {**describe(device), "parts": became})
    return int(any(each["result"].startswith("failed") for each in became.values()))


def _become(name: str, device: torch.device, options: argparse.Namespace, left: float) -> dict[str, Any]:
    """Runs a part within the time that is left to it, and says what became of it."""
    part = PARTS[name]
    lacking = [package for package in part.needs if importlib.util.find_spec(package) is None]
    if lacking:
        return {"result": f"left out: {', '.join(lacking)} is not installed", "seconds": 0.0}
    if left < 10:
        return {"result": "left out: no time is left", "seconds": 0.0}
    seconds = min(part.most, left)
    started = time.monotonic()
    command = [*_COMMAND, "--one", name, "--device", str(device), "--out", options.out]
    command += ["--results", options.results, "--seconds", str(seconds)]
    # In a session of its own, so that whatever it has started ends with it.
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, start_new_session=True)
    try:
        code = process.wait(seconds)
        result = "done" if code == 0 else f"failed with code {code}"
    except subprocess.TimeoutExpired:
        result = "cut off at its limit"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return {"result": result, "seconds": round(time.monotonic() - started, 1)}


def main(argv: list[str] | None = None) -> int:
    # Not the house's own flags: they need a package that a machine with a GPU need not have.
    parser = argparse.ArgumentParser("benchmarks.gpu", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long it may take in all")
    parser.add_argument("--parts", nargs="+", default=[], metavar="PART", help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="where models go")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="where figures go")
    parser.add_argument("--stand-in", action="store_true", help="try the list on a CPU, with sizes of no worth")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--device", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one:
        order = Order(str(resolve_device(options.device)), options.seconds, options.results, options.out)
        return PARTS[options.one].run(order)
    return run(options)


if __name__ == "__main__":
    sys.exit(run_main(main))
