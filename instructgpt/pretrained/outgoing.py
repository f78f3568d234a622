"""A run's model as others read it: a folder in the layout of `transformers`, or a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from instructgpt.config import ModelConfig
from instructgpt.pretrained.families import family_of
from instructgpt.pretrained.folder import CONFIG, SAFETENSORS
from instructgpt.pretrained.gguf import write_gguf
from instructgpt.pretrained.renaming import Converted, Exported
from instructgpt.pretrained.settings import folder_settings
from instructgpt.strict_json import write_json
from instructgpt.tensors import Tensors, write_safetensors
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.text.writing import gguf_fields, write_folder


def export_folder(
    folder: Path, config: ModelConfig, source: Tensors, tokenizer: Tokenizer, dtype: torch.dtype | None
) -> None:  # fmt: skip
    """Writes weights, tokenizer with chat template, and last config.json, without which nothing can be loaded.

    dtype: None keeps the run's. Raises UserError for a model that no family of others can be.
    """
    family = family_of(config)
    theirs: Tensors = Exported(source, config, family, "folder")
    if dtype is not None:
        theirs = Converted(theirs, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / SAFETENSORS, theirs, with_digests=False)
    write_folder(tokenizer, folder)
    ids: dict[str, Any] = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad}
    closing = sorted(tokenizer.closing)
    ends = closing[0] if len(closing) == 1 else closing
    write_json(folder / "generation_config.json", {**ids, "eos_token_id": ends})
    kind = next(spec.dtype for name, spec in theirs.specs.items() if len(spec.shape) == 2)
    write_json(folder / CONFIG, {**folder_settings(config, family, str(kind).removeprefix("torch.")), **ids})


def export_gguf(path: Path, config: ModelConfig, source: Tensors, tokenizer: Tokenizer, dtype: str) -> None:
    """Writes one file. dtype: as `gguf.FORMATS` has them, or "keep". Raises UserError as `export_folder` does, and for
    tokenizers and scalings of rotations that llama.cpp does not have."""
    family = family_of(config)
    theirs = Exported(source, config, family, "gguf")
    write_gguf(path, theirs, config, family, dtype, gguf_fields(tokenizer, config.vocab_size))
