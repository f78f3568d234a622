"""`fit`: the one training loop. Every stage is a stream of batches and a loss function driven by it."""

from __future__ import annotations

import gc
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from instructgpt.data.batch import BatchStream
from instructgpt.errors import UserError
from instructgpt.objectives.lm import Loss
from instructgpt.runtime import Precision, Ranks
from instructgpt.settings import NonNegative, NonNegativeInt, PositiveInt, Share, ShareBelow1
from instructgpt.training.averages import Average, exchange
from instructgpt.training.metrics import Window
from instructgpt.training.optimizer import Optimizer, OptimizerConfig, Parameters
from instructgpt.training.schedule import Schedule, learning_rate_factor
from instructgpt.training.update import FIRST_SCALE, Outcome, Updates


@dataclass(frozen=True)
class FitConfig(OptimizerConfig):
    """How long to train, at which rates, and what to watch. Every field is a flag of every stage."""

    max_steps: NonNegativeInt = 0
    """Stop after this many updates; 0 sets no such limit."""
    max_minutes: NonNegative = 0.0
    """Stop after this much training time; 0 sets no such limit. The schedule ends at whichever limit comes first."""
    micro_batches: PositiveInt = 1
    """Batches whose gradients are added before one update: a large batch in the memory of a small one."""
    schedule: Schedule = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup_steps: NonNegativeInt = 20
    """Updates over which the learning rate rises from zero; Adam's first estimates are poor. The schedule begins where
    they end."""
    cooldown: Share = 0.3
    """Share of the run in which `wsd` falls."""
    final_learning_rate: Share = 0.0
    """Where the schedule ends, as a share of the peak."""
    clip: NonNegative = 1.0
    """Longest gradient (norm over all parameters); longer ones are shortened to it. 0 never clips."""
    ema: ShareBelow1 = 0.0
    """Decay of an average of the weights over steps, which is what is then evaluated and saved; 0 keeps none."""
    eval_every: NonNegativeInt = 0
    """Updates between validations; 0 validates at the end only."""
    patience: NonNegativeInt = 0
    """Stop after this many validations without a better loss, and keep the best weights; 0 never stops early, and keeps
    the last ones."""
    save_every: NonNegativeInt = 200
    """Updates between checkpoints, which is what a kill can cost; 0 saves at the end only."""
    log_every: PositiveInt = 10
    """Updates between lines of the log."""
    max_bad_steps: PositiveInt = 5
    """Steps in a row with a loss or gradient that is not finite, each skipped, before the run is given up. On a GPU,
    which is not waited for in between, that is noticed at the next line of the log."""


@dataclass
class Progress:
    """Where a run stands: all of `fit`'s own state that is not a tensor."""

    step: int = 0
    seconds: float = 0.0
    """Training time, over all resumptions."""
    tokens: int = 0
    warmup_seconds: float = 0.0
    """Where the warm-up ended."""
    best_loss: float | None = None
    validations_since_best: int = 0
    validated_at: int = -1
    """The step of the last validation."""
    bad_steps: int = 0
    skipped_steps: int = 0
    loss_scale: float = 1.0
    good_steps_at_scale: int = 0


@dataclass
class Snapshot:
    """All that is needed to go on as if nothing had happened."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


@dataclass
class Hooks:
    """What a stage adds to the loop. None of them may change weights or draw random numbers."""

    log: Callable[[dict[str, float]], None] = lambda metrics: None
    """Receives a record every `log_every` steps and after each validation."""
    validate: Callable[[], dict[str, float]] | None = None
    """Measures the weights on held-out data; `val_loss` among its values steers early stopping."""
    save: Callable[[Snapshot], None] | None = None
    """Writes a snapshot to disk."""
    save_model: Callable[[], None] | None = None
    """Writes the weights that the parameters hold at this moment (the averaged or the best ones) for use."""


@dataclass
class FitResult:
    progress: Progress
    metrics: dict[str, float] = field(default_factory=dict)
    """What the weights that are left have: those of the last validation, or of the best one with `patience`."""
    weights_of_step: int = 0
    """After how many updates the weights were what they are."""
    stopped_early: bool = False


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them; a second one interrupts at once."""
    received: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        previous = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's
        previous = {}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def fit(
    parameters: Parameters,
    batches: BatchStream,
    loss_fn: Callable[[Any], Loss],
    config: FitConfig,
    hooks: Hooks,
    *,
    device: torch.device,
    precision: Precision,
    ranks: Ranks | None = None,
    resume_from: Snapshot | None = None,
) -> FitResult:
    """Minimises Σ total / Σ weight over micro-batches and ranks, one update after the other.

    `parameters`: the trained tensors by name, updated in place. `batches` is read on demand and never ahead, so that it
    may depend on the weights of the moment. With several ranks, micro-batch i belongs to rank i mod size. A CUDA device
    is waited for only to log, validate and save; the others compute when they are told to, and are looked at each time.
    Raises KeyboardInterrupt after saving when asked to stop, and UserError when the loss stays non-finite.
    """
    require_end(config, hooks.validate is not None)
    ranks = ranks or Ranks()
    optimizer = Optimizer(parameters, config, compute_dtype=precision.autocast or precision.parameters)
    average = Average(optimizer.masters, config.ema)
    best: dict[str, Tensor] = {}
    progress = Progress(loss_scale=FIRST_SCALE if precision.scale_loss else 1.0)
    result = FitResult(progress)
    if resume_from is not None:
        _restore(resume_from, config, optimizer, average, best, batches, result)
    updates = Updates(optimizer, average, loss_fn, config.micro_batches, config.clip, device, precision, ranks)
    updates.scale = (progress.loss_scale, progress.good_steps_at_scale)
    window = Window()

    def snapshot() -> Snapshot:
        tensors = {f"optimizer/{k}": v for k, v in optimizer.state().items()}
        tensors |= {f"average/{k}": v for k, v in average.weights.items()} | {f"best/{k}": v for k, v in best.items()}
        tensors["random/cpu"] = torch.get_rng_state()
        if device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(device)
        values = {"progress": dict(vars(progress)), "batches": batches.state()}
        return Snapshot(tensors, {**values, "metrics": result.metrics, "weights_of_step": result.weights_of_step})

    def validate() -> None:
        """Measures and logs; with `patience`, keeps the weights when they are the best so far."""
        progress.validated_at = progress.step
        if hooks.validate is None:
            return
        exchange(average.weights, optimizer)
        metrics = hooks.validate()
        loss = metrics.get("val_loss", math.nan)
        progress.validations_since_best += 1
        if is_best := loss < (math.inf if progress.best_loss is None else progress.best_loss):
            progress.best_loss, progress.validations_since_best = loss, 0
            if config.patience:
                best.update({name: p.detach().clone() for name, p in optimizer.masters.items()})
        if is_best or not best:
            result.metrics, result.weights_of_step = metrics, progress.step
        exchange(average.weights, optimizer)
        hooks.log({"step": progress.step, **metrics})

    def save() -> None:
        if not ranks.is_first:
            return
        if hooks.save_model is not None:
            exchange(best or average.weights, optimizer)
            hooks.save_model()
            exchange(best or average.weights, optimizer)
        if hooks.save is not None:
            hooks.save(snapshot())

    def settle() -> None:
        """Reads what came of the updates that were made, for which the device has to be waited for."""
        for outcome in updates.outcomes():
            _account(outcome, progress, window, config, hooks)
        if precision.scale_loss:
            progress.loss_scale, progress.good_steps_at_scale = updates.scale

    with _stop_requests() as stop_requests, _collecting_at_leave() as collect:
        started = time.monotonic() - progress.seconds
        while not (_is_over(config, progress) or _has_stalled(config, progress)):
            factor = scheduled_factor(config, progress)
            progress.step += 1
            updates.make(batches, progress.step, factor)
            progress.seconds = time.monotonic() - started
            if progress.step <= config.warmup_steps:
                progress.warmup_seconds = progress.seconds
            logs = progress.step % config.log_every == 0 or _is_over(config, progress)
            validates = config.eval_every and progress.step % config.eval_every == 0
            saves = config.save_every and progress.step % config.save_every == 0
            if device.type != "cuda" or logs or validates or saves:
                settle()
            if logs:
                record = window.record(progress.step, progress.tokens, progress.seconds)
                hooks.log({**record, "learning_rate": factor * config.learning_rate})
                collect()
            if validates:
                validate()
            if saves:
                save()
            if stop_requests:
                settle()
                save()
                raise KeyboardInterrupt
        if progress.validated_at != progress.step:
            validate()
        save()
    exchange(best or average.weights, optimizer)  # what a caller finds in the model is what was evaluated
    result.stopped_early = _has_stalled(config, progress)
    if not result.metrics:
        result.weights_of_step = progress.step
    return result


def require_end(config: FitConfig, validates: bool) -> None:
    """Raises UserError where nothing would end a run, or what is to end it does not happen."""
    if not (config.max_steps or config.max_minutes):
        raise UserError("training needs an end: set --max-steps or --max-minutes")
    if config.patience and not (config.eval_every and validates):
        lacking = "set --eval-every" if validates else "hold some data out"
        raise UserError(f"--patience {config.patience} counts validations, and there are none: {lacking}")


def scheduled_factor(config: FitConfig, progress: Progress) -> float:
    """What the next update multiplies the peak learning rates with."""
    warmed_up = Progress(step=config.warmup_steps, seconds=progress.warmup_seconds)
    return learning_rate_factor(
        config.schedule, progress.step, share_done(config, progress), config.warmup_steps,
        min(share_done(config, warmed_up), 1.0), config.final_learning_rate, config.cooldown,
    )  # fmt: skip


def _account(outcome: Outcome, progress: Progress, window: Window, config: FitConfig, hooks: Hooks) -> None:
    """Counts an update that was made. One that was not finite is reported; of too many in a row the run dies."""
    progress.tokens += outcome.tokens
    if outcome.is_finite:
        progress.bad_steps = 0
        window.add(outcome.total, outcome.weight, outcome.metrics, outcome.tokens, outcome.gradient_norm)
        return
    progress.skipped_steps += 1
    progress.bad_steps += not outcome.overflowed
    not_finite = {"loss_sum": outcome.total, "gradient_norm": outcome.gradient_norm}
    hooks.log({"step": outcome.step, "skipped": 1.0, **not_finite})
    if progress.bad_steps >= config.max_bad_steps:
        raise UserError(
            f"step {outcome.step}: loss or gradient was not finite {progress.bad_steps} times in a row; the last "
            "checkpoint is kept: look at the data, or try a lower --learning-rate"
        )


@contextmanager
def _collecting_at_leave() -> Iterator[Callable[[], int]]:
    """Python's garbage collector only when it is called: it stops the world for tens of milliseconds, at any time.

    What exists by now stays, and need not be looked at again.
    """
    was_enabled = gc.isenabled()
    gc.freeze()
    gc.disable()
    try:
        yield gc.collect
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


def share_done(config: FitConfig, progress: Progress) -> float:
    """How far the run is, by steps or by time, whichever ends it: 1 at its end."""
    steps = progress.step / config.max_steps if config.max_steps else 0.0
    minutes = progress.seconds / 60 / config.max_minutes if config.max_minutes else 0.0
    return max(steps, minutes)


def _is_over(config: FitConfig, progress: Progress) -> bool:
    return share_done(config, progress) >= 1.0


def _has_stalled(config: FitConfig, progress: Progress) -> bool:
    return bool(config.patience) and progress.validations_since_best >= config.patience


def _restore(
    snapshot: Snapshot, config: FitConfig, optimizer: Optimizer, average: Average, best: dict[str, Tensor],
    batches: BatchStream, result: FitResult,
) -> None:  # fmt: skip
    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in snapshot.tensors.items() if k.startswith(prefix)}

    optimizer.restore(part("optimizer/"))
    for name, weights in part("average/").items():
        if name in average.weights:
            average.weights[name].copy_(weights)
    batches.restore(snapshot.values["batches"])
    for name, value in snapshot.values["progress"].items():
        setattr(result.progress, name, value)
    measured = snapshot.values["metrics"].items()  # JSON knows no NaN
    result.metrics = {name: math.nan if value is None else value for name, value in measured}
    result.weights_of_step = snapshot.values["weights_of_step"]
    kept = part("best/")
    if config.patience and kept:
        best.update({name: w.to(optimizer.masters[name].device) for name, w in kept.items()})
    elif config.patience:  # asked for only now: no weights were kept so far
        result.progress.best_loss, result.progress.validations_since_best = None, 0
    elif kept:  # no longer asked for: what was measured are weights that are not kept
        result.progress.validated_at = -1
    torch.set_rng_state(snapshot.tensors["random/cpu"])
    if "random/cuda" in snapshot.tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(snapshot.tensors["random/cuda"])
