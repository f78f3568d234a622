"""Small tokenizers of every family, as they are read from their folders."""

from __future__ import annotations

import pytest

from instructgpt.text.reading import read_folder
from instructgpt.text.tokenizer import Tokenizer
from tests.text.families import FAMILIES, saved


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, object]]:
    """Each family's tokenizer, and the oracle's."""
    found = {}
    for name in FAMILIES:
        folder = tmp_path_factory.mktemp(name)
        oracle = saved(name, folder)
        found[name] = read_folder(folder), oracle
    return found


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest, families: dict) -> tuple[str, Tokenizer, object]:
    """One of them, by name."""
    return request.param, *families[request.param]
