"""Where kernels run: on the device of their tensors, whichever is the current one. GPUs are stand-ins here."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import kernels
from kernels import launch
from kernels.launch import Launch, Operator, custom_op, on_device_of_tensors, tuned

MODULES = [importlib.import_module(f"kernels.{m.name}") for m in pkgutil.iter_modules(kernels.__path__) if not m.ispkg]
OPS = {op._qualname: op for module in MODULES for op in vars(module).values() if isinstance(op, Operator)}


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Two GPUs of different names, the first one current; the list notes which were made current, one after another."""
    current, made_current = [0], []

    @contextmanager
    def device(wanted: torch.device) -> Iterator[None]:
        before, current[0] = current[0], wanted.index
        made_current.append(wanted.index)
        try:
            yield
        finally:
            current[0] = before

    def name(device: torch.device | None = None) -> str:
        return ("small", "large")[current[0] if device is None else device.index]

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "get_device_name", name)
    return made_current


def on(device: str) -> Tensor:
    with FakeTensorMode():
        return torch.empty(3, device=device)


def seen(*_: Any, **__: Any) -> int:
    return torch.cuda.current_device()


@pytest.mark.parametrize(
    ("arguments", "named", "expected"),
    [
        ((on("cuda:1"),), {}, 1),
        ((on("cuda:0"),), {}, 0),
        ((None, 2.0, on("cuda:1")), {}, 1),  # an argument that is left out, and a number, before it
        ((), {"x": on("cuda:1")}, 1),
        ((on("cpu"), on("cpu")), {}, 0),
    ],
)
def test_the_tensors_device_is_current_inside(
    arguments: tuple[Any, ...], named: dict[str, Any], expected: int, gpus: list[int]
) -> None:
    assert on_device_of_tensors(seen)(*arguments, **named) == expected
    assert torch.cuda.current_device() == 0
    assert gpus == ([1] if expected else [])  # where it is current already, nothing is switched


def test_it_is_current_again_after_an_error(gpus: list[int]) -> None:
    def fail(x: Tensor) -> None:
        raise ValueError("too much shared memory")

    with pytest.raises(ValueError, match="shared memory"):
        on_device_of_tensors(fail)(on("cuda:1"))
    assert gpus == [1] and torch.cuda.current_device() == 0


@pytest.mark.parametrize("name", sorted(OPS))
def test_every_op_is_guarded(name: str) -> None:
    assert OPS[name].function.__code__ is on_device_of_tensors(seen).__code__
    assert OPS[name]._init_fn is OPS[name].function


def test_a_custom_op_is_guarded_and_keeps_its_schema(gpus: list[int]) -> None:
    @custom_op("launch_tests::add_", mutates_args=("x",))
    def add_(x: Tensor, residual: Tensor | None, scale: float) -> None:
        """Adds."""
        x.add_(scale if residual is None else residual, alpha=1)

    assert str(add_._opoverload._schema) == ("launch_tests::add_(Tensor(a0!) x, Tensor? residual, float scale) -> ()")
    x = torch.zeros(2)
    add_(x, None, 2.0)
    add_(x, x, scale=1.0)
    assert x.tolist() == [4.0, 4.0] and gpus == []


def test_tuned_asks_for_the_tensors_device(gpus: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    default, launches = Launch({"BLOCK": 64}), {name: Launch({"BLOCK": n}) for name, n in (("small", 1), ("large", 2))}
    file = tmp_path / "tuned.json"
    file.write_text(json.dumps({name: {"op": {"key": vars(chosen)}} for name, chosen in launches.items()}))
    monkeypatch.setenv("KERNELS_TUNED", str(file))
    monkeypatch.setattr(launch, "INTERPRETED", False)
    assert tuned("op", "key", default) == launches["small"]
    assert tuned("op", "key", default, device=torch.device("cuda:1")) == launches["large"]
    assert on_device_of_tensors(lambda x: tuned("op", "key", default))(on("cuda:1")) == launches["large"]
