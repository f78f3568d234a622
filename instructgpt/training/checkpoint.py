"""A run directory: what a stage leaves behind, whole at every moment, and how it is read back.

config.json         the stage, its settings, the model's shape and head, fingerprints of tokenizer and inputs
tokenizer.model     SentencePiece's own file; of others tokenizer.json may stand in its place, and chat.json beside it
model.safetensors   the weights to use, with a checksum of each tensor
metrics.jsonl       a line a record
eval.json, samples.md, curves.png
state/              state.safetensors: weights, optimizer, random state and data cursor, while it can be resumed
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from instructgpt.config import ModelConfig
from instructgpt.errors import UserError
from instructgpt.model.backend import Backend, resolve_backend
from instructgpt.model.heads import RewardModel
from instructgpt.model.quantize import quantize
from instructgpt.model.transformer import Transformer
from instructgpt.runtime import resolve_device
from instructgpt.strict_json import to_json, write_json
from instructgpt.tensors import Held, SafetensorsFile, write_safetensors
from instructgpt.text.tokenizer import FILE_NAMES, Tokenizer
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
        self.metrics_file = self.path / "metrics.jsonl"
        self.state_file = self.path / "state" / "state.safetensors"

    @classmethod
    def open(cls, path: str | Path, *, overwrite: bool = False, resume: bool = False) -> RunDirectory:
        """The directory for a new run, or one to go on with. One that holds another run is refused, not mixed up."""
        run = cls(path)
        if run.path.exists() and not run.path.is_dir():
            raise UserError("is a file; --out names a directory", run.path)
        if run.holds_run and overwrite and not resume:
            for file in (run.config_file, run.model_file, run.metrics_file):
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
        return self.config_file.exists() or self.model_file.exists() or self.state_file.exists()

    def write_config(
        self,
        stage: str,
        model: ModelConfig | None,
        tokenizer: Tokenizer,
        settings: Any,
        head: Head = "language",
        inputs: dict[str, str] | None = None,
        compiled: str = "off",
    ) -> None:
        """Writes config.json and the tokenizer: what is known before training starts.

        inputs: digests of what is read, by path. compiled: how the steps are, which decides the last bits of a run.
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
        }
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

    def open_model(self) -> tuple[ModelConfig, Tokenizer, SafetensorsFile]:
        """Shape, tokenizer and weights, of which none is read yet. UserError where one is missing or not the run's."""
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
        if not self.model_file.is_file():
            raise UserError(
                "holds no model yet: model.safetensors is missing; train it, or go on with --resume", self.path
            )
        return shape, tokenizer, SafetensorsFile(self.model_file)

    def save_model(self, model: nn.Module) -> None:
        save_tensors(self.model_file, dict(model.state_dict()))

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
    directory: str | Path, device: str | torch.device = "auto", backend: str = "auto", quantized: str = ""
) -> tuple[Transformer, Tokenizer]:
    """Language model (in eval mode, on `device`) and tokenizer of a run directory.

    quantized: int8 or int4 keeps the blocks' weights in so few bits, for generation; the model cannot be trained then.
    Raises UserError when a file is missing, damaged, or does not belong with the others, and for a reward model.
    """
    run = RunDirectory(directory)
    if run.read_config().get("head") == "reward":
        raise UserError(
            "holds a reward model, which scores answers and writes none; name a pretrain, sft or policy run", run.path
        )
    model, tokenizer = _load(run, device, backend, lambda shape, backend: Transformer(shape, backend))
    if quantized:
        quantize(model, quantized)
    return model, tokenizer


def load_reward_model(
    directory: str | Path, device: str | torch.device = "auto", backend: str = "auto"
) -> tuple[RewardModel, Tokenizer]:
    """Reward model (in eval mode, on `device`) and tokenizer of a `reward` run; errors as those of `load`."""
    run = RunDirectory(directory)
    config = run.read_config()
    if config.get("head") != "reward":
        raise UserError(f"holds a {config['stage']} run, not a reward model; name a reward run", run.path)
    return _load(run, device, backend, lambda shape, backend: RewardModel(Transformer(shape, backend)))


Model = TypeVar("Model", Transformer, RewardModel)


def _load(
    run: RunDirectory, device: str | torch.device, backend: str, make: Callable[[ModelConfig, Backend], Model]
) -> tuple[Model, Tokenizer]:
    shape, tokenizer, file = run.open_model()
    where = resolve_device(str(device))
    model = make(shape, resolve_backend(backend, where))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: spec.shape for name, spec in file.specs.items()}
    if expected != found:
        name = next(n for n in sorted({**expected, **found}) if expected.get(n) != found.get(n))
        raise UserError(
            f"does not fit config.json: {name} has shape {found.get(name)}, the configuration asks for "
            f"{expected.get(name)}",
            run.model_file,
        )
    for name, tensor in model.state_dict().items():  # one by one: file and model are never both whole in memory
        tensor.copy_(file.read(name))
    return model.to(where).eval(), tokenizer
