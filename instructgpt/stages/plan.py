"""What a training run needs of memory, which micro-batch fits, and how fast it will be; nothing is trained.

    python train.py plan --preset gpt2 --memory 24GB

Its flags are those of training. See `training/memory.py` for how the bytes are found.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import torch

from instructgpt.config import ModelConfig
from instructgpt.errors import UserError
from instructgpt.model.adapters import LoRA
from instructgpt.model.backend import Backend, resolve_backend, triton
from instructgpt.model.checkpointing import Checkpointing
from instructgpt.model.counts import count_parameters, recomputed_flops_per_token, training_flops_per_token
from instructgpt.runtime import Precision, resolve_device, resolve_precision
from instructgpt.settings import NonNegative, NonNegativeInt, PositiveInt, Settings
from instructgpt.sizes import parse_size, size_text
from instructgpt.stages.adapting import AdapterFlags
from instructgpt.stages.presets import recipe
from instructgpt.training.compiling import CompileFlag
from instructgpt.training.memory import Plan, StepMemory, step_memory
from instructgpt.training.metrics import measure_peak_flops
from instructgpt.training.optimizer import OptimizerConfig
from kernels import launch

_PROCESS = {"cuda": 0.8e9, "cpu": 0.4e9}
"""Bytes that a process takes besides its tensors: CUDA's context and libraries, or Python and PyTorch."""
_REACHED = {"cuda": (0.42, 0.5), "cpu": (0.48, 0.6)}
"""The share of the matrix rate that training steps reach, uncompiled and compiled: GPT-2's 124M on an H100, its form at
12.3M on two cores in float32 (`benchmarks.train_step`). Narrower models reach less."""


@dataclass(frozen=True)
class PlanConfig(Settings):
    """Says what training would need; every token of a row counts as a target."""

    memory: str = ""
    """What there is, such as 24GB or 24GiB; by default that of the device."""
    preset: str = "tiny"
    """Defaults of all other flags, by size of model."""
    rows: PositiveInt = 16
    """Rows of a batch, each of --row-length tokens."""
    row_length: NonNegativeInt = 0
    """Tokens of a row; 0 means the model's context."""
    micro_batches: PositiveInt = 1
    """Batches whose gradients are added before one update: from two on, gradients stay while activations come."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N. cuda can be planned where there is none."""
    dtype: str = "auto"
    """float32; bfloat16 or float16 (autocast); bfloat16-master (bfloat16 weights, float32 masters); auto picks."""
    backend: str = "auto"
    """naive, sdpa, triton, or auto: triton on CUDA, sdpa elsewhere."""
    checkpointing: Checkpointing = "none"
    """What the backward computes again instead of keeping it: none, blocks or selective."""
    compile: CompileFlag = "auto"
    """How training steps are compiled: it decides how fast they are expected to be. Bytes are those of `off`."""
    tflops: NonNegative = 0.0
    """The device's matrix rate in 10¹² FLOP/s, in the format trained in; 0 measures it, where the device is here."""
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterFlags = field(default_factory=AdapterFlags)
    update: OptimizerConfig = field(default_factory=OptimizerConfig)


def defaults(preset: str) -> PlanConfig:
    """The settings of pretraining, with the vocabulary of the preset's tokenizer."""
    recipes = recipe(preset)
    base = recipes.pretrain
    update = OptimizerConfig(**{one.name: getattr(base.fit, one.name) for one in fields(OptimizerConfig)})
    shape = replace(base.model, vocab_size=recipes.tokenizer.vocab_size)
    return PlanConfig(preset=preset, rows=base.rows, micro_batches=base.fit.micro_batches, model=shape, update=update)


def run(config: PlanConfig) -> None:
    """Prints the plan. Raises UserError where the memory is not enough for one row."""
    given = parse_size("--memory", config.memory) if config.memory else 0
    plan, is_here = planned(config)
    memory = given or _memory_of(plan.device, is_here)
    needed = plan.precision.parameters.itemsize * count_parameters(plan.model).total
    if needed > memory and plan.base_format == "float":
        raise UserError(
            f"--memory {config.memory or size_text(memory)} is less than the parameters alone take, {size_text(needed)}"
        )
    room = memory - _PROCESS.get(plan.device.type, 0)
    found = step_memory(plan)
    print(_described(plan))
    print(_table(plan, found))
    print(_expectation(plan, config.tflops * 1e12, is_here, config.compile != "off"))
    most = most_rows(lambda rows: step_memory(replace(plan, rows=rows)).peak, room, {plan.rows: found.peak})
    if most == 0:
        one = step_memory(replace(plan, rows=1)).peak
        raise UserError(
            f"--memory {size_text(memory)}: one row of {plan.row_length} tokens needs {size_text(one)}, the process "
            f"itself {size_text(memory - room)}; {_advice(replace(plan, rows=1))}"
        )
    print(f"  --rows {most} fit in {size_text(memory)}, of which the process itself takes {size_text(memory - room)}")
    if most < plan.rows:
        parts = -(-plan.rows * plan.micro_batches // most)
        print(f"  the same update in parts: --rows {most} --micro-batches {parts}; {_advice(plan)}")


def planned(config: PlanConfig) -> tuple[Plan, bool]:
    """The step to be planned, and whether its device is here. Errors: UserError."""
    if config.model.context < config.row_length:
        raise UserError(f"--row-length {config.row_length} is longer than the context, {config.model.context}")
    is_here = not config.device.startswith("cuda") or torch.cuda.is_available()
    device = resolve_device(config.device) if is_here else torch.device("cuda")
    precision, backend = _formats(config, device) if is_here else _formats_elsewhere(config)
    plan = Plan(
        config.model.resolved(), config.rows, config.row_length or config.model.context, config.update, precision,
        backend, device, config.checkpointing, config.micro_batches, config.adapter.lora, config.adapter.base_format,
    )  # fmt: skip
    return plan, is_here


def _formats(config: PlanConfig, device: torch.device) -> tuple[Precision, Backend]:
    return resolve_precision(config.dtype, device), resolve_backend(config.backend, device)


def _formats_elsewhere(config: PlanConfig) -> tuple[Precision, Backend]:
    """For a CUDA device that is not here: the kernels say what they keep without one, PyTorch's operators do not."""
    if config.backend not in ("auto", "triton") or not launch.AVAILABLE:
        raise UserError(
            f"--backend {config.backend} on cuda can be planned only where there is such a device, or Triton"
        )
    dtype = "bfloat16" if config.dtype == "auto" else config.dtype
    return resolve_precision(dtype, torch.device("cuda")), triton()


def _memory_of(device: torch.device, is_here: bool) -> int:
    if device.type == "cuda" and is_here:
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    raise UserError("--memory is missing: say how much there is, such as 24GB")


def most_rows(peak: Callable[[int], int], room: float, known: dict[int, int]) -> int:
    """The largest number of rows (to a hundredth) whose `peak(rows)` is within `room`; 0 where not even one is.

    known: peaks of some numbers of rows. Bytes grow in straight lines with the rows, where forward, backward or update
    needs most and where the head begins to go in chunks: the last two points foretell the next one.
    """
    known = {1: peak(1), **known}
    if known[1] > room:
        return 0
    while True:
        fits = max(rows for rows, size in known.items() if size <= room)
        fails = min((rows for rows, size in known.items() if size > room), default=16 * fits + 1)
        if fails in known and fails - fits <= max(1, fits // 100):
            return fits
        other = fails if fails in known else max((rows for rows in known if rows < fits), default=fits)
        slope = (known[other] - known[fits]) / (other - fits) if other != fits else 0.0
        guess = int(fits + (room - known[fits]) / slope) if slope > 0 else fails
        guess = min(max(guess, fits + 1), fails - 1)
        known[guess] = peak(guess)


def _described(plan: Plan) -> str:
    shape = plan.model
    beside = f" beside weights in {plan.base_format}" if plan.base_format != "float" else ""
    adapter = f", an adapter of rank {plan.lora.rank} on {', '.join(plan.lora.on)}{beside}" if plan.lora else ""
    return (
        f"{count_parameters(shape).total / 1e6:.1f}M parameters ({shape.layers} layers, {shape.width} wide, vocabulary "
        f"{shape.vocab_size:,}), {plan.rows} rows x {plan.row_length} tokens on {plan.device.type}, "
        f"{plan.precision.name}, backend {plan.backend.name}, --checkpointing {plan.checkpointing}{adapter}"
    )


def _table(plan: Plan, found: StepMemory) -> str:
    parts = {
        "parameters": (found.parameters, "float32 masters included" if plan.precision.parameters.itemsize < 4 else ""),
        "gradients": (found.gradients, "of the adapter" if plan.lora else ""),
        "optimizer": (found.optimizer, f"{plan.optimizer.optimizer}, {plan.optimizer.optimizer_state}"),
        "activations": (found.activations, "kept by the forward for the backward"),
        "logits": (
            found.logits,
            "head and loss, " + ("fused" if plan.backend.name == "triton" else "held whole if few"),
        ),
        "most at once": (found.peak, "gradients come as activations go"),
    }
    return "\n".join(f"  {name:<13} {size_text(size):>8}  {note}".rstrip() for name, (size, note) in parts.items())


def _expectation(plan: Plan, flops: float, is_here: bool, is_compiled: bool) -> str:
    if not (flops or is_here):
        return "  tokens/s: --tflops says how fast the device is (989 for an H100 in bfloat16)"
    measured = "" if flops else ", measured now"
    flops = flops or measure_peak_flops(plan.device, plan.precision)
    share = _REACHED.get(plan.device.type, (0.2, 0.2))[is_compiled]
    cost = training_flops_per_token(plan.model, plan.row_length, is_frozen=plan.lora is not None)
    if plan.checkpointing == "blocks":
        cost += recomputed_flops_per_token(plan.model, plan.row_length)
    return (
        f"  about {share * flops / cost:,.0f} tokens/s: {cost / 1e6:,.0f} MFLOP a token at {share:.0%}, as measured "
        f"{'compiled' if is_compiled else 'uncompiled'} on such devices, of {flops / 1e12:.3g} TFLOP/s{measured}"
    )


def _advice(plan: Plan) -> str:
    """The flags that would help most, with what each leaves of the peak."""
    others = {
        "--checkpointing selective": replace(plan, checkpointing="selective"),
        "--checkpointing blocks": replace(plan, checkpointing="blocks"),
        "--optimizer-state int8": replace(plan, optimizer=replace(plan.optimizer, optimizer_state="int8")),
        "--lora-rank 16": plan if plan.lora else replace(plan, lora=LoRA()),
    }
    tried = {flag: step_memory(other).peak for flag, other in others.items() if other != plan}
    told = [f"{flag} needs {size_text(peak)}" for flag, peak in tried.items()]
    return "of these rows " + ", ".join(told) if told else "a shorter --row-length, or a smaller model"
