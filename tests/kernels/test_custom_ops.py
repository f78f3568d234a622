"""Every op lives with the rest of PyTorch: opcheck, torch.compile, autocast, activation checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from kernels.lab.example import call, differentiable, draw_cotangents, gradients_of
from kernels.lab.find import Kernel, op_name, package_kernels
from kernels.lab.spec import Inputs, Spec
from kernels.launch import INTERPRETED

KERNELS = [pytest.param(kernel, id=op_name(kernel)) for kernel in package_kernels()]
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of overflow in the interpreter


def few(examples: int) -> Callable[[Any], Any]:
    """A handful of cases: what is tested here does not depend on sizes."""
    return settings(max_examples=examples, phases=(Phase.generate,), deadline=None)


def draw(spec: Spec, data: st.DataObject) -> Inputs:
    """Finite inputs in float32, results without NaN: opcheck and torch.compile compare, and NaN equals nothing."""
    inputs = spec.make(data.draw(spec.cases))
    for name, t in inputs.tensors.items():
        inputs.tensors[name] = (t.float() if t.is_floating_point() else t).to(DEVICE)
    assume(all(t.isfinite().all() for t in inputs.tensors.values()))
    assume(not any(y.isnan().any() for y in call(spec, spec.reference, inputs.tensors, inputs).values()))
    return inputs


def results(spec: Spec, function: Callable[..., Any], inputs: Inputs) -> dict[str, Tensor | None]:
    """Outputs and gradients."""
    leaves = differentiable(inputs, {name: t.clone() for name, t in inputs.tensors.items()})
    outputs = call(spec, function, leaves, inputs)
    cotangents = {name: t.to(DEVICE) for name, t in draw_cotangents(outputs, {}, "contiguous").items()}
    gradients = gradients_of(outputs, cotangents, leaves, inputs)
    return {name: t if t is None else t.detach() for name, t in {**outputs, **gradients}.items()}


def assert_same(got: dict[str, Tensor | None], right: dict[str, Tensor | None]) -> None:
    assert got.keys() == right.keys()
    for name, t in right.items():
        torch.testing.assert_close(got[name], t, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


class Recorder(TorchFunctionMode):
    """Notes which custom ops are called, and with what."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, torch._ops.OpOverload) and func.namespace not in ("aten", "prim"):
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kernel", KERNELS)
@few(2)
@given(data=st.data())
def test_opcheck(kernel: Kernel, data: st.DataObject):
    """Schema, autograd registration, fake results, and tracing with shapes that vary."""
    spec = kernel.spec
    inputs = draw(spec, data)
    leaves = differentiable(inputs, inputs.tensors)
    with Recorder() as recorder:
        call(spec, spec.op, leaves, inputs)
    assert recorder.calls, "the op is no custom op"
    for op, args, kwargs in recorder.calls:
        torch.library.opcheck(op, args, kwargs)


@pytest.mark.parametrize("kernel", KERNELS)
@few(2)
@given(data=st.data())
def test_compiles_as_one_graph(kernel: Kernel, data: st.DataObject):
    spec = kernel.spec
    inputs = draw(spec, data)
    torch._dynamo.reset()
    compiled = torch.compile(spec.op, fullgraph=True, backend="aot_eager")
    assert_same(results(spec, compiled, inputs), results(spec, spec.op, inputs))


@pytest.mark.parametrize("kernel", KERNELS)
@few(2)
@given(data=st.data())
def test_autocast_and_checkpointing_change_nothing(kernel: Kernel, data: st.DataObject):
    spec = kernel.spec
    inputs = draw(spec, data)
    right = results(spec, spec.op, inputs)

    def recomputed(**arguments: Any) -> Any:
        return checkpoint(spec.op, use_reentrant=False, **arguments)

    assert_same(results(spec, recomputed, inputs), right)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert_same(results(spec, spec.op, inputs), right)
