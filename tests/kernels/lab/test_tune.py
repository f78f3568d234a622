"""Tuning, with a stand-in timer that knows which launch was used, and the file that launches are read from."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from kernels import launch as launching
from kernels.lab import Inputs, Spec, tune
from kernels.lab.instruments import Instruments, Timing
from kernels.launch import Launch, building_for, choosing, read_tuned, tuned

DEFAULT = Launch({"BLOCK": 128})
OTHERS = tuple(Launch({"BLOCK": block}) for block in (64, 256, 512, 1024, 128))
MILLISECONDS = {64: 5.0, 128: 4.0, 256: 3.0, 512: 2.0, 1024: 1.0}


class Twice(torch.autograd.Function):
    """2·x, by "kernels" that ask which launch to use; blocks of 512 compute nonsense, those of 1,024 do not run."""

    used: ClassVar[list[tuple[str, int]]] = []

    @staticmethod
    def launched(op: str, x: Tensor) -> Tensor:
        block = tuned(op, f"n={x.numel()}", DEFAULT, OTHERS).blocks["BLOCK"]
        Twice.used.append((op, block))
        if block == 1024:
            raise RuntimeError("out of resources")
        y = torch.empty_like(x)
        y[: 1 if block == 512 else None] = 2 * x[: 1 if block == 512 else None]
        return y

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return Twice.launched("twice_forward", x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return Twice.launched("twice_backward", dy)


def twice_spec() -> Spec:
    def inputs(generator: torch.Generator, rows: int) -> Inputs:
        return Inputs({"x": torch.randn(rows, generator=generator, dtype=torch.float64)}, gradients=("x",))

    def op(x: Tensor) -> Tensor:
        return Twice.apply(x)

    return Spec(
        name="twice", op=op, reference=lambda x: 2 * x, cases=None, inputs=inputs, benchmarks=({"rows": 6},)
    )  # fmt: skip


def by_block(call: Callable[[], Any]) -> Timing:
    call()
    return Timing(MILLISECONDS[Twice.used[-1][1]], 0.0, 10)


STAND_IN = Instruments(
    torch.device("cpu"), "stand-in", by_block, by_block, lambda call: 0.0, lambda call: 0, cache_bytes=100
)  # fmt: skip


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of tuned launches, on a machine whose device is "stand-in"."""
    monkeypatch.setenv("KERNELS_TUNED", str(tmp_path / "cache" / "tuned.json"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "stand-in")
    monkeypatch.setattr(launching, "INTERPRETED", False)
    read_tuned.cache_clear()
    yield tmp_path / "cache" / "tuned.json"
    read_tuned.cache_clear()


def test_the_fastest_launch_that_is_right_wins() -> None:
    forward, backward = tune.tune_case(twice_spec(), {"rows": 6}, STAND_IN)
    assert forward == tune.Tuned("twice_forward", "n=6", Launch({"BLOCK": 256}), 3.0, 4.0, tried=5, refused=2)
    assert backward == tune.Tuned("twice_backward", "n=6", Launch({"BLOCK": 256}), 3.0, 4.0, tried=5, refused=2)
    assert "BLOCK=256" in tune.report([forward])


def test_a_chooser_is_asked_from_every_thread(file: Path) -> None:
    """On a GPU, autograd runs the backward in a thread of its own."""
    found: list[Launch] = []
    thread = Thread(target=lambda: found.append(tuned("twice_backward", "n=6", DEFAULT, OTHERS)))
    with choosing(lambda op, key, default, others: others[1]):
        thread.start()
        thread.join()
    assert found == [OTHERS[1]]
    assert tuned("twice_backward", "n=6", DEFAULT, OTHERS) == DEFAULT


def test_a_default_that_fails_is_an_error() -> None:
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        tune.tune_case(Spec("broken", broken, broken, None, twice_spec().inputs), {"rows": 6}, STAND_IN)


def test_new_memory_is_nan_while_results_are_compared() -> None:
    with tune.nan_in_new_memory():
        assert torch.empty(1000).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_was_tuned_is_used(file: Path) -> None:
    assert tuned("twice_forward", "n=6", DEFAULT, OTHERS) == DEFAULT  # no file yet
    tune.save(file, "stand-in", tune.tune_case(twice_spec(), {"rows": 6}, STAND_IN))
    read_tuned.cache_clear()
    assert tuned("twice_forward", "n=6", DEFAULT, OTHERS) == Launch({"BLOCK": 256})
    assert tuned("twice_forward", "n=7", DEFAULT, OTHERS) == DEFAULT
    assert tuned("thrice_forward", "n=6", DEFAULT, OTHERS) == DEFAULT


def test_builds_and_the_interpreter_use_defaults(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune.save(file, "stand-in", tune.tune_case(twice_spec(), {"rows": 6}, STAND_IN))
    with building_for(90):
        assert tuned("twice_forward", "n=6", DEFAULT) == DEFAULT
    monkeypatch.setattr(launching, "INTERPRETED", True)
    assert tuned("twice_forward", "n=6", DEFAULT) == DEFAULT


def test_launches_of_another_version_of_the_kernel_are_passed_over(file: Path) -> None:
    tune.save(file, "stand-in", tune.tune_case(twice_spec(), {"rows": 6}, STAND_IN))
    renamed = Launch({"TILE": 128})
    assert tuned("twice_forward", "n=6", renamed) == renamed


def test_saving_keeps_other_devices_and_keys(file: Path) -> None:
    answers = tune.tune_case(twice_spec(), {"rows": 6}, STAND_IN)
    tune.save(file, "other", answers[:1])
    tune.save(file, "stand-in", answers[:1])
    tune.save(file, "stand-in", answers[1:])
    known = json.loads(file.read_text())
    assert set(known) == {"other", "stand-in"}
    assert set(known["stand-in"]) == {"twice_forward", "twice_backward"}
    assert known["other"]["twice_forward"]["n=6"] == {"blocks": {"BLOCK": 256}, "num_warps": 4, "num_stages": 2}


def test_a_broken_file_is_told(file: Path) -> None:
    file.parent.mkdir()
    file.write_text("{")
    with pytest.raises(ValueError, match=r"tuned\.json: tuned launches cannot be read"):
        tuned("twice_forward", "n=6", DEFAULT)


def test_without_a_device_nothing_is_written(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.run(Namespace(kernel="swiglu")) == 0
    assert capsys.readouterr().out == "no CUDA device here: nothing tuned, nothing written\n"
    assert not file.exists()
