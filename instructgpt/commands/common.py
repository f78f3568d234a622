"""What commands share: which model they use, which action of several is meant, and how they print."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from instructgpt.errors import UserError, suggestion
from instructgpt.flags import program
from instructgpt.model.quantize import quantize
from instructgpt.model.transformer import Transformer
from instructgpt.runtime import resolve_device, resolve_precision
from instructgpt.settings import FilePath, Settings
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.checkpoint import load


@dataclass(frozen=True)
class ModelChoice(Settings):
    """Which model, computed where."""

    model: FilePath = ""
    """The run directory to use, such as runs/tiny/sft."""
    adapter: FilePath = ""
    """A run directory with an adapter, or a folder as PEFT writes it, to put beside the model in --model. A run that
    was tuned with --lora-rank finds its base by itself: name it as --model."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    dtype: str = "auto"
    """float32, bfloat16, float16, or auto: bfloat16 where the hardware multiplies it fast enough to pay."""
    backend: str = "auto"
    """naive, sdpa, triton (our kernels, on CUDA) or auto."""
    quantize: Literal["none", "int8", "int4"] = "none"
    """Bits of the blocks' weights: int8 costs next to no quality, int4 some; both make a token cheaper."""

    def load(self) -> tuple[Transformer, Tokenizer, AbstractContextManager[Any]]:
        """The model, its tokenizer, and the context to compute in."""
        if not self.model:
            raise UserError("--model is missing: name a run directory, such as runs/tiny/sft")
        device = resolve_device(self.device)
        precision = resolve_precision(self.dtype, device)
        model, tokenizer = load(self.model, device, self.backend, adapter=self.adapter)
        model = model.to(precision.parameters)
        if self.quantize != "none":
            quantize(model, self.quantize)
        return model, tokenizer, precision.context(device)


def choose(
    argv: Sequence[str], command: str, actions: Mapping[str, tuple[Any, str]], default: str, usage: str
) -> tuple[str, list[str]] | None:
    """The action that is named first, or the default, and the words behind it; None where help was asked for, and is
    printed. actions: what to do and, in words, what that is, by name. UserError for one that there is not."""
    action, *rest = argv or [default]
    prog = f"{program()} {command}"
    if action in ("-h", "--help"):
        width = max(map(len, actions))
        print(f"usage: {prog} {usage}\n")
        print("\n".join(f"  {name:<{width}} {purpose}" for name, (_, purpose) in actions.items()))
        return None
    if action not in actions:
        raise UserError(f"{prog} knows {', '.join(actions)}, not {action!r}{suggestion(action, actions)}")
    return action, rest


def command(*words: str, folder: str, default: str) -> str:
    """The command line of these words, to be copied into a shell: with --folder, unless that is the default."""
    # With =, what begins with a dash is a value all the same.
    flag = [f"--folder={folder}"] if folder.startswith("-") else ["--folder", folder]
    return f"{program()} {shlex.join([*words, *(flag if folder != default else ())])}"


def require_folder(folder: str) -> None:
    """UserError where --folder, or a folder above it, is a file, or its name cannot be written into a file. It need not
    be there yet."""
    if not folder.isprintable():  # bytes that are no text arrive as surrogates, which are not
        raise UserError(f"--folder {folder!a}: its name holds what cannot be printed; give it another one")
    for part in (Path(folder), *Path(folder).parents):
        if os.path.exists(part) and not part.is_dir():
            raise UserError("is a file, and --folder names a folder", part)


def write(text: str) -> None:
    """To standard output, at once."""
    print(text, end="", flush=True)
