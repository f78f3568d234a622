"""What the stages that tune a model share: whether they train the model itself, or an adapter beside it."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from instructgpt.errors import UserError
from instructgpt.model.adapters import LoRA
from instructgpt.model.transformer import Transformer
from instructgpt.settings import Range, Settings
from instructgpt.training.adapter_file import AdapterRecord, BaseFormat, add_recorded
from instructgpt.training.checkpoint import RunDirectory


@dataclass(frozen=True)
class AdapterFlags(Settings):
    """Train a small adapter beside the model in --init, which stays as it is; without --lora-rank, the model itself."""

    lora_rank: Annotated[int | None, Range(1)] = None
    """Train an adapter of this rank (LoRA): 1 to 256. Others find ten times the rates of a whole model best for it."""
    lora_alpha: Annotated[float | None, Range(0, without_least=True, without_most=True)] = None
    """Scale of what the adapter adds, divided by the rank: 32 where nothing is given."""
    lora_on: tuple[str, ...] = ()
    """Beside which layers, with commas or spaces between: attention, mlp, all; query, key, value, output, gate, up,
    down; those of one block, as blocks.0 or blocks.0.mlp. Attention and mlp where nothing is given."""
    rslora: bool = False
    """Divide the scale by the root of the rank, not by the rank: large ranks then learn as fast as small ones."""
    dora: bool = False
    """Learn the length of each row of a matrix apart from its direction (DoRA)."""
    base_format: BaseFormat = "float"
    """Round the model's own weights to int8 or int4, for memory, while the adapter beside them is trained (QLoRA)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [one.name for one in fields(self) if getattr(self, one.name) != one.default]
        if self.lora_rank is None and given:
            flag = "--" + given[0].replace("_", "-")
            raise UserError(f"{flag} says something of an adapter, and none is trained: give --lora-rank too")

    @property
    def lora(self) -> LoRA | None:
        """The adapter's shape; None where the model itself is trained."""
        if self.lora_rank is None:
            return None
        names = tuple(name.strip() for given in self.lora_on for name in given.split(","))
        return LoRA(self.lora_rank, self.lora_alpha or LoRA.alpha, names or LoRA.on, self.rslora, self.dora)


def adapter_record(config: Any) -> AdapterRecord | None:
    """What the run of a stage says of its adapter; None where it trains the model itself. config: a `StageConfig`."""
    flags: AdapterFlags | None = getattr(config, "adapter", None)
    if flags is None or flags.lora is None:
        return None
    # As seen from the run, so that both may be moved together.
    base = Path(os.path.relpath(config.init, config.out)).as_posix()
    return AdapterRecord(flags.lora, base, RunDirectory(config.init).digest(), flags.base_format)


def adapted(model: Transformer, record: AdapterRecord | None) -> Transformer:
    """The model to train: itself, or with a new adapter."""
    return model if record is None else add_recorded(model, record)
