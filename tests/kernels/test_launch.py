"""How an op is called: on the device of its tensors, checked once a signature, its launch chosen once, and without
PyTorch's dispatcher where nobody looks. GPUs are stand-ins here."""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from kernels import launch
from kernels.lab.check import elements_of
from kernels.lab.find import Kernel, op_name, package_kernels
from kernels.lab.ladder import no_launches
from kernels.launch import (
    Launch,
    Operator,
    building_for,
    choosing,
    chosen_once,
    custom_op,
    on_device_of_tensors,
    once_per_signature,
    tuned,
)

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
    """A tensor without contents. Where there is a GPU even such a one needs the device that it is on."""
    if torch.cuda.is_available() and (torch.device(device).index or 0) >= torch.cuda.device_count():
        pytest.skip(f"this machine has GPUs, but not {device}")
    with FakeTensorMode():
        return torch.empty(3, device=device)


def seen(*_: Any, **__: Any) -> int:
    return torch.cuda.current_device()


@pytest.mark.parametrize(
    ("arguments", "named", "expected"),
    [
        (("cuda:1",), {}, 1),
        (("cuda:0",), {}, 0),
        ((None, 2.0, "cuda:1"), {}, 1),  # an argument that is left out, and a number, before it
        ((), {"x": "cuda:1"}, 1),
        (("cpu", "cpu"), {}, 0),
    ],
)
def test_the_tensors_device_is_current_inside(
    arguments: tuple[Any, ...], named: dict[str, Any], expected: int, gpus: list[int]
) -> None:
    def placed(value: Any) -> Any:
        return on(value) if isinstance(value, str) else value

    arguments, named = tuple(map(placed, arguments)), {name: placed(value) for name, value in named.items()}
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


# ---- checks, once a signature


class Counted:
    """A check that counts how often it is run, and refuses what has 7 rows."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, x: Tensor, option: Any = None) -> None:
        self.runs += 1
        if x.shape[0] == 7:
            raise ValueError("7 rows")


@pytest.fixture
def counted() -> tuple[Counted, Callable[..., None]]:
    count = Counted()
    return count, once_per_signature(count)


def test_a_signature_is_checked_once(counted: tuple[Counted, Callable[..., None]]) -> None:
    count, check = counted
    x = torch.ones(4, 6)
    others = (
        x.half(), x[:3], x[:, :3], x.T.contiguous().T, x.to("meta"), x.clone().requires_grad_(), x[0], x.expand(2, 4, 6)
    )  # fmt: skip
    for _ in range(3):
        check(x)
        check(x + 1)  # other values
        for other in others:
            check(other)
    assert count.runs == 1 + len(others)


def test_other_arguments_are_part_of_the_signature(counted: tuple[Counted, Callable[..., None]]) -> None:
    count, check = counted
    for _ in range(2):
        for option in (None, 0, 1, True, 1.0, "tanh", torch.float16, torch.ones(2)):
            check(torch.ones(3), option)
    assert count.runs == 8


def test_what_is_refused_is_refused_again(counted: tuple[Counted, Callable[..., None]]) -> None:
    count, check = counted
    for _ in range(3):
        with pytest.raises(ValueError, match="7 rows"):
            check(torch.ones(7))
    assert count.runs == 3


def test_a_signature_is_checked_anew_where_kernels_are_run_elsewhere(
    counted: tuple[Counted, Callable[..., None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    count, check = counted
    x = torch.ones(3)
    for wanted in (80, 90, 80, 90):
        with building_for(wanted):
            check(x)
    monkeypatch.setattr(launch, "INTERPRETED", not launch.INTERPRETED)
    check(x)
    monkeypatch.undo()
    check(x)
    assert count.runs == 4


def test_tensors_that_stand_for_others_are_checked_each_time(counted: tuple[Counted, Callable[..., None]]) -> None:
    """Their sizes may be symbols, which have no hash."""
    count, check = counted
    for _ in range(2):
        check(on("cuda:1"))
    assert count.runs == 2


def test_endless_signatures_are_forgotten() -> None:
    check = once_per_signature(lambda rows: None)
    for rows in range(10_000):
        check(rows)
    assert len(check.passed) <= 4096


# ---- launches, chosen once


def test_a_launch_is_chosen_once_for_each_size_dtype_and_device() -> None:
    asked: list[tuple[Any, ...]] = []
    choose = chosen_once(lambda *key: asked.append(key) or Launch({"BLOCK": len(asked)}))
    keys = [(4, torch.float32, torch.device("cuda:0")), (4, torch.float32, torch.device("cuda:1")),
            (4, torch.float16, torch.device("cuda:0")), (8, torch.float32, torch.device("cuda:0"))]  # fmt: skip
    first = [choose(*key) for key in keys]
    assert [choose(*key) for key in keys] == first and asked == keys


def test_a_launch_is_that_of_its_device(gpus: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: ((8, 0), (9, 0))[device.index])
    capability = chosen_once(lambda device: launch.generation(device))
    for _ in range(2):
        assert [capability(torch.device("cuda", index)) for index in (0, 1)] == [80, 90]
        with building_for(100):
            assert capability(torch.device("cuda:0")) == 100
    assert gpus == []


def test_choosing_is_asked_each_time_and_leaves_nothing_behind() -> None:
    choose = chosen_once(lambda size: tuned("op", str(size), Launch({"BLOCK": 64})))
    assert choose(3).blocks == {"BLOCK": 64}
    for block in (1, 2):
        with choosing(lambda op, key, default, others, block=block: Launch({"BLOCK": block})):
            assert choose(3).blocks == choose(4).blocks == {"BLOCK": block}
    assert choose(3).blocks == choose(4).blocks == {"BLOCK": 64}


def test_another_file_of_tuned_launches_is_another_choice(
    gpus: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = chosen_once(lambda device: tuned("op", "key", Launch({"BLOCK": 64}), device=device))
    monkeypatch.setattr(launch, "INTERPRETED", False)
    for block in (1, 2):
        file = tmp_path / f"{block}.json"
        file.write_text(json.dumps({"large": {"op": {"key": {"blocks": {"BLOCK": block}}}}}))
        monkeypatch.setenv("KERNELS_TUNED", str(file))
        assert choose(torch.device("cuda:1")).blocks == {"BLOCK": block}
        assert choose(torch.device("cuda:0")).blocks == {"BLOCK": 64}
    monkeypatch.setattr(launch, "INTERPRETED", True)
    assert choose(torch.device("cuda:1")).blocks == {"BLOCK": 64}


# ---- the operator


@custom_op("launch_tests::twice")
def twice(x: Tensor, scale: float) -> Tensor:
    return 2 * scale * x


@twice.register_fake
def _(x: Tensor, scale: float) -> Tensor:
    return torch.empty_like(x)


def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.scale = inputs


twice.register_autograd(lambda ctx, dy: (2 * ctx.scale * dy, None), setup_context=save)


@custom_op("launch_tests::add_one_", mutates_args=("x",))
def add_one_(size: float, x: Tensor) -> None:
    x.data.add_(1)  # as a kernel, unknown to autograd


@pytest.fixture
def dispatched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the operators that are called through PyTorch's dispatcher."""
    names: list[str] = []
    call = CustomOpDef.__call__

    def noted(self: Any, *arguments: Any, **named: Any) -> Any:
        names.append(self._name)
        return call(self, *arguments, **named)

    monkeypatch.setattr(CustomOpDef, "__call__", noted)
    return names


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.last = func
        return func(*args, **(kwargs or {}))


class Double(Tensor):
    """A type of its own, to which operators are handed."""


def test_plain_tensors_go_past_the_dispatcher(dispatched: list[str]) -> None:
    x = torch.nn.Parameter(torch.ones(3))
    y = twice(x, 3.0)
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [6.0] * 3
    with torch.no_grad():
        assert not twice(x, 1.0).requires_grad
    assert not twice(torch.ones(3), 1.0).requires_grad and dispatched == []


def test_whoever_looks_at_operators_sees_it(dispatched: list[str]) -> None:
    x = torch.ones(3)
    with Watching() as watching:
        twice(x, 1.0)
    assert watching.last is torch.ops.launch_tests.twice.default
    with torch.device("cpu"):  # a mode that functions are handed to
        twice(x, 1.0)
    torch.func.vmap(lambda x: twice(x, 1.0))(torch.ones(2, 3))
    twice(x.as_subclass(Double), 1.0)
    twice(x, scale=1.0)
    assert twice(on("cuda:1"), 1.0).device == torch.device("cuda:1")  # by its fake
    assert dispatched == ["twice"] * 6
    graph = make_fx(lambda x: twice(x, 1.0), tracing_mode="symbolic")(x)
    assert torch.ops.launch_tests.twice.default in [node.target for node in graph.graph.nodes]


def test_where_there_is_no_formula_a_gradient_is_refused(dispatched: list[str]) -> None:
    @custom_op("launch_tests::flat")
    def flat(x: Tensor) -> Tensor:
        return x.clone()

    with torch.no_grad():
        flat(torch.ones(3, requires_grad=True))
    assert dispatched == []
    y = flat(torch.ones(3, requires_grad=True))
    assert dispatched == ["flat"]
    with pytest.raises(RuntimeError, match="no autograd formula"):
        y.sum().backward()


def test_what_is_overwritten_is_known_to_be(dispatched: list[str]) -> None:
    """A gradient that needs the old values is refused, not wrong."""
    weight = torch.ones(3, requires_grad=True)
    x = torch.ones(3)
    y = weight * x
    add_one_(1.0, x)
    assert x.tolist() == [2.0] * 3 and dispatched == []
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# ---- what a call of each op runs


ON_EACH_CALL = {"require", "generation", "tuned", "require_rows", "next_power_of_2", "tuned_file"}
"""What is asked once: never in the second call of a signature."""


@pytest.mark.parametrize("kernel", [pytest.param(kernel, id=op_name(kernel)) for kernel in package_kernels()])
def test_a_second_call_asks_nothing_again(kernel: Kernel) -> None:
    """And runs few functions of ours: each costs a fifth of a microsecond and more."""
    spec = kernel.spec
    inputs = spec.make(min(spec.builds, key=lambda case: elements_of(spec, case)))
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in inputs.tensors.items()}
    folder = str(Path(kernels.__file__).parent)
    called: list[str] = []

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(folder) and "lab" not in frame.f_code.co_filename:
            called.append(frame.f_code.co_name)

    with no_launches():
        spec.op(**tensors, **inputs.options)
        sys.setprofile(note)
        try:
            spec.op(**tensors, **inputs.options)
        finally:
            sys.setprofile(None)
    assert not ON_EACH_CALL & set(called), called
    assert len(called) <= 30, called
