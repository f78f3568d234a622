"""A run directory: what a stage leaves behind, whole at every moment, and how it is read back.

config.json         the stage, its settings, the model's shape and head, fingerprints of tokenizer and inputs
tokenizer.model     SentencePiece's own file; of others tokenizer.json may stand in its place, and chat.json beside it
model.safetensors   the weights to use, with a checksum of each tensor
adapter.safetensors in its place, where an adapter was trained beside the weights of another run: see `adapter_file.py`
metrics.jsonl       a line a record
eval.json, samples.md, curves.png
state/              state.safetensors: weights, optimizer, random state and data cursor, while it can be resumed
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from instructgpt.config import ModelConfig
from instructgpt.errors import UserError
from instructgpt.model.adapters import adapter_tensors, adapters_of, add_adapter, settled, use_adapter
from instructgpt.model.backend import resolve_backend
from instructgpt.model.heads import RewardModel
from instructgpt.model.quantize import quantize
from instructgpt.model.transformer import Transformer
from instructgpt.pretrained import peft
from instructgpt.runtime import resolve_device
from instructgpt.strict_json import to_json, write_json
from instructgpt.tensors import Held, SafetensorsFile, Tensors, write_safetensors
from instructgpt.text.tokenizer import FILE_NAMES, Tokenizer
from instructgpt.training.adapter_file import AdapterRecord, add_recorded, copy_into, own_tensors
from instructgpt.training.loop import Snapshot

Head = Literal["language", "reward"]
"""What stands on top of a run's Transformer: the one that predicts tokens, or the one that scores answers."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], values: dict[str, Any] | None = None) -> None:
    """Writes tensors, and JSON-able `values` beside them, to one safetensors file, atomically, with checksums."""
    write_safetensors(path, Held(tensors), {"values": to_json(values or {})})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_tensors` wrote. A truncated or altered file is a `UserError`."""
    file = SafetensorsFile(path)
    return {name: file.read(name) for name in file.specs}, json.loads(file.metadata.get("values", "{}"))


def _jsonable(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {key: _jsonable(item) for key, item in asdict(value).items()}
    return str(value) if isinstance(value, Path) else value


class RunDirectory:
    """The files of one run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.model_file = self.path / "model.safetensors"
        self.adapter_file = self.path / "adapter.safetensors"
        self.metrics_file = self.path / "metrics.jsonl"
        self.state_file = self.path / "state" / "state.safetensors"

    @classmethod
    def open(cls, path: str | Path, *, overwrite: bool = False, resume: bool = False) -> RunDirectory:
        """The directory for a new run, or one to go on with. One that holds another run is refused, not mixed up."""
        run = cls(path)
        if run.path.exists() and not run.path.is_dir():
            raise UserError("is a file; --out names a directory", run.path)
        if run.holds_run and overwrite and not resume:
            for file in (run.config_file, run.model_file, run.adapter_file, run.metrics_file):
                file.unlink(missing_ok=True)
            for file in ("eval.json", "samples.md", "curves.png", *FILE_NAMES):
                (run.path / file).unlink(missing_ok=True)
            shutil.rmtree(run.state_file.parent, ignore_errors=True)
        elif run.holds_run and not resume:
            raise UserError("holds a run already; go on with --resume, replace it with --overwrite", run.path)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot be created: {error.strerror}", run.path) from error
        return run

    @property
    def holds_run(self) -> bool:
        """Whether a stage has left something here."""
        return any(file.exists() for file in (self.config_file, self.model_file, self.adapter_file, self.state_file))

    def write_config(
        self,
        stage: str,
        model: ModelConfig | None,
        tokenizer: Tokenizer,
        settings: Any,
        head: Head = "language",
        inputs: dict[str, str] | None = None,
        compiled: str = "off",
        adapter: AdapterRecord | None = None,
    ) -> None:
        """Writes config.json and the tokenizer: what is known before training starts.

        inputs: digests of what is read, by path. compiled: how the steps are, which decides the last bits of a run.
        adapter: what is trained, if that is not the model itself.
        """
        tokenizer.save(self.path)
        config = {
            "stage": stage,
            "tokenizer": tokenizer.fingerprint,
            "model": _jsonable(model) if model else None,
            "head": head,
            "settings": _jsonable(settings),
            "inputs": inputs or {},
            "compiled": compiled,
        } | ({"adapter": adapter.to_json()} if adapter else {})
        write_json(self.config_file, config)

    def read_eval(self) -> dict[str, Any]:
        """What eval.json says of a finished run."""
        file = self.path / "eval.json"
        if not file.is_file():
            raise UserError("holds no finished run: eval.json is missing; go on with --resume", self.path)
        return json.loads(file.read_text(encoding="utf-8"))

    def read_config(self) -> dict[str, Any]:
        if not self.path.is_dir():
            raise UserError("no such run directory", self.path)
        if not self.config_file.is_file():
            raise UserError("holds no run: config.json is missing", self.path)
        try:
            config = json.loads(self.config_file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"is not JSON: {error}", self.config_file, getattr(error, "lineno", 1)) from error
        if not isinstance(config, dict) or "stage" not in config:
            raise UserError("is not a run's configuration: it has no 'stage'", self.config_file)
        return config

    def describe(self) -> tuple[ModelConfig, Tokenizer]:
        """The shape of the run's model and its tokenizer. UserError where one is missing or not the run's."""
        config = self.read_config()
        if not config.get("model"):
            raise UserError(f"holds a {config['stage']} run, which has no model; name a pretrain or sft run", self.path)
        tokenizer = Tokenizer.load(self.path)
        if tokenizer.fingerprint != config.get("tokenizer"):
            raise UserError(
                "is not the tokenizer that this run was trained with", self.path / tokenizer.subwords.file_name
            )
        shape = model_config(config["model"], self.config_file)
        if shape.vocab_size < tokenizer.vocab_size:
            raise UserError(
                f"model has {shape.vocab_size} embeddings, the tokenizer {tokenizer.vocab_size} tokens",
                self.config_file,
            )
        return shape, tokenizer

    def read_adapter(self) -> AdapterRecord | None:
        """What config.json says of the adapter; None where the run has a model of its own."""
        values = self.read_config().get("adapter")
        return None if values is None else AdapterRecord.from_json(values, self.config_file)

    def weights(self) -> SafetensorsFile:
        """The run's own weights, none of which is read yet: those of its model or, beside another, of its adapter."""
        file = self.model_file if self.read_adapter() is None else self.adapter_file
        if not file.is_file():
            raise UserError(f"holds no model yet: {file.name} is missing; train it, or go on with --resume", self.path)
        return SafetensorsFile(file)

    def open_model(self) -> tuple[ModelConfig, Tokenizer, Tensors]:
        """Shape, tokenizer and weights, of which none is read yet; only those that an adapter is part of are made."""
        weights = (
            self.weights() if self.read_adapter() is None else Held(load_settled(self.path, "cpu")[0].state_dict())
        )
        return *self.describe(), weights

    def digest(self) -> str:
        """SHA-256 that stands for the weights that the run ends with, those of its base included."""
        record, own = self.read_adapter(), self.weights().digest
        return hashlib.sha256(f"{own} beside {record.base_sha256}".encode()).hexdigest() if record else own

    def save_model(self, model: Transformer | RewardModel) -> None:
        """The weights; of a model with an adapter, the adapter's alone."""
        if adapters_of(model):
            save_tensors(self.adapter_file, own_tensors(model))
        else:
            save_tensors(self.model_file, model.state_dict())

    def save_state(self, snapshot: Snapshot) -> None:
        save_tensors(self.state_file, snapshot.tensors, snapshot.values)

    def load_state(self) -> Snapshot | None:
        """The last saved state; None when nothing was saved yet."""
        return Snapshot(*load_tensors(self.state_file)) if self.state_file.is_file() else None


def model_config(values: dict[str, Any], where: Path) -> ModelConfig:
    known = {f.name for f in fields(ModelConfig)}
    if unknown := set(values) - known:
        raise UserError(f"model has unknown settings: {', '.join(sorted(unknown))}", where)
    return ModelConfig(**values)


def load(
    directory: str | Path, device: str | torch.device = "auto", backend: str = "auto", quantized: str = "",
    adapter: str | Path = "",
) -> tuple[Transformer, Tokenizer]:  # fmt: skip
    """Language model (in eval mode, on `device`) and tokenizer of a run directory; an adapter's stands beside its base.

    quantized: int8 or int4 keeps the blocks' weights in so few bits, for generation; the model cannot be trained then.
    adapter: a run directory with an adapter, which is put beside this model instead of the one that it names; or a
    folder with one as PEFT writes it.
    Raises UserError when a file is missing, damaged, or does not belong with the others, and for a reward model.
    """
    run = RunDirectory(directory)
    _require_language(run)
    if adapter and (Path(adapter) / peft.CONFIG).is_file():
        model, tokenizer = load_settled(directory, device, backend)
        peft.read_peft(Path(adapter), model, run.digest())
    elif adapter:
        own = RunDirectory(adapter)
        _require_language(own)
        record = own.read_adapter()
        if record is None:
            raise UserError("holds a model of its own and no adapter: give it as --model", own.path)
        model, tokenizer = _adapted(own, record, run, device, backend, lambda transformer: transformer)
    else:
        model, tokenizer = _load(run, device, backend, lambda transformer: transformer)
    if quantized:
        quantize(model, quantized)
    return model, tokenizer


def _require_language(run: RunDirectory) -> None:
    if run.read_config().get("head") == "reward":
        raise UserError(
            "holds a reward model, which scores answers and writes none; name a pretrain, sft or policy run", run.path
        )


def load_reward_model(
    directory: str | Path, device: str | torch.device = "auto", backend: str = "auto"
) -> tuple[RewardModel, Tokenizer]:
    """Reward model (in eval mode, on `device`) and tokenizer of a `reward` run; errors as those of `load`."""
    run = RunDirectory(directory)
    config = run.read_config()
    if config.get("head") != "reward":
        raise UserError(f"holds a {config['stage']} run, not a reward model; name a reward run", run.path)
    return _load(run, device, backend, RewardModel)


def load_settled(
    directory: str | Path, device: str | torch.device = "auto", backend: str = "auto"
) -> tuple[Transformer, Tokenizer]:
    """As `load`, an adapter being in the weights for good: a model to start something new from."""
    model, tokenizer = load(directory, device, backend)
    return settled(model), tokenizer


def add_adapters(model: Transformer, adapters: Mapping[str, str | Path], base: str | Path) -> Transformer:
    """The same model, that of the run `base`, with several adapters beside it by their names, none of them in use.

    An adapter is a run directory that has one, or a folder as PEFT writes it. Raises UserError for what is none, and
    for one that belongs beside other weights.
    """
    digest = RunDirectory(base).digest()
    for name, directory in adapters.items():
        if (Path(directory) / peft.CONFIG).is_file():
            peft.read_peft(Path(directory), model, digest, name)
            continue
        run = RunDirectory(directory)
        _require_language(run)
        record = run.read_adapter()
        if record is None:
            raise UserError("holds a model of its own and no adapter", run.path)
        if record.base_sha256 != digest:
            raise UserError(f"its adapter belongs beside other weights than those in {base}", run.path)
        if record.base_format != "float":
            raise UserError(f"its adapter belongs beside weights of {record.base_format}; use it alone", run.path)
        add_adapter(model, record.lora, name)
        copy_into(adapter_tensors(model, name), run.weights(), run.adapter_file, "config.json")
    use_adapter(model, None)
    return model


Model = TypeVar("Model", Transformer, RewardModel)


def _load(
    run: RunDirectory, device: str | torch.device, backend: str, make: Callable[[Transformer], Model]
) -> tuple[Model, Tokenizer]:
    """make: what stands on the Transformer, or that itself."""
    record = run.read_adapter()
    if record is not None:
        base = RunDirectory(os.path.normpath(run.path / record.base))
        if not base.config_file.is_file():
            raise UserError(
                f"its adapter belongs beside {base.path}, which is not there; where that run is now, "
                f"`--model THERE --adapter {run.path}` use both",
                run.path,
            )
        return _adapted(run, record, base, device, backend, make)
    shape, tokenizer = run.describe()
    file = run.weights()
    where = resolve_device(str(device))
    model = make(Transformer(shape, resolve_backend(backend, where)))
    copy_into(model.state_dict(), file, run.model_file, "config.json")
    return model.to(where).eval(), tokenizer


def _adapted(
    run: RunDirectory, record: AdapterRecord, base: RunDirectory, device: str | torch.device, backend: str,
    make: Callable[[Transformer], Model],
) -> tuple[Model, Tokenizer]:  # fmt: skip
    """The model of `base` with the adapter of `run` beside it."""
    _, tokenizer = run.describe()
    file = run.weights()
    if base.digest() != record.base_sha256:
        raise UserError(f"its adapter belongs beside other weights than those in {base.path}", run.path)
    transformer, _ = load_settled(base.path, device, backend)
    model = make(add_recorded(transformer, record)).to(transformer.device)
    copy_into(own_tensors(model), file, run.adapter_file, "config.json")
    return model.eval(), tokenizer
