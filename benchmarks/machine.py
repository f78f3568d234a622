"""What a figure was measured on, and the ceilings that it is compared with."""

from __future__ import annotations

import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from instructgpt.runtime import resolve_precision
from instructgpt.strict_json import to_json, write_json
from instructgpt.training.metrics import measure_peak_flops

ROOT = Path(__file__).parents[1]
_INSTRUCTIONS = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx512f", "avx_vnni", "avx2")
"""What decides how fast a processor multiplies matrices, as Linux names it."""


def device_name(device: torch.device) -> str:
    """`cpu`, or the GPU's name as part of a file name."""
    if device.type != "cuda":
        return device.type
    return torch.cuda.get_device_name(device).lower().replace(" ", "-")


def results_file(name: str, device: torch.device, what: str) -> str:
    """The file that `--json NAME` means: `auto` is benchmarks/results/DEVICE-WHAT.json, empty is none."""
    return f"benchmarks/results/{device_name(device)}-{what}.json" if name == "auto" else name


def publish(document: dict[str, Any], file: str) -> None:
    """Writes what was measured, where a file is named, and prints it as the last line: one JSON document."""
    if file:
        write_json(file, document)
    print(to_json(document))


def describe(device: torch.device) -> dict[str, Any]:
    """Device, processor, versions and commit, as they are written beside every figure."""
    found = {
        "device": device_name(device),
        "processor": _processor(),
        "cores": torch.get_num_threads(),
        "instructions": _instructions(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "transformers": _version("transformers"),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }
    return found | ({"cuda": torch.version.cuda} if device.type == "cuda" else {})


def commit() -> str:
    """The commit that is checked out, with a + where files differ from it; empty outside of a repository."""
    try:
        found = _git("rev-parse", "--short=10", "HEAD")
        return found + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*words: str) -> str:
    command = ["git", "-C", str(ROOT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpuinfo(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _instructions() -> list[str]:
    flags = set(_cpuinfo("flags").split())
    return [name for name in _INSTRUCTIONS if name in flags]


def matrix_rate(device: torch.device, dtype: str) -> float:
    """FLOP/s of a large matrix product in the format that training takes for --dtype: what MFU is a share of."""
    return measure_peak_flops(device, resolve_precision(dtype, device), seconds=0.5)


def copy_rate(device: torch.device, bytes: int = 1 << 28) -> float:
    """Bytes a second of a large copy, read and written ones counted: the best of several."""
    source = torch.ones(bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(8):
        synchronize(device)
        started = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        best = max(best, 2 * bytes / (time.perf_counter() - started))
    return best


def synchronize(device: torch.device) -> None:
    """Waits for what was launched on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
