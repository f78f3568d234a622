"""Shared fixtures; hypothesis profiles: `quick` for `make test`, `thorough` for `make test-all`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

for name, examples in (("quick", 25), ("thorough", 200)):
    settings.register_profile(
        name,
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        print_blob=True,
        derandomize=bool(os.environ.get("CI")),  # there the same commit gives the same verdict; elsewhere, new examples
    )
# Without a GPU, kernels run in Triton's interpreter. Triton decides that when it is imported, so tests that compile
# kernels start processes of their own.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# Small tensors compute faster in one thread, and several tests run at once; processes that they start read it.
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", type=float, default=20.0, help="seconds for which a service is kept under load")


@pytest.fixture
def real_data() -> Path:
    """A folder of real data sets beside the checkout; tests that use it skip where there is none."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real data beside the checkout")
    return folder
