"""Adapters in the layout of PEFT: adapter_config.json beside adapter_model.safetensors, read and written.

Names and shapes are those of the base's folder, by the table of its family. PEFT adapts the matrices as they stand
there: query, key and value of GPT-2 as one, where they are three here. An A of theirs is that of each of our parts
then, with the rows of B that are the part's; ours become one of three times the rank, its B with zeros between them.

A hash of the base stands in the file's metadata, which PEFT does not look at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from instructgpt.config import ModelConfig
from instructgpt.errors import UserError
from instructgpt.model.adapters import LoRA, adapter_tensors, add_adapter, fused_rows, matches
from instructgpt.model.transformer import Transformer
from instructgpt.pretrained.families import family_of
from instructgpt.pretrained.folder import read_json
from instructgpt.pretrained.renaming import plan
from instructgpt.strict_json import write_json
from instructgpt.tensors import Held, SafetensorsFile, write_safetensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_BASE = "base_sha256"
_KINDS = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
_MUST_BE: dict[str, tuple[Any, ...]] = {
    # Settings that change what an adapter is, with the values under which it is a plain one.
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "lora_bias": (False, None),
    "use_qalora": (False, None),
    # Other beginnings change the base's weights as well, which these files do not hold.
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}


class _Module(NamedTuple):
    """A matrix of theirs, and which of our parts its rows are."""

    name: str
    """In the base's folder, without `.weight`."""
    rows: dict[str, int]
    """Places as `blocks.3.attention.query`, each with how many rows it has, in order."""


def _modules(config: ModelConfig) -> Iterator[_Module]:
    """All matrices of the blocks. Raises UserError for a model that no family is like."""
    config = config.resolved()
    fused = fused_rows(config)
    for ours, theirs in plan(config, family_of(config), "folder").items():
        found = re.fullmatch(r"(blocks\.\d+\.(?:attention|mlp))\.(\w+)\.weight", ours)
        if not found or found[2] not in (*fused, "output", "up", "down"):
            continue
        parts = list(fused.get(found[2], {found[2]: theirs[0].end}).items())
        for tensor in theirs:
            rows: dict[str, int] = {}
            while parts and sum(rows.values()) < tensor.end - tensor.start:
                part, size = parts.pop(0)
                rows[f"{found[1]}.{part}"] = size
            yield _Module(tensor.theirs.removesuffix(".weight"), rows)


# ---- in


def read_peft(folder: Path, model: Transformer, base_sha256: str = "", name: str = "default") -> Transformer:
    """The same model with the adapter of a folder beside it, and in use.

    base_sha256: the hash of the model's weights; it is compared where the file names one.
    Raises UserError for a file that is missing, damaged, of another base, or of a kind that is none of LoRA's here.
    """
    where = folder / CONFIG
    values = read_json(where)
    for key, allowed in _MUST_BE.items():
        if values.get(key, allowed[0]) not in allowed:
            raise UserError(f"{key} {values[key]!r} is not known here; an adapter's can be {allowed[0]!r}", where)
    file = SafetensorsFile(folder / WEIGHTS)
    if base_sha256 and file.metadata.get(_BASE, base_sha256) != base_sha256:
        raise UserError("this adapter belongs beside other weights than the model's", folder)
    theirs = _collected(file, list(_modules(model.config)))
    if not theirs:
        raise UserError("holds no matrices A and B", file.path)
    rank = max(len(tensors["A"]) for _, tensors in theirs)
    alpha, dora = _number(values, "lora_alpha", 8, where), bool(values.get("use_dora"))
    config = LoRA(rank, alpha, _names([place for module, _ in theirs for place in module.rows], model.config),
                  bool(values.get("use_rslora")), dora)  # fmt: skip
    add_adapter(model, config, name)
    ours = adapter_tensors(model, name)
    for module, tensors in theirs:
        own = LoRA(len(tensors["A"]), _alpha_of(module.name, alpha, values, where), rslora=config.rslora)
        _fill(ours, module, tensors, own.scale / config.scale, file.path)
    return model


def _number(values: Mapping[str, Any], key: str, default: float, where: Path) -> float:
    value = values.get(key, default)
    if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise UserError(f"{key} is {value!r}; it must be a number above 0", where)
    return float(value)


def _alpha_of(module: str, alpha: float, values: Mapping[str, Any], where: Path) -> float:
    """What alpha_pattern says, whose keys are ends of names; alpha where it says nothing."""
    patterns: Mapping[str, Any] = values.get("alpha_pattern") or {}
    for ending in patterns:
        if not re.fullmatch(r"\^?[\w.]+\$?", ending):
            raise UserError(f"alpha_pattern {ending!r} is no end of a layer's name, as q_proj is", where)
        if module == ending or module.endswith(f".{ending.removeprefix('^').removesuffix('$')}"):
            return _number(patterns, ending, alpha, where)
    return alpha


def _collected(file: SafetensorsFile, modules: list[_Module]) -> list[tuple[_Module, dict[str, Tensor]]]:
    """What there is of each matrix. Raises UserError for what belongs to none of them."""
    left = dict.fromkeys(file.specs)
    found = []
    for module in modules:
        keys = {kind: f"{_PREFIX}{module.name}.{ending}" for kind, ending in _KINDS.items()}
        present = {kind: file.read(key) for kind, key in keys.items() if key in left}
        for key in keys.values():
            left.pop(key, None)
        if present and not {"A", "B"} <= present.keys():
            raise UserError(f"{module.name} has no {'A' if 'B' in present else 'B'}", file.path)
        if present:
            found.append((module, present))
    if left:
        raise UserError(f"{next(iter(left))} is beside no linear layer of this model's blocks", file.path)
    return found


def _fill(ours: dict[str, Tensor], module: _Module, tensors: dict[str, Tensor], factor: float, where: Path) -> None:
    """Copies a matrix's tensors into those of our parts. factor: of B, where their scale is another one than ours.

    A smaller rank than that of the whole is filled up with zeros.
    """
    A, B, rank = tensors["A"], tensors["B"] * factor, len(tensors["A"])
    width = ours[f"{next(iter(module.rows))}.A"].size(1)
    outputs = sum(module.rows.values())
    m = tensors.get("magnitude")
    if A.shape != (rank, width) or B.shape != (outputs, rank) or (m is not None and m.numel() != outputs):
        shapes = {kind: tuple(tensor.shape) for kind, tensor in tensors.items()}
        raise UserError(f"{module.name} is {outputs} x {width}; {shapes} do not fit that", where)
    if (m is not None) != (f"{next(iter(module.rows))}.magnitude" in ours):
        raise UserError(f"{module.name} {'has' if m is not None else 'lacks'} a magnitude, against use_dora", where)
    start = 0
    with torch.no_grad():
        for place, size in module.rows.items():
            ours[f"{place}.A"].zero_()[:rank] = A
            ours[f"{place}.B"].zero_()[:, :rank] = B[start : start + size]
            if m is not None:
                ours[f"{place}.magnitude"].copy_(m.flatten()[start : start + size])
            start += size


def _names(places: list[str], config: ModelConfig) -> tuple[str, ...]:
    """Names that mean these places: of parts, such as `query`, or of each place where a part is not in all blocks."""
    blocks: dict[str, list[str]] = {}
    for place in places:
        blocks.setdefault(place.rpartition(".")[2], []).append(place)
    return tuple(name for part, found in blocks.items() for name in ([part] if len(found) == config.layers else found))


# ---- out


def write_peft(
    folder: Path, config: ModelConfig, tensors: Mapping[str, Tensor], lora: LoRA, base: str, base_sha256: str = ""
) -> None:
    """An adapter for PEFT.

    config: the base's shape. tensors: as `adapter_tensors` gives them. base: what PEFT is to load as the base, such as
    the folder that `export` has written it to. Raises UserError for a base that no other engine has.
    """
    theirs: dict[str, Tensor] = {}
    targets: list[str] = []
    ranks, alphas = dict[str, int](), dict[str, float]()
    for module in _modules(config):
        adapted = [place for place in module.rows if any(matches(place, name) for name in lora.on)]
        if not adapted:
            continue
        targets.append(module.name)
        found = _joined(module, {key: tensor.detach().cpu() for key, tensor in tensors.items()}, adapted, lora)
        theirs |= {f"{_PREFIX}{module.name}.{_KINDS[kind]}": tensor for kind, tensor in found.items()}
        if (times := len(adapted)) > 1:
            ranks[module.name] = times * lora.rank
            alphas[module.name] = lora.alpha * (times**0.5 if lora.rslora else times)
    is_gpt2 = family_of(config).name == "gpt2"
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / WEIGHTS, Held(theirs), {_BASE: base_sha256} if base_sha256 else None, with_digests=False)
    write_json(
        folder / CONFIG,
        {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": lora.rank,
            "lora_alpha": lora.alpha, "target_modules": targets, "rank_pattern": ranks, "alpha_pattern": alphas,
            "use_rslora": lora.rslora, "use_dora": lora.dora, "bias": "none", "lora_dropout": 0.0,
            "fan_in_fan_out": is_gpt2, "inference_mode": True,
        },
    )  # fmt: skip


def _joined(module: _Module, tensors: Mapping[str, Tensor], adapted: list[str], lora: LoRA) -> dict[str, Tensor]:
    """A, B and the magnitude of one of their matrices."""
    A = torch.cat([tensors[f"{place}.A"] for place in adapted])
    B = A.new_zeros(sum(module.rows.values()), len(A))
    for place, rows in zip(module.rows, B.split(list(module.rows.values()))):
        if place in adapted:
            start = adapted.index(place) * lora.rank
            rows[:, start : start + lora.rank] = tensors[f"{place}.B"]
    found = {"A": A.contiguous(), "B": B.contiguous()}
    if lora.dora:
        if len(adapted) < len(module.rows):
            raise UserError(
                f"PEFT has one magnitude for all of {module.name}, and only {', '.join(adapted)} has one here: adapt "
                "query, key and value together"
            )
        found["magnitude"] = torch.cat([tensors[f"{place}.magnitude"] for place in adapted])
    return found
