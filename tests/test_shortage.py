from __future__ import annotations

import numpy as np
import pytest
import torch

from instructgpt.flags import run_main
from instructgpt.shortage import shortage

CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.20 GiB is "
    "free. Of the allocated memory 70.00 GiB is allocated by PyTorch, and 7.00 GiB is reserved but unallocated."
)
ALLOWED = CUDA.replace("1.20 GiB is free. ", "78.00 GiB is free. 7.91 GiB allowed; ")
MPS = (
    "MPS backend out of memory (MPS allocated: 8.9 GB, other allocations: 1 MB, max allowed: 9.07 GB). "
    "Tried to allocate 2.00 GB on private pool."
)
WINDOWS = (
    "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."
)


GPU, MAIN = "out of memory on the GPU", "out of memory in main memory"
CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"


@pytest.mark.parametrize(
    ("error", "told"),
    [(torch.OutOfMemoryError(CUDA), f"{GPU}: 2.15 GB more were asked for, 1.29 GB were free of 84.9 GB"),
     (torch.OutOfMemoryError(ALLOWED), "2.15 GB more were asked for, 8.49 GB are allowed, 83.8 GB were free of"),
     (RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"), GPU),
     (RuntimeError(CUBLAS), GPU),
     (RuntimeError(MPS), f"{GPU}: 2.00 GB more were asked for, 9.07 GB are allowed"),
     (RuntimeError(WINDOWS), f"{MAIN}: 8 B more were asked for"),
     (MemoryError(), MAIN)],
)  # fmt: skip
def test_the_numbers(error: BaseException, told: str) -> None:
    assert told in shortage(error) and "\n" not in shortage(error)


@pytest.mark.parametrize("allocate", [lambda: torch.empty(1 << 60), lambda: np.empty(1 << 59)])
def test_allocators_of_this_machine(allocate) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate()
    told = shortage(caught.value)
    assert "were asked for" in told and "were free" in told


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory"), KeyboardInterrupt()])
def test_other_errors_are_none(error: BaseException) -> None:
    assert shortage(error) == ""


def test_any_command_tells_it_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(lambda: torch.empty(1 << 60) and None) == 2
    assert capsys.readouterr().err.startswith("error: out of memory in main memory: ")
