"""What is looked at around a call: the state of the process, and the functions that judge."""

from __future__ import annotations

import os

import pytest

from kernels.lab import surroundings
from kernels.lab.limits import Wrong
from kernels.lab.surroundings import same_state


def test_what_the_judge_imports_for_the_first_time_is_no_change_by_who_is_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a process that judges one kernel, as that of an exercise, it is imported there and then."""
    monkeypatch.setattr(surroundings, "import_what_replaces", lambda: monkeypatch.setenv("SET_BY_AN_IMPORT", "1"))
    with same_state():
        assert os.environ["SET_BY_AN_IMPORT"] == "1"


def test_a_variable_of_the_environment_that_is_set_inside_is_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Wrong, match="changes the environment"), same_state():
        monkeypatch.setenv("SET_INSIDE", "1")
