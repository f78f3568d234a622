"""A run directory: what a stage leaves behind, whole at every moment, and how it is read back.

config.json         the stage, its settings, the model's shape and head, fingerprints of tokenizer and inputs
tokenizer.model     SentencePiece's own file
model.safetensors   the weights to use, with a checksum of their bytes
metrics.jsonl       a line a record
eval.json, samples.md, curves.png
state/              state.safetensors: weights, optimizer, random state and data cursor, while it can be resumed
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from instructgpt.atomic import replacing
from instructgpt.config import ModelConfig
from instructgpt.errors import UserError
from instructgpt.model.backend import Backend, resolve_backend
from instructgpt.model.heads import RewardModel
from instructgpt.model.quantize import quantize
from instructgpt.model.transformer import Transformer
from instructgpt.runtime import resolve_device
from instructgpt.strict_json import to_json, write_json
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.loop import Snapshot

Head = Literal["language", "reward"]
"""What stands on top of a run's Transformer: the one that predicts tokens, or the one that scores answers."""

_CHECKSUM = "sha256"


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_tensors(path: Path, tensors: dict[str, Tensor], values: dict[str, Any] | None = None) -> None:
    """Writes tensors, and JSON-able `values` beside them, to one safetensors file, atomically, with a checksum."""
    # .clone(): tied or shared storage may not appear twice in a safetensors file.
    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        own[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    metadata = {"format": "pt", _CHECKSUM: _checksum(own), "values": to_json(values or {})}
    with replacing(path) as temporary:
        try:
            save_file(own, str(temporary), metadata)
        except SafetensorError as error:  # safetensors wraps the operating system's error
            raise OSError(str(error)) from error
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Puts the metadata of a safetensors file in order: the library's is another one in each process, so that files
    of equal contents would differ.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size, "the same entries in another order"
        file.seek(8)
        file.write(text.ljust(size))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_tensors` wrote. A truncated or altered file is a `UserError`."""
    if not path.is_file():
        raise UserError("no such file", path)
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"is damaged or not a safetensors file ({error}); restore it from a copy", path) from error
    if _CHECKSUM in metadata and metadata[_CHECKSUM] != _checksum(tensors):
        raise UserError("its contents do not match its checksum: the file was altered; restore it from a copy", path)
    return tensors, json.loads(metadata.get("values", "{}"))


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
        holds_run = run.config_file.exists() or run.model_file.exists() or run.state_file.exists()
        if holds_run and overwrite and not resume:
            for file in (run.config_file, run.model_file, run.metrics_file, run.path / "tokenizer.model"):
                file.unlink(missing_ok=True)
            for file in ("eval.json", "samples.md", "curves.png"):
                (run.path / file).unlink(missing_ok=True)
            shutil.rmtree(run.state_file.parent, ignore_errors=True)
        elif holds_run and not resume:
            raise UserError("holds a run already; go on with --resume, replace it with --overwrite", run.path)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot be created: {error.strerror}", run.path) from error
        return run

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
    config = run.read_config()
    if not config.get("model"):
        raise UserError(f"holds a {config['stage']} run, which has no model; name a pretrain or sft run", run.path)
    tokenizer = Tokenizer.load(run.path)
    if tokenizer.fingerprint != config.get("tokenizer"):
        raise UserError("is not the tokenizer that this run was trained with", run.path / "tokenizer.model")
    shape = model_config(config["model"], run.config_file)
    if shape.vocab_size < tokenizer.vocab_size:
        raise UserError(
            f"model has {shape.vocab_size} embeddings, the tokenizer {tokenizer.vocab_size} tokens", run.config_file
        )
    if not run.model_file.is_file():
        raise UserError("holds no model yet: model.safetensors is missing; train it, or go on with --resume", run.path)
    tensors, _ = load_tensors(run.model_file)
    where = resolve_device(str(device))
    model = make(shape, resolve_backend(backend, where))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        name = next(n for n in sorted({**expected, **found}) if expected.get(n) != found.get(n))
        raise UserError(
            f"does not fit config.json: {name} has shape {found.get(name)}, the configuration asks for "
            f"{expected.get(name)}",
            run.model_file,
        )
    model.load_state_dict(tensors)
    return model.to(where).eval(), tokenizer
