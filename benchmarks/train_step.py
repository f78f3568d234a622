"""Training steps of one model on each backend: tokens a second and peak memory. `python -m benchmarks.train_step`.

On CUDA all three backends and GPT-2's 124M parameters; on a CPU `naive` and `sdpa`, and a small model. Each measurement
is a process of its own, and the backends take turns, so that a change of the machine's pace meets them all.
"""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from statistics import median

import torch

from instructgpt.config import model_preset
from instructgpt.data.batch import Batch
from instructgpt.flags import parse, run_main
from instructgpt.model.backend import resolve_backend
from instructgpt.model.transformer import Transformer
from instructgpt.objectives.lm import next_token_loss
from instructgpt.runtime import resolve_device, resolve_precision, seed_everything
from instructgpt.settings import FilePath, Settings
from instructgpt.strict_json import to_json, write_json
from instructgpt.training.optimizer import Optimizer, OptimizerConfig


@dataclass(frozen=True)
class TrainStepConfig(Settings):
    """Measures training steps on each backend."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: str = "auto"
    """As in training."""
    preset: str = ""
    """The model; gpt2 on CUDA and tiny elsewhere by default."""
    vocab_size: int = 0
    """50,304 on CUDA, 8,192 elsewhere by default."""
    rows: int = 0
    """Rows of a batch; 16 on CUDA, 4 elsewhere by default."""
    steps: int = 3
    """Steps measured in a process, after two to warm up."""
    repeats: int = 3
    """Processes for each backend."""
    json: FilePath = "auto"
    """The file to write; auto is benchmarks/results/DEVICE-train-step.json, empty is none."""
    one: str = ""
    """The backend that a child process is asked for."""


def filled_in(config: TrainStepConfig) -> TrainStepConfig:
    """With the defaults of the device."""
    device = resolve_device(config.device)
    is_gpu = device.type == "cuda"
    json = f"benchmarks/results/{device_name(device)}-train-step.json" if config.json == "auto" else config.json
    return replace(
        config,
        device=str(device),
        preset=config.preset or ("gpt2" if is_gpu else "tiny"),
        vocab_size=config.vocab_size or (50304 if is_gpu else 8192),
        rows=config.rows or (16 if is_gpu else 4),
        json=json,
    )


def device_name(device: torch.device) -> str:
    """`cpu`, or the GPU's name as part of a file name."""
    if device.type != "cuda":
        return device.type
    return torch.cuda.get_device_name(device).lower().replace(" ", "-")


def random_batch(config: TrainStepConfig, context: int) -> Batch:
    """Full rows of two documents each, every token a target, as in pretraining."""
    shape = (config.rows, context)
    ids, targets = torch.randint(config.vocab_size, (2, *shape))
    slots = torch.arange(context).expand(shape)
    documents = (slots >= context // 2).long()
    return Batch(ids, targets, torch.ones(shape, dtype=torch.bool), slots - documents * (context // 2), documents)


def measure_one(config: TrainStepConfig) -> dict[str, float]:
    """Median seconds of a step, and the peak memory of the process, of --one."""
    device = resolve_device(config.device)
    precision = resolve_precision(config.dtype, device)
    seed_everything(0)
    shape = replace(model_preset(config.preset), vocab_size=config.vocab_size, dropout=0.0)
    model = Transformer(shape, resolve_backend(config.one, device)).to(device, precision.parameters)
    optimizer = Optimizer(dict(model.named_parameters()), OptimizerConfig())
    batch = random_batch(config, shape.context).to(device)
    seconds = []
    for _ in range(2 + config.steps):
        start = time.perf_counter()
        with precision.context(device):
            loss = next_token_loss(model, batch)
        (loss.total / loss.weight).backward()
        optimizer.gather_gradients()
        optimizer.step(1.0)
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": median(seconds[2:]),
        "peak_megabytes": peak(device) / 1e6,
        "loss": float(loss.total.detach() / loss.weight),
    }


def peak(device: torch.device) -> int:
    """Bytes: of the GPU's memory, or resident in all; Linux counts kilobytes, macOS bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_child(config: TrainStepConfig, backend: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.train_step", "--one", backend, "--json", ""]
    for name in ("device", "dtype", "preset", "vocab_size", "rows", "steps"):
        command += ["--" + name.replace("_", "-"), str(getattr(config, name))]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def measure(config: TrainStepConfig) -> int:
    config = filled_in(config)
    if config.one:
        print(to_json(measure_one(config)))
        return 0
    device = resolve_device(config.device)
    backends = ("naive", "sdpa", "triton") if device.type == "cuda" else ("naive", "sdpa")
    runs: dict[str, list[dict[str, float]]] = {backend: [] for backend in backends}
    for _ in range(config.repeats):
        for backend in backends:
            runs[backend].append(in_child(config, backend))
    tokens = config.rows * model_preset(config.preset).context
    results = {}
    for backend in backends:
        middle = {key: median(run[key] for run in runs[backend]) for key in runs[backend][0]}
        results[backend] = {"tokens_per_second": tokens / middle["seconds"], **middle}
        print(
            f"{backend:<7} {results[backend]['tokens_per_second']:>12,.0f} tokens/s   "
            f"{middle['peak_megabytes']:>9,.0f} MB   loss {middle['loss']:.4f}",
            flush=True,
        )
    if config.json:
        machine = {
            "device": device_name(device), "torch": torch.__version__, "python": platform.python_version(),
            "threads": torch.get_num_threads(), "precision": resolve_precision(config.dtype, device).name,
            "preset": config.preset, "vocab_size": config.vocab_size, "rows": config.rows, "tokens_in_a_step": tokens,
        }  # fmt: skip
        write_json(config.json, {**machine, "backends": results})
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: measure(parse(TrainStepConfig, sys.argv[1:], "benchmarks.train_step"))))
