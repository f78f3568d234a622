"""A model of others, opened: its settings, its tensors under our names, its tokenizer. No tensor is read yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instructgpt.config import ModelConfig
from instructgpt.errors import UserError
from instructgpt.pretrained import hub, smollm2
from instructgpt.pretrained.families import Family
from instructgpt.pretrained.folder import CONFIG, open_folder, read_json
from instructgpt.pretrained.gguf import GGUFFile, folder_settings, with_rope_scaling
from instructgpt.pretrained.renaming import Converted, Imported
from instructgpt.pretrained.settings import model_config
from instructgpt.tensors import Spec, Tensors
from instructgpt.text.formats import left_out
from instructgpt.text.model_proto import UNUSED
from instructgpt.text.reading import read_folder, read_gguf
from instructgpt.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Incoming:
    """What an import consists of."""

    config: ModelConfig
    family: Family
    tensors: Tensors
    tokenizer: Tokenizer
    notes: list[str]
    """What the user should know."""
    path: Path
    """Where it was read from."""


def find(source: str, report: Callable[[str], None] = print, cache: Path | None = None) -> Path:
    """The folder or file that `--from` names: a path; `smollm2`; or a model's name on the hub, which is downloaded."""
    path = Path(source)
    if path.exists():
        return path
    if source == smollm2.NAME:
        return smollm2.fetch(cache or hub.cache_folder(), report)
    if not hub.is_name(source):
        raise UserError("no such folder or file, and no model's name on the hub, such as OWNER/MODEL", source)
    return hub.fetch(source, cache or hub.cache_folder(), report)


def open_model(path: Path, dtype: torch.dtype | None = None, chat_format: str = "") -> Incoming:
    """A folder or a GGUF file as a model of ours. Whatever is wrong with its settings or its tensors' names and shapes
    is told here, as a UserError; wrong bytes are when they are read.

    dtype: the number format to convert to; None keeps theirs. chat_format: the name of one, where it is not to be found
    out by the control tokens.
    """
    if path.is_dir():
        if not (path / CONFIG).is_file() and (files := sorted(path.glob("*.gguf"))):
            raise UserError(f"holds no {CONFIG}; of a GGUF file, name the file itself: {files[0].name}", path)
        values = read_json(path / CONFIG)
        if "stage" in values:
            raise UserError("is a run of this project already; name it with --model or --init", path)
        config, family, notes = model_config(values, path / CONFIG)
        tensors: Tensors = Imported(open_folder(path), config, family, "folder", path)
        with _told_as_damaged(path):
            tokenizer = read_folder(path, chat_format)
    else:
        if path.suffix in (".safetensors", ".bin"):
            raise UserError("is weights alone; name the folder that holds them with config.json and a tokenizer", path)
        file = GGUFFile(path)
        config, family, notes = model_config(folder_settings(file), path)
        config = with_rope_scaling(file, config)
        tensors = Imported(file, config, family, "gguf", path)
        with _told_as_damaged(path):
            tokenizer = read_gguf(_without_unused(file.values), path, chat_format)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the embedding {config.vocab_size} rows: they do not "
            "belong together",
            path,
        )
    if dtype is not None:
        tensors = Converted(tensors, dtype)
    if tokenizer.format is None:
        tokenizer = tokenizer.with_chat()
    if tokenizer.vocab_size > config.vocab_size:
        more = tokenizer.vocab_size - config.vocab_size
        notes = [*notes, f"{more} embeddings added for the chat format, each the mean of the others"]
        config = replace(config, vocab_size=tokenizer.vocab_size)
        tensors = Extended(tensors, tokenizer.vocab_size)
    if beyond := left_out(tokenizer.template):
        notes = [*notes, f"its own template also renders {', '.join(beyond)}; chats here have none of these"]
    if tokenizer.loses:
        notes = [*notes, f"its tokenizer loses {tokenizer.loses} of a text"]
    return Incoming(config, family, tensors, tokenizer, notes, path)


@contextmanager
def _told_as_damaged(path: Path) -> Iterator[None]:
    """A number where a text should be, or the like, anywhere in what says how a tokenizer works, as a UserError."""
    try:
        yield
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise UserError(f"holds a tokenizer that is not as it should be ({error!r})", path) from error


def _without_unused(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A GGUF file's settings without the tokens at the end that are none: they name rows that no token has."""
    types = values.get("tokenizer.ggml.token_type")
    if not isinstance(types, list) or not types or types[-1] != UNUSED:
        return values
    n = 1 + max((i for i, kind in enumerate(types) if kind != UNUSED), default=-1)
    lists = ("tokens", "token_type", "scores")
    cut = {key: values[key][:n] for key in (f"tokenizer.ggml.{name}" for name in lists) if key in values}
    return {**values, **cut}


class Extended:
    """A model's parameters with further rows in its embedding and its head, for tokens that it did not have.

    Each is the mean of the rows that are there, by which no token becomes likelier than it was (Hewitt 2021).
    """

    _NAMES = ("embedding.weight", "head_weight")

    def __init__(self, source: Tensors, rows: int):
        self.source, self.rows = source, rows
        self.specs: Mapping[str, Spec] = {
            name: Spec(spec.dtype, (rows, *spec.shape[1:])) if name in self._NAMES else spec
            for name, spec in source.specs.items()
        }

    def read(self, name: str) -> Tensor:
        tensor = self.source.read(name)
        if name not in self._NAMES:
            return tensor
        mean = tensor.mean(0, keepdim=True, dtype=torch.float32).to(tensor.dtype)
        return torch.cat((tensor, mean.expand(self.rows - len(tensor), -1)))
