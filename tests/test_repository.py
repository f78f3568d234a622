"""What must hold of the repository's files, whatever is in them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A registry is chosen by whoever installs: by pip's own configuration, or by TORCH_INDEX.
REGISTRIES = re.compile(
    r"pypi\.org|pythonhosted|(?:download|pypi)\.pytorch\.org|anaconda\.org|npmjs|proxy\.golang|index\.crates|devpi",
    re.IGNORECASE,
)
MACHINE_PATHS = re.compile(r"(?<![\w.~*])/(?:work|home|root|opt|mnt|Users)/\w|[A-Z]:\\\\?Users")


def repository_files() -> list[Path]:
    """Everything that is in the repository or would be added to it."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def found(pattern: re.Pattern[str], files: list[Path]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in files
        if path != Path(__file__)
        for match in pattern.finditer(path.read_text(encoding="utf-8", errors="ignore"))
    ]


def test_no_file_names_a_package_registry():
    assert REGISTRIES.search("https://pypi.org/simple") and REGISTRIES.search("https://download.pytorch.org/whl/cpu")
    assert found(REGISTRIES, repository_files()) == []


def test_no_file_names_a_path_of_one_machine():
    assert MACHINE_PATHS.search("open('/home/me/x')") and not MACHINE_PATHS.search("../opt/x or https://a.b/home/x")
    assert found(MACHINE_PATHS, repository_files()) == []


def test_code_knows_no_folder_beside_the_checkout():
    code = [path for path in repository_files() if path.relative_to(ROOT).parts[0] in ("instructgpt", "kernels")]
    assert found(re.compile(r"\bshared/"), code) == []


def test_the_lock_has_every_dependency_of_every_extra():
    """A requirement without a pinned version would be installed as it comes."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    # tomllib is not in Python 3.10; the lists of requirements are the only quoted strings with a version in them.
    required = {re.sub(r"[-_.]+", "-", name).lower() for name in re.findall(r'"([\w.-]+)(?:\[\w+\])?[><=]=', project)}
    assert {"torch", "pytest", "transformers", "wandb", "setuptools"} <= required
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {match[1] for line in lines if (match := re.match(r"([a-z0-9-]+)==", line))}
    assert required - pinned == set()
    assert "torch==2.13.0" in lines and "triton==3.7.1" in lines
