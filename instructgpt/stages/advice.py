"""Where a stage has run out of memory: the flags that would help it, and what is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from instructgpt.errors import UserError
from instructgpt.flags import train_command
from instructgpt.shortage import shortage
from instructgpt.training.checkpoint import RunDirectory


@contextmanager
def advising(config: Any) -> Iterator[None]:
    """Raises UserError, in one line, instead of an allocator's error inside. config: a stage's."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not (told := shortage(error)):
            raise
        flags = " or ".join(_flags(config))
        parts = (told + _size_of_step(config), f"try {flags}" if flags else "", _kept(config))
        raise UserError("; ".join([*filter(None, parts), f"{train_command('plan')} says what fits"])) from error


def _size_of_step(config: Any) -> str:
    """` at 16 rows, 256 tokens a row`, as far as the settings say it."""
    sizes = [f"{getattr(config, name)} {name}" for name in ("rows", "prompts", "answers") if hasattr(config, name)]
    if length := _row_length(config):
        sizes.append(f"{length} tokens a row")
    return f" (at {', '.join(sizes)})" if sizes else ""


def _row_length(config: Any) -> int:
    """--row-length, or the context of the model to be trained; 0 where that is not known."""
    if length := getattr(config, "row_length", 0):
        return length
    if init := getattr(config, "init", ""):
        try:
            return RunDirectory(init).read_config()["model"]["context"]
        except (UserError, KeyError, TypeError):
            return 0
    return config.model.context if hasattr(config, "model") else 0


def _flags(config: Any) -> list[str]:
    """What takes less memory, what changes the result least first."""
    flags = []
    if getattr(config, "checkpointing", "") in ("none", "selective"):
        flags.append("--checkpointing blocks")
    fit = getattr(config, "fit", None)
    if getattr(fit or config, "optimizer_state", "") in ("float32", "bfloat16"):
        flags.append("--optimizer-state int8")
    for name in ("minibatches", "rows", "prompts"):  # the first that the stage has is what a step's size follows
        if fit is not None and hasattr(config, name):
            value, micro = getattr(config, name), fit.micro_batches
            if name == "minibatches":
                flags.append(f"--minibatches {2 * value} --micro-batches {2 * micro}")
            elif value > 1:
                flags.append(f"--{name} {value // 2} --micro-batches {2 * micro}")
            break
    if fit is None and getattr(config, "preset", "tiny") not in ("tiny", ""):
        flags.append("a smaller --preset")
    if (length := _row_length(config)) > 1 and hasattr(config, "row_length"):
        flags.append(f"--row-length {length // 2}")
    return flags


def _kept(config: Any) -> str:
    out = getattr(config, "out", "")
    if not out or not RunDirectory(out).state_file.exists():
        return ""
    return f"the last checkpoint in {Path(out)} is kept: --resume goes on from it, with --checkpointing blocks too"
