"""Compiled training steps: what is compiled, when it pays, and what happens where it cannot be done.

off      every operator is called by itself: the path to read, and the one that generation and validation always take
blocks   one Block's forward and backward are compiled, for all of them: they are alike
step     the whole trunk is one graph, the head with its loss another, for the number of targets changes with the batch

Compiling fuses what stands between matrix products. Seconds of CPU for a step of `tiny` (SFT, 6 rows of 256, one
thread, float32, AVX512): 0.166 eager, 0.145 by blocks, after 20 s of compiling; the whole step was no faster than its
blocks and took three times as long to compile. On a GPU it is also that a graph needs no Python between its kernels.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from instructgpt.errors import UserError
from instructgpt.model.attention import Scope
from instructgpt.model.backend import logits_then_losses
from instructgpt.model.transformer import Block, Compiled, Transformer
from instructgpt.runtime import Precision

CompileMode = Literal["off", "blocks", "step"]
CompileFlag = Literal["auto", "off", "blocks", "step"]

_PAYS_FROM = {"cpu": 3e13, "cuda": 2e15}
"""FLOPs of a run from which `auto` compiles: some five minutes on two slow cores, of which blocks save more than they
take to compile; half a minute on an H100. Counted, not measured, so that the same command computes the same each time.
"""
_SOME_ROWS = 5
"""What is compiled with where any number of rows is to do. Not 1, for which compilers make code of its own."""


_LOGITS_SHARE = 0.15
"""Of a GPU's memory, what all logits of a batch and their gradient may take."""


class Choice(NamedTuple):
    """Which mode, and why."""

    mode: CompileMode
    reason: str


@dataclass(frozen=True)
class Workload:
    """What a stage trains on: the shapes that are compiled for, and how much there is to gain."""

    rows: int
    """Rows of a batch; 0 where their number changes with the batch."""
    row_length: int
    flops: float
    """Of the whole run; 0 where nobody knows, for it ends by the clock."""


def choose(asked: CompileFlag, work: Workload, device: torch.device, before: CompileMode | None = None) -> Choice:
    """The mode to use. before: the one that a run which is gone on with has used; another would give other last bits.

    Raises UserError for `step` where rows vary.
    """
    choice = _choose(asked, work, device, before)
    if before in (None, choice.mode):
        return choice
    return Choice(choice.mode, f"{choice.reason}; the run began with {before}, from which this differs by rounding")


def _choose(asked: CompileFlag, work: Workload, device: torch.device, before: CompileMode | None) -> Choice:
    if asked == "step" and not work.rows:
        raise UserError(
            "--compile step needs batches of one shape, and here their number of rows varies: use --compile blocks"
        )
    obstacle = _obstacle(device)
    if asked != "auto":
        return Choice("off", obstacle) if asked != "off" and obstacle else Choice(asked, "as asked for")
    if before is not None:
        return Choice("off", obstacle) if before != "off" and obstacle else Choice(before, "as the run began")
    if device.type not in _PAYS_FROM:
        return Choice("off", f"nothing is known of compiling for {device.type}")
    if work.flops < _PAYS_FROM[device.type]:
        length = f"{work.flops:.0e} FLOPs" if work.flops else "a run by the clock"
        return Choice("off", f"{length} would not pay for it")
    if obstacle:
        return Choice("off", obstacle)
    if device.type == "cuda" and work.rows:
        return Choice("step", "a long run on a GPU, batches of one shape")
    return Choice("blocks", f"a long run on a {'GPU' if device.type == 'cuda' else 'CPU'}")


def _obstacle(device: torch.device) -> str:
    """Why nothing can be compiled for `device`, as far as can be told beforehand; empty where nothing is known."""
    compiler = os.environ.get("CXX") or ("clang++" if torch.backends.mps.is_built() else "g++")
    if device.type == "cpu" and shutil.which(compiler.split()[0]) is None:
        return f"there is no C++ compiler {compiler} here (CXX names another one)"
    return ""


class Prepared(NamedTuple):
    mode: CompileMode
    """What is used."""
    seconds: float
    """What compiling, or trying it, took."""
    failure: str
    """Why it is not what was chosen; empty where it is."""


def prepare(
    model: Transformer, mode: CompileMode, work: Workload, device: torch.device, precision: Precision,
    backend: str = "inductor",
) -> Prepared:  # fmt: skip
    """Compiles the steps that train the model, which run so from now on: tried on random tokens, which leave nothing.

    Where that fails nothing has changed but the time, and the reason is told. backend: `torch.compile`'s.
    """
    if mode == "off":
        return Prepared("off", 0.0, "")
    began = time.monotonic()
    try:
        model.compiled = _compiled(model, mode, backend, work, device)
        _try(model, work, device, precision)
    except Exception as error:  # whatever a compiler may raise: the run can do without it
        model.compiled = Compiled()
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]  # the first says who raised it
        return Prepared("off", time.monotonic() - began, " ".join(lines[:2])[:200] or type(error).__name__)
    return Prepared(mode, time.monotonic() - began, "")


def told(choice: Choice, prepared: Prepared) -> str:
    """One line: what is used, and why."""
    if prepared.failure:
        return f"compile {choice.mode} failed, and steps run uncompiled: {prepared.failure}"
    took = f" in {prepared.seconds:.0f} s" if prepared.mode != "off" else ""
    return f"compile {prepared.mode}{took}: {choice.reason}"


def _compiled(
    model: Transformer, mode: CompileMode, backend: str, work: Workload, device: torch.device
) -> Compiled:  # fmt: skip
    if mode == "blocks":
        return Compiled(block=_CompiledCall(Block.forward, backend, is_first_dynamic=work.rows == 0))
    if mode == "step":
        losses = _CompiledCall(_head_of(model, work, device), backend, is_first_dynamic=True)
        return Compiled(trunk=_CompiledCall(Transformer.trunk, backend), losses=losses)
    return Compiled()


def _head_of(model: Transformer, work: Workload, device: torch.device) -> Callable[..., Tensor]:
    """The head and its loss as it is to be compiled: on a GPU by way of all logits, as long as they take little of its
    memory, which made 438,000 tokens/s of 399,000 (GPT-2 on an H100) for 3 GB."""
    if device.type != "cuda":
        return model.backend.linear_cross_entropy
    bytes = 4 * work.rows * work.row_length * model.config.vocab_size  # in half precision, with their gradient
    fits = bytes < _LOGITS_SHARE * torch.cuda.get_device_properties(device).total_memory
    return logits_then_losses if fits else model.backend.linear_cross_entropy


class _CompiledCall:
    """A function as one compiled graph; where the first dimension of its tensors changes, one for any size of it."""

    def __init__(self, function: Callable[..., Tensor], backend: str, is_first_dynamic: bool = False):
        self._call = torch.compile(function, backend=backend, fullgraph=True)
        self._is_first_dynamic = is_first_dynamic

    def __call__(self, *inputs: Any) -> Tensor:
        if self._is_first_dynamic:
            for tensor in _tensors(inputs):
                if tensor.ndim and not isinstance(tensor, nn.Parameter):
                    torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return self._call(*inputs)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among the inputs of a block or a loss, those of its scope included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple):
            yield from _tensors(value)
        elif isinstance(value, Scope):
            yield from _tensors((value.visibility, value.rotation, value.positions))


def _try(model: Transformer, work: Workload, device: torch.device, precision: Precision) -> None:
    """A forward and a backward on rows of random tokens, two documents in each. Gradients and random state are as
    before; there are none yet."""
    rows = work.rows or _SOME_ROWS
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (rows, work.row_length), generator=generator).to(device)
    slots = torch.arange(work.row_length, device=device).expand(rows, -1)
    documents = (slots >= work.row_length // 2).long()
    positions = slots - documents * (work.row_length // 2)
    was_training = model.training
    with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type=device.type):
        model.train()
        try:
            with precision.context(device), torch.enable_grad():
                hidden = model.hidden(ids, positions, documents)
                loss = model.token_losses(hidden[:, 1:].flatten(0, 1), ids[:, 1:].flatten()).sum()
            loss.backward()
        finally:
            model.train(was_training)
            for parameter in model.parameters():
                parameter.grad = None
    if device.type == "cuda":
        torch.cuda.synchronize(device)
