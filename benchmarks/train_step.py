"""Training steps of one model in every mode, beside its peers: tokens a second, MFU, peak memory.

`python -m benchmarks.train_step`. On CUDA GPT-2's 124M parameters, on a CPU the same form at 12.3M; `--shape tiny` is
what `make train` trains. Ours is the product's own loop; the peers are GPT-2 in plain PyTorch, as nanoGPT writes it,
and `transformers`, each as it is and compiled. Every measurement is a process of its own, and they take turns. MFU is
the share of a large matrix product's rate in the same number format, measured in the same run.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.machine import describe, matrix_rate, publish, results_file
from benchmarks.steps import StepCase, has_peers, prepare, shape_named
from benchmarks.workers import Figures, Prepared, chosen, in_turn, middle
from instructgpt.flags import parse, run_main
from instructgpt.model.counts import training_flops_per_token
from instructgpt.runtime import resolve_device, resolve_precision
from instructgpt.settings import FilePath, NonNegative, NonNegativeInt, PositiveInt, Settings
from instructgpt.strict_json import write_json
from instructgpt.training.compiling import CompileMode


@dataclass(frozen=True)
class TrainStepConfig(Settings):
    """Measures training steps in every mode, and those of the peers."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtypes: tuple[str, ...] = ()
    """Number formats, as --dtype of training; by default auto, and on a CPU with bfloat16 float32 too."""
    shape: str = ""
    """The model: 12m (GPT-2's form at 12.3M), or a preset; gpt2 on CUDA and 12m elsewhere by default."""
    rows: NonNegativeInt = 0
    """Rows of a batch; 32 on CUDA, 16 elsewhere, and 6 for tiny, by default."""
    steps: PositiveInt = 3
    """Steps of a measurement."""
    rounds: PositiveInt = 3
    """Measurements of each, which take turns; the median is shown."""
    only: tuple[str, ...] = ()
    """Names of the table's rows to measure; all by default."""
    seconds: NonNegative = 0.0
    """How long it may take: what is not prepared by three quarters of it is left out. 0 sets no limit."""
    json: FilePath = "auto"
    """The file to write; auto is benchmarks/results/DEVICE-train-step.json, empty is none."""


_MODES: tuple[CompileMode, ...] = ("step", "off", "blocks")
"""In the order of their worth, for where time is short."""


def filled_in(config: TrainStepConfig) -> TrainStepConfig:
    """With the defaults of the device."""
    device = resolve_device(config.device)
    is_gpu = device.type == "cuda"
    auto = resolve_precision("auto", device).autocast
    dtypes = ("auto",) if is_gpu or auto is None else ("bfloat16", "float32")
    shape = config.shape or ("gpt2" if is_gpu else "12m")
    return replace(
        config,
        device=str(device),
        dtypes=config.dtypes or dtypes,
        shape=shape,
        rows=config.rows or (6 if shape == "tiny" else 32 if is_gpu else 16),
        json=results_file(config.json, device, "train-step" if shape != "tiny" else "train-step-tiny"),
    )


def cases(config: TrainStepConfig) -> dict[str, StepCase]:
    """What is measured, by the name of its row."""
    is_gpu = torch.device(config.device).type == "cuda"
    found: dict[str, StepCase] = {}
    for dtype in config.dtypes:
        optimizer = "muon" if config.shape in ("tiny", "small") else "adamw"
        base = StepCase(config.shape, config.rows, config.device, dtype, optimizer=optimizer, steps=config.steps)
        named = {
            f"{backend}, {mode}": replace(base, backend=backend, compile=mode)
            for backend in (("triton", "sdpa") if is_gpu else ("sdpa",))
            for mode in _MODES
        }
        if has_peers(shape_named(config.shape)):
            named |= {
                f"{of}, {said}": replace(base, of=of, compile=mode)
                for of in ("plain", "transformers")
                for said, mode in (("eager", "off"), ("compiled", "step"))
            }
        found |= {f"{dtype}: {name}" if len(config.dtypes) > 1 else name: case for name, case in named.items()}
    return chosen(found, config.only)


def measure(config: TrainStepConfig) -> int:
    config = filled_in(config)
    device = torch.device(config.device)
    shape = shape_named(config.shape)
    works = cases(config)
    rates = {dtype: matrix_rate(device, dtype) for dtype in config.dtypes}
    for dtype, rate in rates.items():
        print(f"{dtype}: a large matrix product makes {rate / 1e12:.3g} TFLOP/s", flush=True)
    # A GPU's machine has the cores to compile for several at once.
    at_once = 4 if device.type == "cuda" else 1
    works_to_do = {name: Prepared(prepare, (case,)) for name, case in works.items()}

    def document(found: dict[str, list[Figures] | str]) -> dict[str, Any]:
        flops = training_flops_per_token(shape, shape.context)
        results: dict[str, Any] = {}
        for name, figures in found.items():
            if not figures or isinstance(figures, str):
                results[name] = {"failed": figures or "not measured"}
                continue
            mean = middle(figures)
            mfu = mean["tokens_per_second"] * flops / rates[works[name].dtype]
            results[name] = {**mean, "mfu": mfu, "each": [each["tokens_per_second"] for each in figures]}
        return {
            **describe(device), "shape": config.shape, "rows": config.rows, "context": shape.context,
            "flops_per_token": flops, "matrix_flops_per_second": rates, "results": results,
        }  # fmt: skip

    def keep(found: dict[str, list[Figures] | str]) -> None:
        if config.json:
            write_json(config.json, document(found))

    found = in_turn(works_to_do, config.rounds, at_once, seconds=config.seconds or math.inf, after_round=keep)
    measured = document(found)
    for name, mean in measured["results"].items():
        if "failed" not in mean:
            speed = f"{mean['tokens_per_second']:>10,.0f} tokens/s  MFU {mean['mfu']:>4.0%}  "
            speed += f"{mean['peak_megabytes']:>8,.0f} MB"
            print(f"{name:<34} {speed}  warm-up {mean['warm_up_seconds']:>4.0f} s  loss {mean['loss']:.3f}", flush=True)
    publish(measured, config.json)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: measure(parse(TrainStepConfig, sys.argv[1:], "benchmarks.train_step"))))
