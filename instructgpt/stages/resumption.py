"""Going on with a run: whether it is the same one, and what is different about the rest of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from instructgpt.errors import UserError
from instructgpt.strict_json import to_json
from instructgpt.text.tokenizer import FILE_NAMES
from instructgpt.training.checkpoint import RunDirectory
from instructgpt.training.loop import FitConfig, Progress, Snapshot, scheduled_factor

# Settings that may differ between a run and its resumption: they say where, how long and how closely watched, not what.
_FREE = {
    "out", "resume", "overwrite", "preset", "device", "checkpointing", "tracker", "expected_minutes", "max_steps",
    "max_minutes", "log_every", "save_every", "eval_every", "patience", "max_bad_steps",
}  # fmt: skip
# Flags that name what is read: files of data, run directories, files with functions.
_INPUTS = ("text", "data", "val_data", "ptx", "init", "tokenizer", "reward", "reward_function")
_READ_WHOLE = 1 << 26
"""Bytes up to which all of a file is hashed: a fraction of a second."""
_SAMPLES, _SAMPLE = 256, 1 << 18
"""Of a larger one, so many stretches of so many bytes, evenly spread, its beginning and end among them."""


def resumable(run: RunDirectory, stage: str, config: Any) -> Snapshot | None:
    """The saved state of the run in --out, after checking that this is the same run; None when nothing was saved.

    config: a `StageConfig`.
    Raises UserError where a setting that decides what is learnt is another one, or a file that is read has changed.
    Says so where the run ends elsewhere than it was to, for the learning rate depends on that.
    """
    if not run.config_file.exists():
        return None
    saved = run.read_config()
    if saved["stage"] != stage:
        raise UserError(f"holds a {saved['stage']} run; --resume goes on with a {stage} run", run.path)
    before, now = _flat(saved.get("settings") or {}), _flat(json.loads(to_json(asdict(config))))
    for name in now:
        if name not in _FREE and name in before and before[name] != now[name]:
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"was started with {flag} {before[name]}, not {now[name]}; --resume needs the same", run.path
            )
    snapshot = run.load_state()
    if snapshot is None:
        return None
    known = inputs(config)
    for path, digest in saved.get("inputs", {}).items():
        if known.get(path, digest) != digest:
            raise UserError(
                f"has changed since the run in {run.path} began, and the rest of it would learn from something else; "
                "restore it, or begin anew with --overwrite",
                path,
            )
    ends = {name: before[name] for name in ("max_steps", "max_minutes") if name in before}
    _tell_end(replace(config.fit, **ends), config.fit, Progress(**snapshot.values["progress"]))
    return snapshot


def inputs(config: Any) -> dict[str, str]:
    """What a stage reads, each with a digest of its contents; what can be read only once, such as a pipe, is left out.

    config: a `StageConfig`.
    """
    digests: dict[str, str] = {}
    for name in _INPUTS:
        value = getattr(config, name, ())
        for given in (value,) if isinstance(value, str) else value:
            digests |= {str(path): _digest(path) for path in _files(given)}
    return digests


def _files(given: str) -> Iterator[Path]:
    """The files behind the value of a flag: a file, two with + between them, a function's, those of a run directory."""
    path = Path(given)
    if given and path.is_dir():
        names = ("model.safetensors", "adapter.safetensors", *FILE_NAMES)
        yield from (path / name for name in names if (path / name).is_file())
    elif path.is_file():
        yield path
    else:
        parts = given.split("+") if "+" in given else [given.rpartition(":")[0]]
        yield from (Path(part) for part in parts if part and Path(part).is_file())


def _digest(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= _READ_WHOLE:
            digest.update(file.read())
        else:
            for i in range(_SAMPLES):
                file.seek((size - _SAMPLE) * i // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def _tell_end(before: FitConfig, now: FitConfig, progress: Progress) -> None:
    if (before.max_steps, before.max_minutes) == (now.max_steps, now.max_minutes):
        return
    planned, factor = scheduled_factor(before, progress), scheduled_factor(now, progress)
    print(
        f"the run was to end after {_end(before)}, and now ends after {_end(now)}: from step {progress.step}, the "
        f"learning rate is {factor:.3g} of its peak instead of {planned:.3g} (--schedule {now.schedule})",
        flush=True,
    )


def _end(fit: FitConfig) -> str:
    steps, minutes = f"{fit.max_steps} updates", f"{fit.max_minutes:g} minutes"
    return f"{steps} or {minutes}" if fit.max_steps and fit.max_minutes else steps if fit.max_steps else minutes


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value) if isinstance(value, dict) else {name: value}
    return flat
