"""What every stage shares: its common flags, the model it starts from, and the way it runs `fit` in a run directory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from instructgpt.config import ModelConfig
from instructgpt.data.batch import Batch, BatchStream
from instructgpt.data.prefetch import Prefetched
from instructgpt.errors import UserError
from instructgpt.evaluation.loss import evaluate_loss
from instructgpt.figures import write_json
from instructgpt.model.adapters import adapters_of, count_trained
from instructgpt.model.backend import resolve_backend
from instructgpt.model.checkpointing import Checkpointing
from instructgpt.model.counts import training_flops_per_token
from instructgpt.model.heads import RewardModel
from instructgpt.model.transformer import Compiled, Transformer
from instructgpt.objectives.lm import Loss
from instructgpt.runtime import (
    Precision,
    Ranks,
    choose_threads,
    join_ranks,
    peak_memory,
    resolve_device,
    resolve_precision,
    seed_everything,
    threads_told,
)
from instructgpt.settings import FilePath, NonNegative, NonNegativeInt, PositiveInt, Settings, ShareBelow1
from instructgpt.stages.adapting import adapter_record
from instructgpt.stages.resumption import inputs, resumable
from instructgpt.strict_json import write_json_lines
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.checkpoint import RunDirectory
from instructgpt.training.compiling import CompileFlag, Prepared, Workload, choose, prepare, told
from instructgpt.training.loop import FitConfig, FitResult, Hooks, Progress, fit, require_end, share_done
from instructgpt.training.metrics import ConsoleLog, JsonLines, Metrics, Sink, Tracker, measure_peak_flops, open_tracker
from instructgpt.training.optimizer import Parameters
from instructgpt.training.plot import plot_curves

VAL_FILE = "val.jsonl"
"""The records of the files that a run validates on, as `eval --data` and `data show` read them."""


@dataclass(frozen=True)
class StageConfig(Settings):
    """Flags that all training stages share."""

    out: FilePath = ""
    """The run directory to write."""
    preset: str = "tiny"
    """Defaults of all other flags, by size of model."""
    init: FilePath = ""
    """A run directory to start from: its tokenizer, shape and weights."""
    seed: NonNegativeInt = 0
    """Decides initial weights, data order and dropout."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    dtype: str = "auto"
    """float32; bfloat16 or float16 (autocast); bfloat16-master (bfloat16 weights, float32 masters); auto picks."""
    backend: str = "auto"
    """Which operations run the model: naive (readable references), sdpa (PyTorch's fused ones), triton (our kernels, on
    CUDA), or auto: triton on CUDA, sdpa elsewhere."""
    checkpointing: Checkpointing = "none"
    """What the backward computes again instead of keeping it, for memory: `blocks` keeps each block's input alone, at a
    quarter more time; `selective` also what matrix products and attention give, at hardly any; `none` keeps all."""
    compile: CompileFlag = "auto"
    """How training steps are compiled: blocks (one Block for all of them), step (the whole loss; batches of one shape),
    off, or auto: what pays for the length of the run on this device, if it can be done here. Results differ from those
    of `off` by rounding."""
    resume: bool = False
    """Go on with the run in --out from its last checkpoint."""
    overwrite: bool = False
    """Replace the run in --out."""
    tracker: Tracker = "none"
    """Also log to tensorboard or wandb (extra `track`)."""
    row_length: NonNegativeInt = 0
    """Tokens of a row, into which documents are packed; 0 means the model's context."""
    expected_minutes: NonNegative = 0.0
    """How long this takes on the machine that the preset was made on (two slow cores for `tiny`): it changes nothing,
    but where it will take more than twice as long, the flags that shorten it are told. 0 tells none."""
    fit: FitConfig = field(default_factory=FitConfig)


@dataclass(frozen=True)
class LanguageStageConfig(StageConfig):
    """Flags of the stages that learn to predict the next token."""

    rows: PositiveInt = 16
    """Rows of a batch, each of --row-length tokens."""
    label_smoothing: ShareBelow1 = 0.0
    """Share of the target's probability that is spread over the vocabulary; makes a model less sure of itself."""


@dataclass(frozen=True)
class Machine:
    """What a stage computes on, resolved once."""

    device: torch.device
    precision: Precision
    ranks: Ranks

    @classmethod
    def of(cls, config: StageConfig) -> Machine:
        device = resolve_device(config.device)
        choose_threads()
        ranks = join_ranks(device)
        if ranks.size > 1 and device.type == "cuda":
            device = torch.device("cuda", ranks.rank % torch.cuda.device_count())
        return cls(device, resolve_precision(config.dtype, device), ranks)


def say_split(what: str, out: str, read: int, trained: int, held_out: int) -> None:
    """Says how many records of the files are trained on and validated on, and where to find the latter."""
    where = f", in {Path(out) / VAL_FILE}" if held_out else ""
    left_out = read - trained - held_out
    world = f"; {left_out:,} on which the world validates are left out" if left_out else ""
    print(f"  {trained:,} {what} to train on, {held_out:,} held out to validate on{where}{world}", flush=True)


def require(value: Any, flag: str, what: str) -> None:
    if not value:
        raise UserError(f"{flag} is missing: {what}")


Model = TypeVar("Model", Transformer, RewardModel)


def build_model(config: StageConfig, machine: Machine, make: Callable[[], Model]) -> Model:
    """The stage's model, its randomness seeded, on its device, in its number format, checkpointed as asked for."""
    seed_everything(config.seed)
    model = make().to(machine.device, machine.precision.parameters)
    (model.transformer if isinstance(model, RewardModel) else model).checkpoint(config.checkpointing)
    return model


def fitting_row_length(config: StageConfig, model: ModelConfig) -> int:
    """--row-length, or the context of the model in --init. Raises UserError when it is longer than that."""
    if config.row_length > model.context:
        raise UserError(f"--row-length {config.row_length} is longer than the context of --init, {model.context}")
    return config.row_length or model.context


def new_backend(config: StageConfig, machine: Machine):
    return resolve_backend(config.backend, machine.device)


def train(
    stage: str,
    config: StageConfig,
    machine: Machine,
    model: Transformer | RewardModel,
    tokenizer: Tokenizer,
    batches: BatchStream,
    loss_fn: Callable[[Any], Loss],
    validate: Callable[[], dict[str, float]] | None = None,
    *,
    beside: Parameters | None = None,
    may_prefetch: bool = True,
    sequences: int = 0,
    held_out: Sequence[dict[str, Any]] = (),
) -> FitResult:
    """Runs `fit` for `stage` in its run directory: checkpoints, metrics, validation, curves, eval.json.

    `loss_fn` gets the stream's batches on the device, the model in training mode; `validate` measures the model, in
    evaluation mode; `val_loss` among its values steers early stopping. `beside` is trained and not saved with the
    model, such as a value head. Batches that depend on the weights must not be prefetched. `sequences`: answers in a
    batch, where these decide how many rows it has; 0 where --rows does. `held_out` are the records that are validated
    on; they are left in val.jsonl before the first step.
    """
    require_end(config.fit, validate is not None)
    run, is_first = RunDirectory(config.out), machine.ranks.is_first
    if is_first:
        run = RunDirectory.open(config.out, overwrite=config.overwrite, resume=config.resume)
    snapshot = resumable(run, stage, config) if config.resume else None
    transformer = model.transformer if isinstance(model, RewardModel) else model
    work = _workload(config, transformer, sequences)
    before = run.read_config().get("compiled", "off") if snapshot else None
    choice = choose(config.compile, work, machine.device, before)
    machine.ranks.wait()  # all have read what was there before the first writes
    prepared = prepare(transformer, choice.mode, work, machine.device, machine.precision)
    if is_first:
        head = "reward" if isinstance(model, RewardModel) else "language"
        run.write_config(
            stage, model.config, tokenizer, config, head, inputs(config), prepared.mode, adapter_record(config)
        )
        (run.path / "eval.json").unlink(missing_ok=True)  # it is of weights that are about to be replaced
        if held_out:
            write_json_lines(run.path / VAL_FILE, held_out)
    device, precision = machine.device, machine.precision
    flops = _training_flops(transformer, config.row_length or model.config.context)
    start = snapshot.values["progress"] if snapshot else {"step": 0, "seconds": 0.0}
    first_step = int(start["step"])
    sinks: list[Sink] = []
    if is_first:
        console = ConsoleLog(
            stage, partial(_share, config.fit), flops, measure_peak_flops(device, precision), start,
            config.expected_minutes,
        )  # fmt: skip
        sinks = [JsonLines(run.metrics_file, first_step), console, *open_tracker(config.tracker, run.path)]
        print(_description(stage, machine, model, first_step), flush=True)
        print(f"  {told(choice, prepared)}", flush=True)
        _tell_warmup(config.fit, config.fit.max_steps)
    metrics = Metrics(sinks)

    def step_loss(batch: Any) -> Loss:
        model.train()
        return loss_fn(batch.to(device))

    def measure() -> dict[str, float]:
        assert validate is not None
        model.eval()
        with precision.context(device), torch.inference_mode():
            return validate()

    hooks = Hooks(
        log=metrics,
        validate=measure if validate else None,
        save=run.save_state,
        save_model=lambda: run.save_model(model),
    )
    # A CPU has no core to spare for prefetching.
    stream = Prefetched(batches, device=device) if device.type == "cuda" and may_prefetch else batches
    try:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        result = fit(
            {**trained, **(beside or {})}, stream, step_loss, config.fit, hooks,
            device=device, precision=precision, ranks=machine.ranks, resume_from=snapshot,
        )  # fmt: skip
    finally:
        metrics.close()
        transformer.compiled = Compiled()
    model.eval()
    if is_first:
        if result.stopped_early:
            best, last = result.weights_of_step, result.progress.step
            print(f"stopped at step {last}: no validation was better than that of step {best}, whose weights are kept")
        if not config.fit.max_steps:
            _tell_warmup(config.fit, result.progress.step)
        plot_curves({stage: run.metrics_file}, run.path / "curves.png")
        _write_eval(run, result, peak_memory(device), prepared, model)
    return result


def language_validation(
    model: Transformer, tokenizer: Tokenizer, batches: Callable[[], Iterable[Batch]]
) -> Callable[[], dict[str, float]]:
    """The `validate` of a language model: its loss on held-out batches, read anew each time."""

    def validate() -> dict[str, float]:
        report = evaluate_loss(model, tokenizer, batches())
        return {
            "val_loss": report.loss,
            "val_bits_per_byte": report.bits_per_byte,
            "val_accuracy": report.token_accuracy,
        }

    return validate


def _workload(config: StageConfig, model: Transformer, sequences: int) -> Workload:
    """What there is to compile for. Answers are taken to fill half a row each, on average."""
    row_length = config.row_length or model.config.context
    rows = 0 if sequences else getattr(config, "rows", 0)
    tokens = rows * row_length or sequences * row_length / 2
    updates = config.fit.max_steps * config.fit.micro_batches
    return Workload(rows, row_length, updates * tokens * _training_flops(model, row_length))


def _training_flops(model: Transformer, row_length: int) -> float:
    """A token."""
    return training_flops_per_token(model.config, row_length, is_frozen=bool(adapters_of(model)))


def _write_eval(
    run: RunDirectory, result: FitResult, memory: int, prepared: Prepared, model: Transformer | RewardModel
) -> None:
    trained, parameters = count_trained(model)
    progress = result.progress
    seconds = progress.seconds + prepared.seconds
    write_json(
        run.path / "eval.json",
        {
            **result.metrics,
            "steps": progress.step,
            "weights_of_step": result.weights_of_step,
            "tokens": progress.tokens,
            "minutes": seconds / 60,
            "tokens_per_second": progress.tokens / max(seconds, 1e-9),
            "compiled": prepared.mode,
            "compile_seconds": prepared.seconds,
            "skipped_steps": progress.skipped_steps,
            "peak_memory": memory,
            "parameters": parameters,
            "trained_parameters": trained,
        },
    )


def _share(config: FitConfig, record: dict[str, float]) -> float:
    return min(1.0, share_done(config, Progress(step=int(record["step"]), seconds=record["seconds"])))


def _tell_warmup(fit: FitConfig, steps: int) -> None:
    if 0 < steps <= fit.warmup_steps:
        print(
            f"the run ends after {steps} updates, within its warm-up of {fit.warmup_steps} (--warmup-steps): the "
            f"learning rate only rises, to {steps / fit.warmup_steps:.0%} of its peak",
            flush=True,
        )


def _description(stage: str, machine: Machine, model: Transformer | RewardModel, first_step: int) -> str:
    """One line that says what is about to run."""
    trained, parameters = count_trained(model)
    part = f", {trained / 1e6:.3f}M of them trained ({trained / parameters:.2%})" if adapters_of(model) else ""
    ranks = f" x {machine.ranks.size}" if machine.ranks.size > 1 else ""
    threads = f" with {threads_told()}" if machine.device.type == "cpu" else ""
    going_on = f", going on from step {first_step}" if first_step else ""
    return (
        f"{stage}: {parameters / 1e6:.2f}M parameters{part} on {machine.device.type}{threads}{ranks}, "
        f"{machine.precision.name}, backend {model.backend.name}{going_on}"
    )
