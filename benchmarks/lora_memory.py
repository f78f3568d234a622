"""What adapters save of memory: a training step by the planner, and the peak of processes that run DPO and GRPO.

A model of 86M parameters with random weights is large enough for its copies to be seen in a process's peak. Tuned whole
it is there once as the policy, once as the reference, and once each as gradients and the two moments of AdamW. With an
adapter it is there once.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.workers import Figures, Measure, Prepared, alone
from instructgpt.config import ModelConfig, model_preset
from instructgpt.model.adapters import LoRA
from instructgpt.model.backend import sdpa
from instructgpt.model.transformer import Transformer
from instructgpt.runtime import peak_memory, resolve_precision
from instructgpt.stages import dpo, grpo
from instructgpt.stages.adapting import AdapterFlags
from instructgpt.stages.presets import recipe
from instructgpt.training.checkpoint import RunDirectory
from instructgpt.training.memory import Plan, step_memory
from instructgpt.training.optimizer import OptimizerConfig

_CPU = torch.device("cpu")
_SHAPE = ModelConfig(context=256, layers=12, width=768, heads=12, kv_heads=4)
_WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "rank 16": {"lora_rank": 16},
    "rank 16, int8": {"lora_rank": 16, "base_format": "int8"},
    "rank 16, int4": {"lora_rank": 16, "base_format": "int4"},
}


def planned_memory() -> list[dict[str, Any]]:
    """Bytes of a step of SmolLM2's shape on a CPU: 4 rows of 256 tokens, float32, AdamW."""
    shape = replace(
        model_preset("llama-124m"), vocab_size=49152, context=256, layers=30, width=576, heads=9, kv_heads=3,
        mlp_width=1536,
    )  # fmt: skip
    whole = Plan(shape, 4, 256, OptimizerConfig(), resolve_precision("float32", _CPU), sdpa(), _CPU)
    rows = []
    for name, flags in _WAYS.items():
        lora = LoRA(flags["lora_rank"]) if flags else None
        found = step_memory(replace(whole, lora=lora, base_format=flags.get("base_format", "float")))
        rows.append({"way": name, **vars(found)})
        print(f"planned, {name}: " + ", ".join(f"{key} {value / 1e6:,.0f} MB" for key, value in vars(found).items()))
    return rows


def measured_memory(out: Path, base: str) -> list[dict[str, Any]]:
    """Peaks of processes that make two updates of DPO and of GRPO; base: a run whose tokenizer is used."""
    init = out / "large"
    _write_random(init, base)
    weights = (init / "model.safetensors").stat().st_size
    rows = []
    for stage in ("dpo", "grpo"):
        for name, flags in _WAYS.items():
            figures = alone(Prepared(_prepare, (stage, str(init), str(out / "large-tuned"), json.dumps(flags))))
            copies = figures["peak"] / weights
            rows.append({"stage": stage, "way": name, "model": weights, **figures, "in_copies": copies})
            print(
                f"{stage}, {name}: {figures['peak'] / 1e6:,.0f} MB beyond the process, {copies:.2f} copies of the model"
            )
    return rows


def _write_random(directory: Path, base: str) -> None:
    _, tokenizer = RunDirectory(base).describe()
    shape = replace(_SHAPE, vocab_size=tokenizer.vocab_size).resolved()
    torch.manual_seed(0)
    run = RunDirectory.open(directory, overwrite=True)
    run.write_config("import", shape, tokenizer, {})
    run.save_model(Transformer(shape))


def _peak() -> int:
    """Most bytes that this program has held; on Linux without those of the measuring process, which has held large
    models: this one was a copy of it before it began, and `ru_maxrss` keeps that peak."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return peak_memory(_CPU)
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _prepare(stage: str, init: str, out: str, flags: str) -> Measure:
    """A process's part. What it holds before is subtracted: Python, PyTorch and our modules."""
    before = _peak()
    settings = getattr(recipe("tiny"), stage)
    adapter = AdapterFlags(**json.loads(flags))
    fit = replace(settings.fit, max_steps=2, optimizer="adamw", eval_every=0, save_every=0)
    small: dict[str, Any] = {"prompts": 2, "row_length": 128, "checkpointing": "blocks"}
    if stage == "dpo":
        small["val_pairs"] = 2
    else:
        small |= {"answers": 2, "minibatches": 1, "epochs": 2, "max_new_tokens": 8, "val_examples": 2}
        small |= {"reward": ("world",)}
    config = replace(
        settings, data=("world",), init=init, out=out, overwrite=True, device="cpu", dtype="float32", compile="off",
        adapter=adapter, fit=fit, **small,
    )  # fmt: skip

    def measure() -> Figures:
        {"dpo": dpo, "grpo": grpo}[stage].run(config)
        return {"peak": float(_peak() - before)}

    return measure
