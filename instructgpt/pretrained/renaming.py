"""Their tensors under our names, and ours under theirs, one tensor at a time, as the families' tables say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from instructgpt.config import ModelConfig
from instructgpt.errors import UserError
from instructgpt.model.transformer import Transformer
from instructgpt.pretrained.families import Family, Row
from instructgpt.tensors import Spec, Tensors, is_finite

Form = Literal["folder", "gguf"]

_BUFFERS = re.compile(r"(.*\.)?(attn\.(masked_)?bias|rotary_emb\.inv_freq)|rope_freqs\.weight")
"""What old folders, and GGUF files, hold besides weights: masks, and frequencies, which config.json says as well."""


@dataclass(frozen=True)
class Part:
    """One of their tensors, which is the rows `start` to `end` of one of ours."""

    theirs: str
    shape: tuple[int, ...]
    """Of theirs."""
    start: int
    end: int
    transposed: bool
    pairs: int
    """Rows of half a head, where theirs stand as neighbours in pairs; 0 where they stand as ours do."""

    def to_ours(self, tensor: Tensor) -> Tensor:
        if self.transposed:
            return tensor.mT
        if self.pairs:  # (heads, D/2, 2, ...) -> (heads, 2, D/2, ...)
            return tensor.unflatten(0, (-1, self.pairs, 2)).transpose(1, 2).flatten(0, 2)
        return tensor

    def to_theirs(self, ours: Tensor) -> Tensor:
        part = ours[self.start : self.end]
        if self.transposed:
            return part.mT.contiguous()
        if self.pairs:  # (heads, 2, D/2, ...) -> (heads, D/2, 2, ...)
            return part.unflatten(0, (-1, 2, self.pairs)).transpose(1, 2).flatten(0, 2)
        return part.contiguous()


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each of a model's parameters, without making it."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Transformer(config).state_dict().items()}


def plan(config: ModelConfig, family: Family, form: Form) -> dict[str, list[Part]]:
    """For each parameter of a model the tensors that it is made of, in their order of rows."""
    config, shapes = config.resolved(), shapes_of(config)
    found: dict[str, list[Part]] = {}
    for ours, row, names in _rows(config, family, form):
        if ours in shapes:
            found[ours] = list(_parts(config, family, form, row, names, shapes[ours]))
    missing = shapes.keys() - found.keys()
    assert not missing, f"{family.name}'s table has no {missing}"
    return found


def _rows(config: ModelConfig, family: Family, form: Form) -> Iterator[tuple[str, Row, list[str]]]:
    """Each row of the tables for each block: our full name, the row, their full names."""
    for row in family.whole:
        prefix = family.prefix if form == "folder" and not row.folder.startswith("lm_head") else ""
        yield row.ours, row, [prefix + name for name in row.names(getattr(row, form))]
    for i in range(config.layers):
        before = f"{family.prefix}{family.layers}.{i}." if form == "folder" else f"blk.{i}."
        for row in family.block:
            yield f"blocks.{i}.{row.ours}", row, [before + name for name in row.names(getattr(row, form))]


def _parts(
    config: ModelConfig, family: Family, form: Form, row: Row, names: list[str], shape: tuple[int, ...]
) -> Iterator[Part]:
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    sizes = [shape[0]] if len(names) == 1 else [queries, keys, keys] if "qkv" in row.ours else [config.mlp_width] * 2
    transposed = row.transposed and form == "folder"
    start = 0
    for i, (name, size) in enumerate(zip(names, sizes, strict=True)):
        theirs = (size, *shape[1:])
        in_pairs = form == "gguf" and family.interleaved and "qkv" in row.ours and i < 2  # values are not rotated
        yield Part(
            name, theirs[::-1] if transposed else theirs, start, start + size, transposed,
            config.head_dim // 2 if in_pairs else 0,
        )  # fmt: skip
        start += size


class Imported:
    """Their tensors as a model's parameters."""

    def __init__(self, source: Tensors, config: ModelConfig, family: Family, form: Form, where: Path):
        """Raises UserError when a tensor is missing, left over or of another shape than the config asks for.

        where: the file or folder to name then.
        """
        self.source, self.where = source, where
        if config.layers > len(source.specs):  # told before names are made for each of billions
            raise UserError(
                f"the configuration says {config.layers:,} layers, and there are {len(source.specs):,} tensors", where
            )
        self.plan = plan(config, family, form)
        self._renamed = {name: name for name in source.specs}
        if form == "folder" and not any(name.startswith(family.prefix) for name in source.specs):
            # As the first GPT-2 was saved: without the name of the whole in front.
            self._renamed = {f"{family.prefix}{n}" if n != "lm_head.weight" else n: n for n in source.specs}
        self._check()
        shapes = shapes_of(config)
        self.specs: Mapping[str, Spec] = {
            name: Spec(_common_dtype([source.specs[self._renamed[part.theirs]].dtype for part in parts]), shapes[name])
            for name, parts in self.plan.items()
        }

    def _check(self) -> None:
        wanted = {part.theirs: part.shape for parts in self.plan.values() for part in parts}
        for name, shape in wanted.items():
            if name not in self._renamed:
                raise UserError(f"{name} is missing; the configuration asks for it, {shape}", self.where)
            found = self.source.specs[self._renamed[name]].shape
            if found != shape:
                raise UserError(f"{name} has the shape {found}, the configuration asks for {shape}", self.where)
            if not (dtype := self.source.specs[self._renamed[name]].dtype).is_floating_point:
                raise UserError(f"{name} is in {str(dtype)[6:]}; weights are floating-point numbers", self.where)
        left = [name for name in self._renamed if name not in wanted and not _BUFFERS.fullmatch(name)]
        head = "lm_head.weight" if "lm_head.weight" in left else "output.weight"
        if head in left and "head_weight" not in self.plan:
            # A tied head that was saved all the same. One that differs contradicts the configuration.
            embedding = self.source.read(self._renamed[self.plan["embedding.weight"][0].theirs])
            if not torch.equal(embedding, self.source.read(self._renamed[head])):
                raise UserError(f"{head} is not the embedding, though the configuration ties the two", self.where)
            left.remove(head)
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise UserError(f"{left[0]}{more} is nothing that the configuration asks for", self.where)

    def read(self, name: str) -> Tensor:
        parts = [part.to_ours(self._tensor(part.theirs)) for part in self.plan[name]]
        dtype = self.specs[name].dtype
        return parts[0].to(dtype).contiguous() if len(parts) == 1 else torch.cat([part.to(dtype) for part in parts])

    def _tensor(self, theirs: str) -> Tensor:
        tensor = self.source.read(self._renamed[theirs])
        if not is_finite(tensor):
            kind = "NaN" if tensor.isnan().any() else "infinity"
            raise UserError(f"{theirs} holds {kind}: the weights are damaged, or a training run diverged", self.where)
        return tensor


def _common_dtype(dtypes: list[torch.dtype]) -> torch.dtype:
    """One that holds them all."""
    found = dtypes[0]
    for dtype in dtypes[1:]:
        found = torch.promote_types(found, dtype)
    return found


class Exported:
    """A model's parameters as their tensors."""

    def __init__(self, source: Tensors, config: ModelConfig, family: Family, form: Form):
        self.source = source
        self._places = {
            part.theirs: (ours, part) for ours, parts in plan(config, family, form).items() for part in parts
        }
        self.specs: Mapping[str, Spec] = {
            name: Spec(source.specs[ours].dtype, part.shape) for name, (ours, part) in self._places.items()
        }

    def read(self, name: str) -> Tensor:
        ours, part = self._places[name]
        return part.to_theirs(self.source.read(ours))


class Converted:
    """Tensors in another number format."""

    def __init__(self, source: Tensors, dtype: torch.dtype):
        self.source, self.dtype = source, dtype
        self.specs: Mapping[str, Spec] = {name: Spec(dtype, spec.shape) for name, spec in source.specs.items()}

    def read(self, name: str) -> Tensor:
        """Raises UserError where a number is too large for the format, which float16 ends at 65,504."""
        tensor = self.source.read(name)
        converted = tensor.to(self.dtype)
        if not is_finite(converted):
            largest = float(tensor.abs().max())
            raise UserError(f"{name} holds {largest:g}, too much for {str(self.dtype)[6:]}; choose another --dtype")
        return converted
