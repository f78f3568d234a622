"""What a run tells while it trains: metrics.jsonl and a progress bar or plain lines; TensorBoard and W&B on request."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from instructgpt.errors import UserError
from instructgpt.figures import shown
from instructgpt.runtime import Precision
from instructgpt.strict_json import to_json, write_json_lines

Tracker = Literal["none", "tensorboard", "wandb"]


class Sink(Protocol):
    """Somewhere records go."""

    def write(self, record: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class Window:
    """Sums between two lines of the log."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.total = self.weight = self.tokens = self.norm = self.steps = 0.0
        self.metrics: dict[str, float] = {}
        self.since = time.monotonic()

    def add(self, total: float, weight: float, metrics: dict[str, float], tokens: int, norm: float) -> None:
        self.total += total
        self.weight += weight
        self.tokens += tokens
        self.norm += norm
        self.steps += 1
        for name, value in metrics.items():
            self.metrics[name] = self.metrics.get(name, 0.0) + value

    def record(self, step: int, tokens: int, seconds: float) -> dict[str, float]:
        """The line of the log at this point of the run, after which a new window begins."""
        elapsed = max(time.monotonic() - self.since, 1e-9)
        record: dict[str, float] = {"step": step}
        if self.steps:
            record["loss"] = self.total / self.weight if self.weight else 0.0
            record |= {name: value / max(self.weight, 1e-9) for name, value in self.metrics.items()}
            record["gradient_norm"] = self.norm / self.steps
        record |= {"tokens": tokens, "tokens_per_second": self.tokens / elapsed, "seconds": seconds}
        self.clear()
        return record


class JsonLines:
    """metrics.jsonl: a JSON object a line, flushed as it is written."""

    def __init__(self, path: Path, from_step: int = 0):
        """Continues the file of a resumed run: lines after `from_step`, written before a kill, are dropped."""
        kept = [line for line in read_metrics(path) if line.get("step", 0) <= from_step] if from_step else []
        write_json_lines(path, kept)
        # A run that is resumed after its last step only validates again, and finds what stands there already.
        self._written = [line for line in kept if line.get("step", 0) == from_step]
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, float]) -> None:
        line = to_json(record)
        if json.loads(line) not in self._written:
            self._file.write(line + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line that a kill cut short is passed over."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]  # what follows the last line break is nothing, or cut short


class _TensorBoard:
    def __init__(self, directory: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("--tracker tensorboard needs the extra 'track': pip install 'instructgpt[track]'") from None
        self._writer = SummaryWriter(str(directory / "tensorboard"))

    def write(self, record: dict[str, float]) -> None:
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(record["step"]))

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, directory: Path):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserError("--tracker wandb needs the extra 'track': pip install 'instructgpt[track]'") from None
        self._run = wandb.init(project="instructgpt", name=directory.name, dir=str(directory))

    def write(self, record: dict[str, float]) -> None:
        self._run.log({k: v for k, v in record.items() if k != "step"}, step=int(record["step"]))

    def close(self) -> None:
        self._run.finish()


_STEPS_OF_A_PACE = 10
"""Updates after which a run's time is foretold: the first ones are slow, and a rollout is made for several at once."""


class ConsoleLog:
    """A progress bar on a terminal, plain lines elsewhere: loss, tokens/s, MFU, time left.

    After the first steps it foretells how long the run will take, if that is a minute or more.
    """

    def __init__(
        self,
        title: str,
        share_done: Callable[[dict[str, float]], float],
        flops_per_token: float,
        peak_flops: float,
        start: dict[str, float] | None = None,
        expected_minutes: float = 0.0,
    ):
        """start: `step` and `seconds` of a run that is gone on with. expected_minutes: `StageConfig`'s."""
        self._title, self._share_done = title, share_done
        self._flops_per_token, self._peak_flops = flops_per_token, peak_flops
        self._start: dict[str, float] | None = start or {"step": 0, "seconds": 0.0}
        self._expected_minutes = expected_minutes
        self._console = Console(file=sys.stderr, soft_wrap=True)
        self._bar: Progress | None = None
        self._last_line = 0.0
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[status]}"), console=self._console,
            )  # fmt: skip
            self._task = self._bar.add_task(title, total=1.0, status="")
            self._bar.start()

    def write(self, record: dict[str, float]) -> None:
        if "loss" in record:
            done = self._share_done(record)
            self._foretell(record, done)
            status = self._status(record, done)
            if self._bar:
                self._bar.update(self._task, completed=done, status=status)
            elif time.monotonic() - self._last_line > 10 or done >= 1.0:  # a log file needs a line now and then
                self._print(f"{self._title} step {record['step']:.0f} ({done:.0%})  {status}")
                self._last_line = time.monotonic()
        elif "skipped" in record:
            self._print(f"{self._title} step {record['step']:.0f}: not finite, skipped")
        else:
            values = "  ".join(f"{k} {shown(v)}" for k, v in record.items() if k != "step")
            self._print(f"{self._title} step {record['step']:.0f}  {values}")

    def _foretell(self, record: dict[str, float], done: float) -> None:
        """Says once, from the pace of the first steps, how long it will take."""
        if self._start is None or record["step"] - self._start["step"] < _STEPS_OF_A_PACE:
            return
        start, self._start = self._start, None
        pace = (record["seconds"] - start["seconds"]) / max(done - self._share_done(start), 1e-9)
        minutes = (1 - self._share_done(start)) * pace / 60
        if minutes < 1:
            return
        line = f"{self._title}: about {minutes:.0f} minutes at this pace"
        if self._expected_minutes and minutes > 2 * self._expected_minutes:
            line += f" instead of {self._expected_minutes:.0f}; a lower --max-steps, or --max-minutes, shortens it"
        self._print(line)

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False)

    def _status(self, record: dict[str, float], done: float) -> str:
        rate = record.get("tokens_per_second", 0.0)
        left = record["seconds"] * (1 - done) / done if done else math.nan
        told = [
            f"{name.replace('_', ' ')} {record[name]:.3f}" for name in ("reward", "true_reward", "kl") if name in record
        ]
        status = "  ".join([f"loss {record['loss']:.3f}", *told, f"{rate:,.0f} tokens/s"])
        if self._peak_flops:
            status += f"  MFU {rate * self._flops_per_token / self._peak_flops:.0%}"
        if not math.isfinite(left):
            return status
        minutes, seconds = divmod(round(left), 60)
        return f"{status}  {minutes}:{seconds:02} left"

    def close(self) -> None:
        if self._bar:
            self._bar.stop()


class Metrics:
    """All sinks of a run as one."""

    def __init__(self, sinks: list[Sink]):
        self._sinks = sinks

    def __call__(self, record: dict[str, float]) -> None:
        for sink in self._sinks:
            sink.write(record)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()


def open_tracker(tracker: Tracker, directory: Path) -> list[Sink]:
    """TensorBoard or Weights & Biases, when asked for. Errors: UserError when the extra is not installed."""
    if tracker == "tensorboard":
        return [_TensorBoard(directory)]
    return [_WandB(directory)] if tracker == "wandb" else []


def measure_peak_flops(device: torch.device, precision: Precision, seconds: float = 0.2) -> float:
    """FLOP/s of a large matrix product in the run's number format: the ceiling that MFU is a share of."""
    dtype = precision.autocast or precision.parameters
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.ones(size, size, device=device).normal_(generator=_generator(device)).to(dtype) for _ in range(2))
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    torch.mm(a, b)
    synchronize()
    best, deadline = math.inf, time.monotonic() + seconds
    while time.monotonic() < deadline:
        started = time.perf_counter()
        torch.mm(a, b)
        synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _generator(device: torch.device) -> torch.Generator:
    # Its own generator: measuring must not move the run's random state.
    return torch.Generator(device=device).manual_seed(0)
