"""A training step to be timed: our model in our own loop, or a peer in PyTorch's."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from benchmarks.machine import synchronize
from benchmarks.peers import PlainGPT, TransformersGPT
from benchmarks.workers import Figures, Measure
from instructgpt import world
from instructgpt.config import MODEL_PRESETS, ModelConfig
from instructgpt.data.batch import Batch
from instructgpt.data.packing import PackedStream, collate
from instructgpt.data.sources import WorldInstructions
from instructgpt.errors import UserError, suggestion
from instructgpt.model.backend import resolve_backend
from instructgpt.model.checkpointing import Checkpointing
from instructgpt.model.transformer import Transformer
from instructgpt.objectives.lm import Loss, next_token_loss
from instructgpt.runtime import peak_memory, resolve_precision, seed_everything
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training import compiling
from instructgpt.training.compiling import CompileMode, Workload
from instructgpt.training.loop import FitConfig, Hooks, fit
from instructgpt.training.moments import StateFormat

_GPT2: dict[str, Any] = dict(mlp="gelu", norm="layernorm", position="learned", bias=True, tie_embeddings=True)
SHAPES: dict[str, ModelConfig] = {
    "minute": ModelConfig(vocab_size=2048, context=64, layers=2, width=32, heads=2, **_GPT2),
    "12m": ModelConfig(vocab_size=4096, context=256, layers=6, width=384, heads=6, **_GPT2),
    **{
        name: replace(shape, vocab_size=8192 if name in ("tiny", "small") else 50304, dropout=0.0)
        for name, shape in MODEL_PRESETS.items()
    },
}
"""`12m` is GPT-2's form at 12.3M parameters, `minute` a stand-in; the others are the presets, without dropout."""


def shape_named(name: str) -> ModelConfig:
    """Errors: UserError, with the nearest name."""
    if name not in SHAPES:
        raise UserError(f"--shape {name} is unknown{suggestion(name, SHAPES)}")
    return SHAPES[name]


def has_peers(shape: ModelConfig) -> bool:
    """Whether a shape is GPT-2's, which the peers have too."""
    return all(getattr(shape, name) == value for name, value in _GPT2.items())


@dataclass(frozen=True)
class StepCase:
    """What is timed."""

    shape: str
    rows: int
    device: str
    dtype: str
    of: Literal["ours", "plain", "transformers"] = "ours"
    backend: str = "auto"
    compile: CompileMode = "off"
    """Ours: as --compile. Peers: off, or step for all of the model."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    optimizer_state: StateFormat = "float32"
    checkpointing: Checkpointing = "none"
    steps: int = 3
    """Steps of a measurement."""
    data: Literal["random", "packed", "padded"] = "random"
    """Random tokens in full rows; or the world's conversations, packed as in training or one a row."""
    head: Literal["targets", "all"] = "targets"
    """Which positions get logits. Ours gives them to targets alone; all is planted here, to be compared with."""


def prepare(case: StepCase) -> Measure:
    """A function that takes some steps, after those that compile and warm up, and tells how they went."""
    device = torch.device(case.device)
    seed_everything(0)
    shape = shape_named(case.shape)
    batch = batch_of(case, shape)
    started = time.perf_counter()
    step = (_our_steps if case.of == "ours" else _peer_steps)(case, shape, batch, device)
    step(3)
    warm_up = time.perf_counter() - started
    _leave_memory_to_others(device)

    def measure() -> Figures:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds, loss = step(case.steps)
        found = {
            "seconds": seconds, "tokens_per_second": int(batch.tokens) / seconds,
            "peak_megabytes": peak_memory(device) / 1e6, "loss": loss, "warm_up_seconds": warm_up,
        }  # fmt: skip
        _leave_memory_to_others(device)
        return found

    return measure


def _leave_memory_to_others(device: torch.device) -> None:
    """What PyTorch keeps of a GPU's memory for later would be missing to the processes that measure in between."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


class Timed:
    """The same batch a number of times; the time between two of them is a step's."""

    def __init__(self, batch: Batch, device: torch.device):
        self._batch, self._device = batch, device
        self.times: list[float] = []

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if len(self.times) < 2:  # from here on nobody waits for the device
            synchronize(self._device)
        self.times.append(time.perf_counter())
        return self._batch

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None: ...


def _our_steps(case: StepCase, shape: ModelConfig, batch: Batch, device: torch.device) -> Any:
    """step(n) -> seconds a step, and the last loss: `fit` itself, one update more than is counted."""
    numbers = resolve_precision(case.dtype, device)
    model = Transformer(shape, resolve_backend(case.backend, device)).to(device, numbers.parameters)
    model.checkpoint(case.checkpointing)
    compiled = compiling.prepare(model, case.compile, Workload(case.rows, shape.context, 0.0), device, numbers)
    if compiled.failure:
        raise RuntimeError(compiled.failure)
    loss_of = next_token_loss if case.head == "targets" else loss_of_all_positions
    losses: list[float] = []

    def loss(batch: Batch) -> Loss:
        return loss_of(model, batch.to(device))

    def log(record: dict[str, float]) -> None:
        losses.append(record.get("loss", math.nan))

    def steps(count: int) -> tuple[float, float]:
        timed = Timed(batch, device)
        config = FitConfig(
            optimizer=case.optimizer,
            optimizer_state=case.optimizer_state,
            max_steps=count + 1,
            save_every=0,
            log_every=count + 1,
            warmup_steps=0,
        )
        parameters = dict(model.named_parameters())
        fit(parameters, timed, loss, config, Hooks(log=log), device=device, precision=numbers)
        synchronize(device)
        return (time.perf_counter() - timed.times[1]) / count, losses[-1]

    return steps


def _peer_steps(case: StepCase, shape: ModelConfig, batch: Batch, device: torch.device) -> Any:
    """step(n) -> seconds a step, and the last loss: as nanoGPT's loop takes it."""
    numbers = resolve_precision(case.dtype, device)
    model: Any = {"plain": PlainGPT, "transformers": TransformersGPT}[case.of](shape).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), fused=True)
    on_device = batch.to(device)
    loss_of = torch.compile(model) if case.compile != "off" else model

    def steps(count: int) -> tuple[float, float]:
        started = 0.0
        for index in range(count + 1):
            if index == 1:
                synchronize(device)
                started = time.perf_counter()
            with numbers.context(device):
                loss = loss_of(on_device.ids, on_device.targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        synchronize(device)
        return (time.perf_counter() - started) / count, float(loss.detach())  # pyright: ignore[reportPossiblyUnbound]

    return steps


def loss_of_all_positions(model: Transformer, batch: Batch) -> Loss:
    """The same loss by way of all logits, those after prompts and padding included, which are then not used."""
    hidden = model.hidden(batch.ids, batch.positions, batch.documents)
    losses = model.token_losses(hidden.flatten(0, 1), batch.targets.flatten()) * batch.is_target.flatten()
    return Loss(losses.sum(), batch.is_target.sum())


def batch_of(case: StepCase, shape: ModelConfig) -> Batch:
    """The batch that is trained on again and again."""
    if case.data == "random":
        return random_batch(case.rows, shape)
    tokenizer = Tokenizer.train((world.document(i, 0) for i in range(2_000)), vocab_size=2_000)
    source = WorldInstructions("train", tokenizer, context=shape.context)
    if case.data == "padded":
        return collate([[source[i]] for i in range(case.rows)], shape.context)
    return next(PackedStream(source, shape.context, case.rows))


def random_batch(rows: int, shape: ModelConfig) -> Batch:
    """Full rows of one document each, every token a target, as in pretraining."""
    size = (rows, shape.context)
    ids, targets = torch.randint(shape.vocab_size, (2, *size), generator=torch.Generator().manual_seed(0))
    slots = torch.arange(shape.context).expand(size)
    return Batch(ids, targets, torch.ones(size, dtype=torch.bool), slots, torch.zeros(size, dtype=torch.int64))
