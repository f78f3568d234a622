"""`instructgpt export`: a run's model in the layouts that other engines read."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from instructgpt.commands.import_ import DTYPES
from instructgpt.errors import UserError
from instructgpt.pretrained import peft
from instructgpt.pretrained.folder import CONFIG
from instructgpt.pretrained.gguf import FORMATS
from instructgpt.pretrained.outgoing import export_folder, export_gguf
from instructgpt.settings import FilePath, Settings
from instructgpt.sizes import size_text
from instructgpt.training.checkpoint import RunDirectory

GGUF_NAME = "model.gguf"


@dataclass(frozen=True)
class ExportConfig(Settings):
    """Writes a run's model for other engines: transformers and vLLM (hf), llama.cpp (gguf); tokenizer and chat template
    included, an adapter as a part of the weights. Or an adapter alone, for PEFT."""

    model: FilePath = ""
    """The run directory to export."""
    to: FilePath = ""
    """The folder to write into, made if missing."""
    format: Literal["hf", "gguf", "peft"] = "hf"
    """hf: config.json, model.safetensors and tokenizer.json; gguf: one file, model.gguf; peft: adapter_config.json and
    adapter_model.safetensors, of a run that was tuned with --lora-rank."""
    dtype: Literal["keep", "float32", "bfloat16", "float16", "q8_0", "q4_0"] = "keep"
    """The number format of the weights; q8_0 and q4_0, 8 and 4 bits, are GGUF's."""
    base: FilePath = ""
    """peft: what PEFT is to put the adapter beside, such as the folder that its base was exported to."""
    overwrite: bool = False
    """Replace a model that the folder holds."""


def export(config: ExportConfig) -> int:
    """Reads the run tensor by tensor and writes the files, each whole or not at all."""
    for flag, value in (("--model", config.model), ("--to", config.to)):
        if not value:
            raise UserError(f"{flag} is missing: instructgpt export --model RUN --to DIR")
    if config.format == "hf" and config.dtype not in DTYPES:
        raise UserError(
            f"--dtype {config.dtype} is a format of GGUF; take --format gguf, or one of {', '.join(DTYPES)}"
        )
    started = time.perf_counter()
    run, folder = RunDirectory(config.model), Path(config.to)
    if run.read_config().get("head") == "reward":
        raise UserError("holds a reward model, which no other engine reads; name a run that answers", run.path)
    _require_uses(config, run)
    target = folder / {"hf": CONFIG, "gguf": GGUF_NAME, "peft": peft.CONFIG}[config.format]
    if folder.exists() and not folder.is_dir():
        raise UserError("is a file; --to names a folder", folder)
    if folder.resolve() == run.path.resolve():
        raise UserError("is the run itself; --to names another folder", folder)
    if target.exists() and not config.overwrite:
        raise UserError("is there already; replace it with --overwrite", target)
    if config.format == "peft":
        target.unlink(missing_ok=True)
        _export_adapter(run, folder, config.base)
        return _told(config, folder, started)
    shape, tokenizer, source = run.open_model()
    if config.format == "gguf":
        assert config.dtype == "keep" or config.dtype in FORMATS
        export_gguf(target, shape, source, tokenizer, config.dtype)
    else:
        target.unlink(missing_ok=True)
        export_folder(folder, shape, source, tokenizer, DTYPES[config.dtype])
    return _told(config, folder, started)


def _told(config: ExportConfig, folder: Path, started: float) -> int:
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    print(f"{folder}: {config.format}, {size_text(size)}, in {time.perf_counter() - started:.1f} s")
    return 0


def _require_uses(config: ExportConfig, run: RunDirectory) -> None:
    """Raises UserError where a flag says something of another format, or there is no adapter to write."""
    if config.format != "peft" and config.base:
        raise UserError("--base says what an adapter is put beside: take --format peft, or leave it out")
    if config.format == "peft" and config.dtype != "keep":
        raise UserError(f"--dtype {config.dtype}: an adapter keeps its number format; leave it out")
    if config.format == "peft" and run.read_adapter() is None:
        raise UserError("holds a model of its own and no adapter: take --format hf or gguf", run.path)


def _export_adapter(run: RunDirectory, folder: Path, base: str) -> None:
    record, (shape, _), file = run.read_adapter(), run.describe(), run.weights()
    assert record is not None
    tensors = {name: file.read(name) for name in file.specs}
    peft.write_peft(folder, shape, tensors, record.lora, base or record.base, record.base_sha256)
