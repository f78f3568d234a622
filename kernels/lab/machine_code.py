"""What a compiled kernel uses of a GPU, read from its machine code: registers, memory, and which instructions."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Resources:
    """Of one program (thread block), and counts of instructions as they stand in the code."""

    registers: int
    """A thread's."""
    spill_bytes: int
    """A thread's memory for what did not fit into registers."""
    shared_bytes: int
    tensor_instructions: int
    """Matrix products on tensor cores."""
    loads: int
    """From global memory, asynchronous copies included."""
    wide_loads: int
    """Those that bring at least 16 bytes a thread, or whole tiles."""
    stores: int
    wide_stores: int
    instructions: int


def resources(kernel: Any) -> Resources:
    """Of a `triton.compiler.CompiledKernel` for an NVIDIA or AMD GPU."""
    read = _nvidia if "cubin" in kernel.asm else _amd
    return read(kernel)


# Tensor cores: HMMA (sm_80), HGMMA (sm_90), UTCHMMA (sm_100) and their kin for other types (I, Q, B, D, O).
_NVIDIA = {
    "tensor_instructions": r"(?:UTC)?[BDHIOQ]G?MMA\b",
    "loads": r"(?:LDG|LDGSTS|UTMALDG|UBLKCP)\b",
    "wide_loads": r"(?:LDG|LDGSTS)\b\S*\.(?:128|256)\b|(?:UTMALDG|UBLKCP)\b",
    "stores": r"(?:STG|UTMASTG)\b",
    "wide_stores": r"STG\b\S*\.(?:128|256)\b|UTMASTG\b",
    "instructions": r"[A-Z]",
}


def _nvidia(kernel: Any) -> Resources:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _output(knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
        code = _output(knobs.nvidia.nvdisasm.path, "-c", file.name)
    found = {name: int(number) for name, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    # An instruction: its address in a comment, then perhaps a predicate (@!P0), then its name.
    names = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?\s*([A-Z][\w.]*)", code, re.MULTILINE)
    counts = {key: sum(re.match(pattern, name) is not None for name in names) for key, pattern in _NVIDIA.items()}
    return Resources(found["REG"], found["STACK"] + found["LOCAL"], kernel.metadata.shared, **counts)


_AMD = {
    "tensor_instructions": r"v_mfma_",
    "loads": r"(?:global|buffer)_load_",
    "wide_loads": r"(?:global|buffer)_load_\w*dwordx4\b",
    "stores": r"(?:global|buffer)_store_",
    "wide_stores": r"(?:global|buffer)_store_\w*dwordx4\b",
    "instructions": r"[a-z]\w+_",
}


def _amd(kernel: Any) -> Resources:
    code = kernel.asm["amdgcn"]
    used = {key: int(number) for key, number in re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s*(\d+)", code)}
    names = re.findall(r"^\t([a-z]\w+)", code, re.MULTILINE)
    counts = {key: sum(re.match(pattern, name) is not None for name in names) for key, pattern in _AMD.items()}
    return Resources(used["vgpr_count"], used["private_segment_fixed_size"], kernel.metadata.shared, **counts)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
