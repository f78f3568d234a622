"""An adapter as it is saved: a small file of its own tensors, and what config.json says of the base that it belongs to.

adapter.safetensors   `blocks.3.attention.query.A`, `.B`, `.magnitude` …; of a reward model, its head's tensors too
config.json           "adapter": its shape, the base's run directory, the hash of the base's weights, their format
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from instructgpt.errors import UserError
from instructgpt.model.adapters import LoRA, adapter_tensors, add_adapter
from instructgpt.model.heads import RewardModel
from instructgpt.model.quantize import quantize
from instructgpt.model.transformer import Transformer
from instructgpt.tensors import Tensors

BaseFormat = Literal["float", "int8", "int4"]


@dataclass(frozen=True)
class AdapterRecord:
    """What config.json says of a run's adapter."""

    lora: LoRA
    base: str
    """The run directory of the model that it was trained beside, as seen from its own."""
    base_sha256: str
    """`RunDirectory.digest` of that one."""
    base_format: BaseFormat = "float"
    """What the base's weights were rounded to."""

    def to_json(self) -> dict[str, Any]:
        own = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "lora"}
        return {**asdict(self.lora), **own}

    @classmethod
    def from_json(cls, values: Any, where: Path) -> AdapterRecord:
        """What `to_json` gave. Raises UserError for anything else."""
        try:
            shape = {one.name: values[one.name] for one in fields(LoRA)}
            own = {one.name: values[one.name] for one in fields(cls) if one.name != "lora"}
            if own["base_format"] not in ("float", "int8", "int4") or not all(isinstance(x, str) for x in own.values()):
                raise ValueError(own)
            return cls(LoRA(**{**shape, "on": tuple(map(str, shape["on"]))}), **own)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"does not describe an adapter: {type(error).__name__} {error}", where) from None


def add_recorded(model: Transformer, record: AdapterRecord) -> Transformer:
    """The same model with a new adapter as recorded, beside weights of the recorded format."""
    if record.base_format != "float":
        quantize(model, record.base_format, for_training=True)
    return add_adapter(model, record.lora)


def own_tensors(model: Transformer | RewardModel) -> dict[str, Tensor]:
    """What is saved of a model with an adapter: all that its base has not."""
    if isinstance(model, RewardModel):
        return adapter_tensors(model.transformer) | {f"head.{name}": p for name, p in model.head.state_dict().items()}
    return adapter_tensors(model)


def copy_into(tensors: Mapping[str, Tensor], found: Tensors, where: Path, whose: str) -> None:
    """Fills `tensors` with those of a file, one by one. whose: what the file should fit.

    Raises UserError where one is missing, left over or of another shape.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    shapes = {name: spec.shape for name, spec in found.specs.items()}
    if expected != shapes:
        name = next(n for n in sorted({**expected, **shapes}) if expected.get(n) != shapes.get(n))
        raise UserError(
            f"does not fit {whose}: {name} has shape {shapes.get(name)}, the configuration asks for "
            f"{expected.get(name)}",
            where,
        )
    with torch.no_grad():
        for name, tensor in tensors.items():  # file and model are never both whole in memory
            tensor.copy_(found.read(name))
