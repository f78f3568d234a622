"""What is said while notebooks run: with `pytest -v`, how long each took."""

from __future__ import annotations

import pytest


def pytest_report_teststatus(report: pytest.CollectReport | pytest.TestReport) -> tuple[str, str, str] | None:
    if report.passed and isinstance(report, pytest.TestReport) and report.when == "call":
        return "passed", ".", f"PASSED in {report.duration:.0f} s"
    return None
