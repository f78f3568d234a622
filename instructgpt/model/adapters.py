"""Adapters: a frozen model, and beside some of its matrices two narrow ones that are trained (LoRA, Hu et al. 2021).

    y = W x + s·B A x      A (rank, in) begins as noise and B (out, rank) at 0, so the model begins as it was (eq. 3)

    s = alpha / rank, or alpha / √rank, which keeps the size of what is added at any rank (rsLoRA, Kalajdzievski 2023)

    DoRA     y = m ⊙ (W x + s·B A x) / ‖W + s·B A‖, norms being those of rows: length and direction are learnt apart
             (Liu et al. 2024, eq. 5). m begins at ‖W‖, and the norm counts as a constant in the gradient (section 4.3)
    QLoRA    the same beside a W of 8 or 4 bits (Dettmers et al. 2023, eq. 5): `quantize`, then `add_adapter`

The model multiplies queries, keys and values as one matrix, and gate and up as one. Each of these parts has an A and a
B of its own, as if the matrices were apart: a rank then means what it means elsewhere, and so do files of others.

Several adapters may stand beside one model, of which one or none is in use. Embedding and head are not adapted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instructgpt.config import ModelConfig
from instructgpt.errors import UserError, suggestion
from instructgpt.model.quantize import QuantizedLinear, unquantize
from instructgpt.model.transformer import Compiled, Transformer
from instructgpt.model.tree import linear_of, with_exchanged
from instructgpt.settings import Positive, PositiveInt, Settings

DEFAULT = "default"
"""The name of an adapter that is given no other."""


@dataclass(frozen=True)
class LoRA(Settings):
    """The shape of an adapter."""

    rank: PositiveInt = 16
    """Columns of B and rows of A."""
    alpha: Positive = 32.0
    """What the product of B and A is multiplied with, before it is divided by the rank, or by its root."""
    on: tuple[str, ...] = ("attention", "mlp")
    """Which linear layers, by names that `matches` understands."""
    rslora: bool = False
    """Divide by the root of the rank."""
    dora: bool = False
    """Learn the length of each row of a matrix apart from its direction."""

    @property
    def scale(self) -> float:
        """s."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def matches(place: str, name: str) -> bool:
    """Whether a place, such as `blocks.3.attention.query`, is meant by `query`, `attention`, `blocks.3`, `all` …"""
    return name == "all" or f".{name}." in f".{place}."


# ---- one linear layer


class Part(nn.Module):
    """A and B of one part of a matrix and, with DoRA, its rows' lengths m."""

    def __init__(self, rows: int, width: int, rank: int, like: Tensor):
        super().__init__()
        self.A = nn.Parameter(like.new_empty(rank, width))
        self.B = nn.Parameter(like.new_zeros(rows, rank))
        self.magnitude: nn.Parameter | None = None
        # Hu et al., section 4.1: "a random Gaussian initialization for A and zero for B". The variance is that of the
        # authors' code, 1 / (3·in), and the same for every rank, as rsLoRA's theorem takes it to be.
        nn.init.normal_(self.A, std=(3 * width) ** -0.5)


class LowRank(nn.Module):
    """One adapter's share in one linear layer: ΔW = s·B A for each of the parts it adapts, 0 for the others."""

    def __init__(
        self, base: nn.Linear | QuantizedLinear, rows: dict[str, int], adapted: list[str], config: LoRA, like: Tensor
    ):
        """rows: how many rows of the matrix are which part, in order. like: a tensor of the device and dtype to use."""
        super().__init__()
        self.rows, self.scale = rows, config.scale
        self.parts = nn.ModuleDict({part: Part(rows[part], base.in_features, config.rank, like) for part in adapted})
        if config.dora:
            lengths = dict(zip(rows, _lengths(float_weight(base)).split(list(rows.values()))))
            for name, part in self.named.items():
                part.magnitude = nn.Parameter(lengths[name].to(like))

    @property
    def named(self) -> dict[str, Part]:
        parts: Any = self.parts.items()
        return dict(parts)

    @property
    def is_dora(self) -> bool:
        return any(part.magnitude is not None for part in self.named.values())

    def forward(self, x: Tensor, y: Tensor, base: nn.Linear | QuantizedLinear) -> Tensor:
        """x (..., in) and what the base makes of it, y (..., out) -> (..., out)"""
        y = y + self.added(x)
        if not self.is_dora:
            return y
        gain = self.gain(base).to(y.dtype)  # (out,)
        return y * gain if base.bias is None else (y - base.bias) * gain + base.bias

    def added(self, x: Tensor) -> Tensor:
        """s·B A x (..., out) for x (..., in): of each part in `rows`, in that order, 0 for those without an A and B."""
        parts = self.named
        down: list[Tensor] = [part.A for part in parts.values()]
        # One product for all parts: x is read once.
        inner = F.linear(x, down[0] if len(down) == 1 else torch.cat(down)) * self.scale  # (..., parts·rank)
        of_part = dict(zip(parts, inner.chunk(len(down), dim=-1)))
        up = [
            F.linear(of_part[name], parts[name].B) if name in of_part else inner.new_zeros(*x.shape[:-1], rows)
            for name, rows in self.rows.items()
        ]
        return up[0] if len(up) == 1 else torch.cat(up, dim=-1)

    def gain(self, base: nn.Linear | QuantizedLinear) -> Tensor:
        """m / ‖W + ΔW‖ (out,), 1 for parts that are not adapted."""
        with torch.no_grad(), torch.autocast(self._some.device.type, enabled=False):
            weight = float_weight(base)
            lengths = _lengths(weight + self.delta(weight)).split(list(self.rows.values()))
        gains, parts = [], self.named
        for (name, rows), length in zip(self.rows.items(), lengths):
            magnitude = parts[name].magnitude if name in parts else None
            gains.append(length.new_ones(rows) if magnitude is None else magnitude / length)
        return torch.cat(gains)

    def delta(self, like: Tensor) -> Tensor:
        """ΔW (out, in), in the dtype of `like` (out, in)."""
        known = {name: self.scale * (part.B.to(like) @ part.A.to(like)) for name, part in self.named.items()}
        parts = like.split(list(self.rows.values()))
        return torch.cat([known.get(name, torch.zeros_like(part)) for name, part in zip(self.rows, parts)])

    @torch.no_grad()
    def merged_weight(self, base: nn.Linear | QuantizedLinear) -> Tensor:
        """W' (out, in) of the layer that computes the same by itself, added up in float64 and rounded once."""
        weight = float_weight(base)
        merged = weight.double() + self.delta(weight.double())
        if self.is_dora:
            merged *= self.gain(base).double()[:, None]
        return merged.to(weight.dtype if isinstance(base, QuantizedLinear) else base.weight.dtype)

    def as_two(self) -> tuple[Tensor, Tensor]:
        """A (parts·rank, in) and B (out, parts·rank) of one adapter that adds the same: ΔW = B A."""
        places = {name: number for number, name in enumerate(self.parts)}
        A = torch.cat([part.A for part in self.named.values()])
        B = A.new_zeros(sum(self.rows.values()), A.size(0))
        ranks = A.size(0) // len(places)
        for name, block in zip(self.rows, B.split(list(self.rows.values()))):
            if name in places:
                block[:, places[name] * ranks : (places[name] + 1) * ranks] = self.scale * self.named[name].B.detach()
        return A, B

    @property
    def _some(self) -> Tensor:
        return next(self.parameters())


def float_weight(base: nn.Linear | QuantizedLinear) -> Tensor:
    """W (out, in), at least float32."""
    if isinstance(base, QuantizedLinear):
        return base.dequantized()
    return base.weight.detach().to(torch.promote_types(base.weight.dtype, torch.float32))


def _lengths(weight: Tensor) -> Tensor:
    """(out,) of (out, in)."""
    return torch.linalg.vector_norm(weight, dim=1)


class AdaptedLinear(nn.Module):
    """A linear layer with adapters beside it."""

    def __init__(self, base: nn.Linear | QuantizedLinear, rows: dict[str, int]):
        super().__init__()
        self.base, self.rows = base, rows
        self.adapters = nn.ModuleDict()
        self.active: str | None = None
        """The adapter that is in use, None where that is the base alone."""
        self.merged: nn.Linear | None = None
        self.merged_name: str | None = None

    @property
    def in_use(self) -> LowRank | None:
        adapter: Any = None if self.active is None else self.adapters[self.active]
        return adapter

    def alone(self) -> nn.Linear | QuantizedLinear:
        """The layer that computes the same with nothing beside it: the base, or the one that is merged and in use."""
        if self.active is None:
            return self.base
        assert self.merged is not None and self.merged_name == self.active
        return self.merged

    def forward(self, x: Tensor) -> Tensor:
        if self.merged is not None and self.merged_name == self.active:
            return self.merged(x)
        y, adapter = self.base(x), self.in_use
        return y if adapter is None else adapter(x, y, self.base)


# ---- all layers of a model


class _Place(NamedTuple):
    """A linear layer and where it is."""

    holder: nn.Module
    attribute: str
    layer: nn.Linear | QuantizedLinear | AdaptedLinear
    rows: dict[str, int]
    """Of each part of its matrix, in order."""
    path: str
    """`blocks.3.attention`, to which the name of a part is added."""


def _places(model: Transformer) -> Iterator[_Place]:
    fused = fused_rows(model.config)
    for number, block in enumerate(model.blocks):
        for room in ("attention", "mlp"):
            holder: nn.Module = getattr(block, room)
            for name, layer in holder.named_children():
                if isinstance(layer, (nn.Linear, QuantizedLinear, AdaptedLinear)):
                    base = layer.base if isinstance(layer, AdaptedLinear) else layer
                    rows = fused.get(name, {name: base.out_features})
                    yield _Place(holder, name, layer, rows, f"blocks.{number}.{room}")


def fused_rows(config: ModelConfig) -> dict[str, dict[str, int]]:
    """Rows of the parts of matrices that are multiplied as one, by the layer's name."""
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return {
        "qkv": {"query": queries, "key": keys, "value": keys},
        "gate_up": {"gate": config.mlp_width, "up": config.mlp_width},
    }


def _layers(model: nn.Module) -> list[AdaptedLinear]:
    return [module for module in model.modules() if isinstance(module, AdaptedLinear)]


def adapters_of(model: nn.Module) -> list[str]:
    """Names of the adapters that stand beside a model, in the order in which they came."""
    return list(dict.fromkeys(name for layer in _layers(model) for name in layer.adapters))


def add_adapter(model: Transformer, config: LoRA, name: str = DEFAULT) -> Transformer:
    """The same model with one more adapter, which is in use from now on and is all of it that is trained.

    Raises UserError for a name that is taken, and for one in `config.on` that no linear layer has.
    """
    if name in adapters_of(model) or "." in name or hasattr(nn.ModuleDict(), name) or not name:
        raise UserError(f"an adapter cannot be named {name!r}: the name is taken, or none that a module may have")
    places = list(_places(model))
    _require_matches(config.on, places)
    model.requires_grad_(False)
    use_adapter(model, None)
    for place in places:
        adapted = [part for part in place.rows if any(matches(f"{place.path}.{part}", one) for one in config.on)]
        if not adapted:
            continue
        layer = place.layer
        if not isinstance(layer, AdaptedLinear):
            layer = AdaptedLinear(layer, place.rows)
            setattr(place.holder, place.attribute, layer)
        layer.adapters[name] = LowRank(layer.base, place.rows, adapted, config, model.embedding.weight)
        layer.active = name
    return model


def _require_matches(names: tuple[str, ...], places: list[_Place]) -> None:
    paths = [f"{place.path}.{part}" for place in places for part in place.rows]
    rooms = dict.fromkeys(path.split(".")[2] for path in paths)
    known = ["all", *rooms, *dict.fromkeys(path.split(".")[3] for path in paths)]
    blocks = list(dict.fromkeys(path.rsplit(".", 2)[0] for path in paths))
    if not names:
        raise UserError(f"--lora-on is empty{suggestion('', known)}")
    for name in names:
        if not any(matches(path, name) for path in paths):
            near = suggestion(name, [*known, *blocks] if name.startswith("block") else known)
            raise UserError(f"--lora-on {name}: no linear layer has this name{near}")


def use_adapter(model: Transformer, name: str | None) -> None:
    """From now on the model computes with this adapter, with None as if it had none. Errors: UserError."""
    if name is not None and name not in (known := adapters_of(model)):
        raise UserError(f"the model has no adapter {name!r}{suggestion(name, known) if known else ''}")
    for layer in _layers(model):
        layer.active = name if name is not None and name in layer.adapters else None


def adapter_in_use(model: Transformer) -> str | None:
    """The adapter that the model computes with; None where it is the base alone."""
    return next((layer.active for layer in _layers(model) if layer.active is not None), None)


def base_of(model: Transformer) -> Transformer:
    """The model without its adapters, as a model of its own that shares every tensor with it: no memory is needed to
    compare the two."""
    twin = with_exchanged(model, lambda module: module.base if isinstance(module, AdaptedLinear) else None)
    twin.compiled = Compiled()
    return twin


def merge(model: Transformer) -> None:
    """The adapter in use goes into matrices of its own, which cost nothing beside the base's to multiply with.

    The base stays as it is, beside them, for `unmerge` and other adapters; `remove_adapters` lets go of it.
    """
    for layer in _layers(model):
        if (adapter := layer.in_use) is not None:
            merged = nn.Parameter(adapter.merged_weight(layer.base), requires_grad=False)
            layer.merged = linear_of(merged, layer.base.bias)
            layer.merged_name = layer.active


def unmerge(model: Transformer) -> None:
    """Base and adapters are apart again, as they were to the bit."""
    for layer in _layers(model):
        layer.merged = layer.merged_name = None


def remove_adapters(model: Transformer) -> Transformer:
    """The same model with plain linear layers, all of it trained again: with the adapter in it that is merged and in
    use, without any if that is none."""
    for place in _places(model):
        if isinstance(place.layer, AdaptedLinear):
            if place.layer.active is not None and place.layer.merged_name != place.layer.active:
                raise ValueError("an adapter is in use that is not merged: merge it, or use none")
            setattr(place.holder, place.attribute, place.layer.alone())
    return model.requires_grad_(True)


def settled(model: Transformer) -> Transformer:
    """The same model with plain linear layers, all of it trained again, in which the adapter in use is for good."""
    merge(model)
    return unquantize(remove_adapters(model))


# ---- their tensors


def adapter_tensors(model: Transformer, name: str = DEFAULT) -> dict[str, Tensor]:
    """An adapter's own tensors, which are shared with the model: `blocks.3.attention.query.A`, `.B`, `.magnitude`."""
    found: dict[str, Tensor] = {}
    for place in _places(model):
        if isinstance(place.layer, AdaptedLinear) and name in place.layer.adapters:
            parts: Any = place.layer.adapters[name]
            for key, tensor in parts.parts.state_dict(keep_vars=True).items():
                found[f"{place.path}.{key}"] = tensor
    return found


def count_trained(model: nn.Module) -> tuple[int, int]:
    """Numbers of parameters that are trained, and of all; a weight of few bits counts as one."""
    quantized = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, QuantizedLinear))
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters) + quantized
