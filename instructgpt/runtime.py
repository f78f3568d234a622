"""The machine under the model: device, number format, seed, ranks."""

from __future__ import annotations

import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from instructgpt.errors import UserError, suggestion

try:
    import resource
except ImportError:  # Windows
    resource = None

DTYPES = ("auto", "float32", "bfloat16", "float16", "bfloat16-master")
_ELEMENTS_AT_ONCE = 1 << 24
"""What ranks sum in one message: a message's own cost is that of thousands of elements, and the copy takes memory."""
DEVICES = ("auto", "cpu", "cuda", "mps")


def resolve_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one, else the CPU. `cuda:1` names a card. Errors: `UserError`."""
    kind = name.split(":")[0]
    if kind not in DEVICES:
        raise UserError(f"--device {name} is unknown{suggestion(kind, DEVICES)}")
    if kind == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no CUDA device here; use --device cpu, or install a CUDA build")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: PyTorch sees no Apple GPU here; use --device cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name} is not a device; write cpu, cuda or cuda:0") from None
    if kind == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA device(s), counted from 0")
    return device


@dataclass(frozen=True)
class Precision:
    """Which number formats a run computes in."""

    parameters: torch.dtype
    """What the model's own weights are held in."""
    autocast: torch.dtype | None
    """What matrix products are cast to; None when they run in `parameters`."""
    scale_loss: bool
    """float16's small range needs the loss scaled up so that gradients do not vanish (Micikevicius et al. 2018)."""

    @property
    def name(self) -> str:
        product = str(self.autocast or self.parameters).removeprefix("torch.")
        return product + (" with float32 master weights" if self.parameters == torch.bfloat16 else "")

    def context(self, device: torch.device) -> torch.autocast:
        """The autocast context to run forward passes in."""
        return torch.autocast(device.type, dtype=self.autocast or torch.float32, enabled=self.autocast is not None)


def _has_fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # On a CPU without tiles for it, it is emulated and several times slower than float32, or, with AVX512-BF16, half as
    # fast: 83 against 153 GFLOP/s a core, measured on an Intel Xeon.
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


def resolve_precision(name: str, device: torch.device) -> Precision:
    """`auto` takes bfloat16 autocast where the hardware multiplies it, else float32. Errors: `UserError`."""
    if name not in DTYPES:
        raise UserError(f"--dtype {name} is unknown{suggestion(name, DTYPES)}")
    if name == "auto":
        name = "bfloat16" if _has_fast_bfloat16(device) else "float32"
    if name == "float16" and device.type == "cpu":
        raise UserError("--dtype float16 needs a GPU; on a CPU use float32 or bfloat16")
    return {
        "float32": Precision(torch.float32, None, False),
        "bfloat16": Precision(torch.float32, torch.bfloat16, False),
        "float16": Precision(torch.float32, torch.float16, True),
        "bfloat16-master": Precision(torch.bfloat16, None, False),
    }[name]


def cores(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Processor cores that this process may use: those it is bound to, or what its container is given, if less."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, quota_file.read_text().split())  # microseconds; without a limit, "max 100000"
    except (OSError, ValueError):
        return bound
    return max(1, min(bound, -(-quota // period)))


def choose_threads() -> None:
    """No more threads than cores: PyTorch counts the machine's, of which a container may be given two, and threads
    without a core of their own wait for one another. OMP_NUM_THREADS says otherwise."""
    if not os.environ.get("OMP_NUM_THREADS") and torch.get_num_threads() > cores():
        torch.set_num_threads(cores())


def threads_told() -> str:
    """How many threads compute, and what those do that wait."""
    waiting = "sleep" if os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE" else "spin"
    threads = torch.get_num_threads()
    return "1 thread" if threads == 1 else f"{threads} threads that {waiting} while they wait"


def seed_everything(seed: int) -> None:
    """Seeds torch on every device, and Python. Data is drawn by generators of its own, from the same seed."""
    random.seed(seed)
    torch.manual_seed(seed)


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has held at once: on a CUDA device, else in main memory; 0 where nobody counts."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return 0
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024  # Linux counts kilobytes


@dataclass(frozen=True)
class Ranks:
    """This process among those of a data-parallel run (torchrun's environment); one of one otherwise."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` summed over all ranks, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def sum_all(self, tensors: list[torch.Tensor]) -> None:
        """Each of these tensors summed over all ranks, in place; small ones travel together."""
        while self.size > 1 and tensors:
            count = 1
            while count < len(tensors) and sum(t.numel() for t in tensors[: count + 1]) <= _ELEMENTS_AT_ONCE:
                count += 1
            bucket, tensors = tensors[:count], tensors[count:]
            flat = self.sum(torch.cat([tensor.flatten() for tensor in bucket]))
            for tensor, summed in zip(bucket, flat.split([tensor.numel() for tensor in bucket])):
                tensor.copy_(summed.view_as(tensor))

    def wait(self) -> None:
        """Returns when all ranks have come here."""
        if self.size > 1:
            torch.distributed.barrier()


def _counted(name: str, value: str) -> int | None:
    """A whole number from the environment; None when it is empty."""
    if value and not value.isdecimal():
        raise UserError(f"{name} is {value!r}, which is no whole number: start with torchrun, or unset it")
    return int(value) if value else None


def join_ranks(device: torch.device) -> Ranks:
    """Joins the process group that torchrun announced in the environment, if it did.

    Raises UserError when only a part of that is there, or when it is none.
    """
    announced = {name: os.environ.get(name, "").strip() for name in ("WORLD_SIZE", "RANK")}
    size, rank = (_counted(name, value) for name, value in announced.items())
    if size is None or size <= 1:
        return Ranks()
    lacking = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name, "").strip()]
    if lacking:
        raise UserError(
            f"WORLD_SIZE is {size}, but {', '.join(lacking)} is not set: start with torchrun, or unset WORLD_SIZE"
        )
    if rank is not None and rank >= size:
        raise UserError(f"RANK is {rank} of WORLD_SIZE {size}: ranks count from 0; start with torchrun")
    _counted("MASTER_PORT", os.environ["MASTER_PORT"])
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Ranks(torch.distributed.get_rank(), size)
