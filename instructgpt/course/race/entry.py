"""What takes part: the rules, and the record that an entry's file makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from instructgpt.config import ModelConfig
from instructgpt.course.attempt import blaming, function_of, require_function
from instructgpt.data.batch import Batch
from instructgpt.errors import UserError, suggestion
from instructgpt.model.transformer import Transformer
from instructgpt.objectives.lm import Loss, next_token_loss
from instructgpt.settings import Positive, PositiveInt, Settings
from instructgpt.training.loop import FitConfig

FLOPS_PER_MINUTE = 4e12
"""What two cores compute in a minute of training a model of this size, in float32: five minutes are 2e13."""
TRAINING_SEED = 20_000_003
HELD_OUT_SEED = 30_000_001
"""Of the world's endless text: what is trained on, and what is scored."""
WRITES_ONE = "race start"
RECORDS = ("gpt2", "rates", "llama", "muon", "look_up")
"""Ours, the oldest first: files in records/."""


@dataclass(frozen=True)
class Rules(Settings):
    """What all entries have in common."""

    minutes: Positive = 5.0
    """Of the machine: 4e12 FLOPs each, and the time that four cores have. Less is for trying; records are of 5."""
    documents: PositiveInt = 256
    """Held-out documents that the number is over."""
    cores: PositiveInt = 4
    """Whose time, the minutes long, is the second limit: a model that computes little and takes long is stopped."""
    beside: Positive = 120.0
    """Seconds of CPU time for what is no training: imports, the vocabulary, answers to the judge."""
    share: Positive = 0.5
    """Of a core, which an entry is thought to have at least, on a busy machine, too."""

    @property
    def flops(self) -> float:
        return FLOPS_PER_MINUTE * self.minutes

    @property
    def cpu_seconds(self) -> float:
        """Of training, all cores together."""
        return 60 * self.cores * self.minutes

    @property
    def seconds(self) -> float:
        """Of the clock, after which an entry is ended that sleeps."""
        return (self.cpu_seconds + self.beside) / self.share


def logits_loss(model: Any, batch: Batch) -> Loss:
    """The loss of a model that is called as `model(ids, positions, documents)`, all (B, T), and gives logits."""
    logits = batch.at_targets(model(batch.ids, batch.positions, batch.documents))  # (N, V)
    losses = F.cross_entropy(logits.float(), batch.at_targets(batch.targets), reduction="none")
    return Loss(losses.sum(), torch.full((), float(len(losses))))


@dataclass(frozen=True)
class Entry(Settings):
    """What is trained and how. Free are model, loss, rates, batches and vocabulary; the text is everybody's."""

    change: str
    """What it tries, in a line; it stands in the table."""
    model: ModelConfig | Callable[[int], nn.Module]
    """The shape of our Transformer, or a function that makes a model of your own for so many tokens: called as
    model(ids, positions, documents), each (B, T), it gives logits (B, T, V); when it is judged, as model(ids)."""
    fit: FitConfig = field(default_factory=FitConfig)
    """Optimizer, rates and schedule. How many updates there are, the FLOPs say; `max_steps` may stop before that."""
    rows: PositiveInt = 6
    """Rows of a batch."""
    row_length: PositiveInt = 256
    """Tokens of a row, into which documents are packed; a longer document is judged in pieces of it."""
    vocab_size: PositiveInt = 2560
    """Tokens of the vocabulary, which is trained on the race's own text."""
    split_digits: bool = True
    """Every digit its own token."""
    loss: Callable[[Any, Batch], Loss] | None = None
    """loss(model, batch) -> Loss; None is the next token's cross-entropy."""

    def build(self, vocab_size: int, make: Callable[[ModelConfig], Transformer]) -> nn.Module:
        """The model, by `make` where it is a shape. UserError for what is no model."""
        if isinstance(self.model, ModelConfig):
            return make(self.model)
        if not isinstance(found := self.model(vocab_size), nn.Module):
            raise UserError(f"its `model` made {type(found).__name__}; it should make a torch.nn.Module")
        return found

    def objective(self, model: nn.Module) -> Callable[[Any, Batch], Loss]:
        return self.loss or (next_token_loss if isinstance(model, Transformer) else logits_loss)


def load_entry(path: Path) -> Entry:
    """The entry that a file's `entry()` makes. UserError, with the line, for all that may be wrong with it."""
    require_function(path, "entry", WRITES_ONE)
    function = function_of(path, "entry")
    with blaming(path, "entry()"):
        found = function()
    if not isinstance(found, Entry):
        raise UserError(f"its entry() gives {type(found).__name__}; it should give an Entry", path)
    if not isinstance(found.change, str) or len(found.change.splitlines()) != 1:
        raise UserError(f"its change is {found.change!r}; it should be a line that says what is tried", path)
    if not isinstance(found.model, ModelConfig) and not callable(found.model):
        raise UserError(f"its model is {type(found.model).__name__}; it should be a ModelConfig or a function", path)
    if not isinstance(found.fit, FitConfig):
        raise UserError(f"its fit is {type(found.fit).__name__}; it should be a FitConfig", path)
    if useless := [name for name in ("max_minutes", "eval_every", "patience") if getattr(found.fit, name)]:
        raise UserError(f"its fit has {useless[0]}, but FLOPs end a run, and nothing is validated; take it out", path)
    if isinstance(found.model, ModelConfig) and found.model.context < found.row_length:
        raise UserError(f"rows of {found.row_length} tokens do not fit in a context of {found.model.context}", path)
    return found


def record_text(name: str) -> str:
    """The file of one of our records. UserError for a name that none has."""
    if name not in RECORDS:
        raise UserError(f"there is no record {name!r}{suggestion(name, RECORDS)}")
    return resources.files("instructgpt.course.race.records").joinpath(f"{name}.py").read_text(encoding="utf-8")
