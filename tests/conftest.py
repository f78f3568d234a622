"""Shared fixtures; hypothesis profiles: `quick` for `make test`, `thorough` for `make test-all`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="module")
def chromium() -> Iterator[Callable[..., Any]]:
    """Starts a browser in a language; each is started once."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="pages are tested with Selenium: pip install selenium")
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("no Chromium with its driver: apt-get install chromium chromium-driver")
    started: dict[str, Any] = {}

    def start(language: str = "en-US") -> Any:
        if language not in started:
            options = webdriver.ChromeOptions()
            options.binary_location = binary
            for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--accept-lang={language}"):
                options.add_argument(flag)
            options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
            started[language] = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        return started[language]

    yield start
    for browser in started.values():
        browser.quit()
