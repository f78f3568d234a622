"""The compile check, on planted kernels and on all that ship, in processes without Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[3]
PLANTED = Path(__file__).with_name("over_budget.py")


def compile_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}  # as in a shell that was used for `check`
    command = [sys.executable, "-m", "kernels.lab", "compile", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def planted() -> dict[str, dict[str, Any]]:
    """The only build of each planted kernel, by name."""
    done = compile_command(PLANTED, "--arch", "90", "--json")
    assert done.returncode == 1, done.stderr
    return {name: build for name, (build,) in json.loads(done.stdout).items()}


def test_good_kernels_have_no_problems(planted: dict[str, dict[str, Any]]) -> None:
    for name in ("good_copy", "ragged_copy", "good_product"):
        assert planted[name]["problems"] == []


def test_what_a_copy_uses(planted: dict[str, dict[str, Any]]) -> None:
    # 4,096 bfloat16 elements by 128 threads: four 16-byte loads and stores each.
    used = planted["good_copy"]["resources"]
    assert (used["loads"], used["wide_loads"], used["stores"], used["wide_stores"]) == (4, 4, 4, 4)
    assert used["shared_bytes"] == used["spill_bytes"] == used["tensor_instructions"] == 0
    assert 8 <= used["registers"] <= 64
    assert planted["good_copy"]["settings"] == {"BLOCK": 4096}


def test_rows_that_are_not_aligned_may_be_read_narrowly(planted: dict[str, dict[str, Any]]) -> None:
    assert planted["ragged_copy"]["resources"]["wide_loads"] == 0


def test_a_product_uses_tensor_cores(planted: dict[str, dict[str, Any]]) -> None:
    assert planted["good_product"]["resources"]["tensor_instructions"] > 0
    assert planted["without_products"]["problems"] == ["no kernel of its case has a tensor-core instruction"]


def test_narrow_loads_of_aligned_rows_fail(planted: dict[str, dict[str, Any]]) -> None:
    (problem,) = planted["backwards"]["problems"]
    assert problem == "none of its 32 loads brings 16 bytes a thread, though rows are aligned"


def test_spills_fail(planted: dict[str, dict[str, Any]]) -> None:
    (problem,) = planted["spilling"]["problems"]
    spilled = planted["spilling"]["resources"]["spill_bytes"]
    assert spilled > 500 and problem == f"spills {spilled:,} bytes a thread; max_spill_bytes is 0"


def test_too_much_shared_memory_fails(planted: dict[str, dict[str, Any]]) -> None:
    (problem,) = planted["greedy"]["problems"]
    assert planted["greedy"]["resources"]["shared_bytes"] > 232_448
    assert "bytes of shared memory; a program may have 232,448" in problem


def test_an_error_of_the_compiler_is_told(planted: dict[str, dict[str, Any]]) -> None:
    (problem,) = planted["misspelt"]["problems"]
    assert problem.startswith("does not compile: ") and "BLOKC is not defined" in problem


def test_the_table_says_which_and_why() -> None:
    done = compile_command(f"{PLANTED}:greedy", "--arch", "80")
    assert done.returncode == 1
    row = next(line for line in done.stdout.splitlines() if line.startswith("sm_80"))
    assert "product_kernel" in row and "of 166,912" in row and row.endswith("FAIL")
    assert "product_kernel on sm_80: needs" in done.stdout


def test_unknown_architecture() -> None:
    done = compile_command(PLANTED, "--arch", "70")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


def test_what_ships_compiles_for_hopper() -> None:
    done = compile_command("all", "--arch", "90", "--first")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_what_ships_compiles_for_every_target() -> None:
    done = compile_command("all", "--arch", "80", "90", "100")
    assert done.returncode == 0, done.stdout + done.stderr
