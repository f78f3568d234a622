"""An entry's own process: imports the file, trains as it says, then answers the judge's questions.

Run as `python -m instructgpt.course.race.racer JOB`, JOB being JSON. What the judge scores are logits that it asks for;
what is said here of FLOPs is counted by a mode around the whole training, and that nobody has replaced what counts and
what trains is looked at; the process's own time is limited by the system.
"""

from __future__ import annotations

import copy
import json
import math
import os
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from instructgpt import world
from instructgpt.config import ModelConfig
from instructgpt.course.attempt import blaming
from instructgpt.course.race import channel
from instructgpt.course.race.entry import TRAINING_SEED, Entry, Rules, load_entry
from instructgpt.course.race.meter import Meter, Metered, Spent
from instructgpt.data.packing import PackedStream
from instructgpt.data.sources import WorldText
from instructgpt.errors import UserError
from instructgpt.model.backend import resolve_backend
from instructgpt.model.transformer import Transformer
from instructgpt.objectives.lm import Loss
from instructgpt.runtime import choose_threads, resolve_precision, seed_everything
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.loop import Hooks, fit
from kernels.lab.limits import Wrong
from kernels.lab.surroundings import Names

TOKENIZER_DOCUMENTS = 4_000
JUDGING = ("instructgpt.course.race.", "instructgpt.training.loop", "instructgpt.training.update")
"""Modules that count, and that lead the training."""
LEAST_COUNTED = 0.5
"""Of the first update's FLOPs, what the average one must have: with less, somebody has meddled with the count."""
CPU = torch.device("cpu")


def main(job: dict[str, Any], questions: IO[bytes], answers: IO[bytes]) -> None:
    rules = Rules(**job["rules"])
    choose_threads()
    limit_time(rules.cpu_seconds + rules.beside)
    path = Path(job["file"])
    judging = Names(JUDGING)
    try:
        entry = load_entry(path)
        with blaming(path, "training it"):
            model, told = train(entry, rules, job["seed"], Path(job["folder"]))
        judging.require_unchanged()
    except (UserError, Wrong) as error:
        where = "" if isinstance(error, UserError) else f"{path}: "
        channel.send(answers, {"error": f"{where}{error}"})
        return
    channel.send(answers, told)
    try:
        with blaming(path, "asking its model"):
            answer(model, questions, answers)
    except UserError as error:
        channel.send(answers, {"error": str(error)})


def limit_time(seconds: float) -> None:
    """So that no more CPU time than this can be used, whatever runs here."""
    try:
        import resource
    except ImportError:  # Windows
        return
    whole = math.ceil(seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (whole, whole + 5))  # first a signal of its own, which the judge knows


def train(entry: Entry, rules: Rules, seed: int, folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The trained model, and what is told of it; the vocabulary is left in `folder`."""
    texts = (world.document(index, TRAINING_SEED) for index in range(TOKENIZER_DOCUMENTS))
    tokenizer = Tokenizer.train(texts, entry.vocab_size, split_digits=entry.split_digits)
    tokenizer.save(folder)

    def transformer(shape: ModelConfig) -> Transformer:
        return Transformer(replace(shape, vocab_size=tokenizer.vocab_size), resolve_backend("sdpa", CPU))

    seed_everything(seed)
    model = entry.build(tokenizer.vocab_size, transformer).float()
    loss_fn = partial(entry.objective(model), model)
    one = _count_update(entry, model, tokenizer)
    updates = int(rules.flops / one)
    if updates < 1:
        raise UserError(f"one update costs {one:.2e} FLOPs, and all that there are is {rules.flops:.2e}")
    updates = min(updates, entry.fit.max_steps or updates)
    config = replace(entry.fit, max_steps=updates, max_minutes=0.0, log_every=max(1, updates // 10), eval_every=0)

    def log(record: dict[str, float]) -> None:
        if "loss" in record:
            print(f"  {record['step'] / updates:4.0%}  loss {record['loss']:.3f}", flush=True)

    seed_everything(seed)
    meter, started, began = Meter(), time.process_time(), time.monotonic()
    batches = Metered(stream(entry, tokenizer, seed), meter, rules.flops, rules.cpu_seconds)
    done = Done(loss_fn)
    stopped_by = ""
    model.train()
    with meter:
        try:
            _fit(model, batches, done, config, Hooks(log=log))
        except Spent as spent:
            stopped_by = str(spent)
    model.eval()
    done_updates = done.calls // config.micro_batches
    if meter.flops < LEAST_COUNTED * one * done_updates:
        raise UserError(
            f"{done_updates:,} updates came to {meter.flops:.1e} FLOPs, the first one alone to {one:.1e}: the others "
            "are not counted"
        )
    return model, {
        "change": entry.change, "row_length": entry.row_length, "vocab_size": tokenizer.vocab_size,
        "parameters": sum(p.numel() for p in model.parameters()), "flops": meter.flops, "flops_per_update": one,
        "updates": done_updates, "planned_updates": updates, "tokens": done.tokens,
        "stopped_by": stopped_by, "cpu_seconds": time.process_time() - started, "seconds": time.monotonic() - began,
    }  # fmt: skip


def stream(entry: Entry, tokenizer: Tokenizer, seed: int) -> PackedStream:
    """The text that everybody trains on; another seed reads other documents of it."""
    return PackedStream(WorldText(tokenizer, TRAINING_SEED + seed), entry.row_length, entry.rows)


class Done:
    """A loss that keeps count of what it was called for."""

    def __init__(self, loss_fn: Any):
        self._loss_fn, self.calls, self.tokens = loss_fn, 0, 0

    def __call__(self, batch: Any) -> Loss:
        self.calls += 1
        self.tokens += int(batch.tokens)
        loss = self._loss_fn(batch)
        if not isinstance(loss, Loss):
            raise UserError(f"its loss gives {type(loss).__name__}; it should give a Loss(total, weight)")
        return loss


def _count_update(entry: Entry, model: nn.Module, tokenizer: Tokenizer) -> int:
    """FLOPs of the first update, optimizer included, made on a copy."""
    twin = copy.deepcopy(model).train()
    config = replace(entry.fit, max_steps=1, max_minutes=0.0)
    with Meter() as meter:
        _fit(twin, stream(entry, tokenizer, 0), Done(partial(entry.objective(twin), twin)), config, Hooks())
    if not meter.flops:
        raise UserError("its update computes nothing that can be counted: where are the model's matrix products?")
    return meter.flops


def _fit(model: nn.Module, batches: Any, loss_fn: Any, config: Any, hooks: Hooks) -> None:
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    precision = resolve_precision("float32", CPU)
    fit(parameters, batches, loss_fn, replace(config, save_every=0, patience=0), hooks, device=CPU, precision=precision)


def answer(model: nn.Module, questions: IO[bytes], answers: IO[bytes]) -> None:
    """Gives logits (B, T, V) for ids (B, T), as long as somebody asks."""
    while True:
        try:
            ids = channel.receive_array(questions, "int64")
        except channel.Silent:
            return
        with torch.inference_mode():
            logits: Tensor = model(torch.from_numpy(ids.copy()))
        channel.send(answers, logits.float().numpy())


if __name__ == "__main__":
    # What the entry prints goes where errors go: the answers' own way stays clean.
    kept = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        main(json.loads(sys.argv[1]), sys.stdin.buffer, kept)
    except KeyboardInterrupt:
        sys.exit(130)
