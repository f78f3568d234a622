"""What a training step needs of memory, found by making it on tensors without contents (`FakeTensorMode`).

Shapes, dtypes and lifetimes are those of the real step: its own forward, backward and update run, and nothing is
computed. So what is counted follows the code, whatever is added to it, and a model of any size is planned on any
machine in seconds.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from instructgpt.config import ModelConfig
from instructgpt.model.adapters import LoRA
from instructgpt.model.backend import Backend
from instructgpt.model.checkpointing import Checkpointing
from instructgpt.model.transformer import Transformer
from instructgpt.runtime import Precision
from instructgpt.training.adapter_file import AdapterRecord, BaseFormat, add_recorded
from instructgpt.training.optimizer import Optimizer, OptimizerConfig
from kernels.launch import building_for


class Meter(TorchDispatchMode):
    """Counts the bytes of the tensors that operators make inside, while they live: `held` now, `peak` at most."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {storage._cdata for storage in _storages((args, kwargs))}
        results = func(*args, **(kwargs or {}))
        for storage in _storages(results):
            if storage._cdata not in given:  # a view, or a result in place, is nothing new
                self._hold(storage)
        return results

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:
            self.held += storage.nbytes()
            self.peak = max(self.peak, self.held)
            self._known[key] = weakref.finalize(storage, self._release, key, storage.nbytes())

    def _release(self, key: int, size: int) -> None:
        self.held -= size
        del self._known[key]


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor)]


@dataclass(frozen=True)
class Plan:
    """A training step to be made: of what model, on what, how."""

    model: ModelConfig
    rows: int
    row_length: int
    optimizer: OptimizerConfig
    precision: Precision
    backend: Backend
    device: torch.device
    checkpointing: Checkpointing = "none"
    micro_batches: int = 1
    lora: LoRA | None = None
    """The adapter that is trained; None where the model itself is."""
    base_format: BaseFormat = "float"


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a training step holds."""

    parameters: int
    """float32 masters of half-precision parameters included, and weights of few bits."""
    optimizer: int
    gradients: int
    """Of all that is trained, when the backward is done."""
    activations: int
    """What the forward keeps for the backward, up to the last hidden states; weights cast by autocast included."""
    logits: int
    """What head and loss keep on top."""
    peak: int
    """Most at once: gradients come as activations go, and results that nobody keeps come on top."""


def step_memory(plan: Plan) -> StepMemory:
    """Bytes of one update, every token of its rows being a target.

    A plan for the kernels is counted on the CPU, with the launches of an H100, since they need no such device to say
    what they keep; any other plan, on its own device, which must be there.
    """
    with ExitStack() as stack:
        device = plan.device
        if plan.backend.name == "triton":
            device = torch.device("cpu")
            stack.enter_context(building_for(90))
        stack.enter_context(FakeTensorMode())
        meter = stack.enter_context(Meter())
        with device, _default_dtype(plan.precision.parameters):  # such tensors cannot be converted in place
            model = Transformer(plan.model, plan.backend)
            if plan.lora is not None:
                add_recorded(model, AdapterRecord(plan.lora, "", "", plan.base_format))
        model.checkpoint(plan.checkpointing)
        optimizer = Optimizer(
            dict(model.named_parameters()), plan.optimizer, plan.precision.autocast or plan.precision.parameters
        )
        parameters = {id(p): p for p in (*model.parameters(), *optimizer.masters.values())}.values()
        parameter_bytes = sum(tensor.nbytes for tensor in (*parameters, *model.buffers()))
        state_bytes = sum(tensor.nbytes for name, tensor in optimizer.state().items() if not name.startswith("master/"))
        ids = torch.zeros(plan.rows, plan.row_length, dtype=torch.long, device=device)
        targets, positions, documents = (ids.clone() for _ in range(3))
        places = torch.arange(ids.numel(), device=device)  # as many as there are targets
        before = meter.peak = meter.held
        for _ in range(min(plan.micro_batches, 2)):  # a second one finds gradients there, a third one no more of them
            start = meter.held
            with plan.precision.context(device):
                hidden = model.hidden(ids, positions, documents)  # (B, T, C)
                activations = meter.held - start
                loss = model.token_losses(hidden.flatten(0, 1)[places], targets.flatten()).sum()
                logits = meter.held - start - activations
            loss.backward()
            del hidden, loss
            optimizer.gather_gradients()
        gradients = meter.held - before
        optimizer.step(1.0)
        return StepMemory(parameter_bytes, state_bytes, gradients, activations, logits, meter.peak)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
