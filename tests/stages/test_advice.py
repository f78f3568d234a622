from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from instructgpt.errors import UserError
from instructgpt.flags import flag_types, parse
from instructgpt.stages import STAGES, main, pretrain
from instructgpt.stages.advice import advising
from instructgpt.stages.processes import Job, run_jobs
from tests.stages.conftest import SMALL

CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.20 GiB is free."
)


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_advises_flags_that_it_has(name: str) -> None:
    stage = STAGES[name]
    with pytest.raises(UserError) as caught, advising(stage.defaults("tiny")):
        raise torch.OutOfMemoryError(CUDA)
    told = str(caught.value)
    assert told.startswith("out of memory on the GPU: 2.15 GB more were asked for, 1.29 GB were free of 84.9 GB")
    advised = re.findall(r"--[a-z-]+ [a-z0-9]+", told)
    assert {flag.split()[0] for flag in advised} <= flag_types(stage.config).keys()
    parse(stage.config, " ".join(advised).split(), name, stage.defaults("tiny"))
    assert name in ("tokenizer",) or "--checkpointing blocks" in told


def test_what_is_in_use_already_is_not_advised() -> None:
    config = replace(STAGES["pretrain"].defaults("tiny"), checkpointing="blocks", rows=1)
    with pytest.raises(UserError) as caught, advising(config):
        raise MemoryError
    assert "checkpointing" not in str(caught.value) and "--rows" not in str(caught.value)
    assert "at 1 rows, 256 tokens a row" in str(caught.value) and "--row-length 128" in str(caught.value)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), advising(None):
        raise RuntimeError("shapes differ")


def small(runs: Path, out: Path, *flags: object) -> list[str]:
    given = ("--text", runs / "text.txt", "--tokenizer", runs / "tokenizer", "--out", out, *SMALL.split())
    return ["pretrain", *map(str, given), "--max-steps", "4", "--save-every", "1", *map(str, flags)]


def test_a_run_that_ran_out_goes_on_from_its_checkpoint(
    runs: Path, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(small(runs, tmp_path / "whole")) == 0
    loss, calls = pretrain.next_token_loss, []

    def greedy(*arguments: Any) -> Any:
        calls.append(len(calls))
        return loss(*arguments) if len(calls) < 4 else torch.empty(1 << 60)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "next_token_loss", greedy)
        told = refused(*small(runs, tmp_path / "cut"))
    assert "error: out of memory in main memory: 4.61 EB more were asked for, " in told
    assert "(at 2 rows, 64 tokens a row); try --checkpointing blocks or --optimizer-state int8 or --rows 1 " in told
    assert f"the last checkpoint in {tmp_path / 'cut'} is kept: --resume goes on" in told
    assert main(small(runs, tmp_path / "cut", "--resume", "--checkpointing", "blocks")) == 0
    cut, whole = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("cut", "whole"))
    assert cut == whole


def run_out(config: Any) -> None:
    raise torch.OutOfMemoryError(CUDA)


def test_a_job_in_a_process_of_its_own(tmp_path: Path) -> None:
    job = Job("sft", run_out, (STAGES["sft"].defaults("tiny"),), tmp_path / "sft.txt")
    with pytest.raises(UserError, match=r"sft failed: out of memory on the GPU: .*--checkpointing blocks"):
        run_jobs([job], 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.skipif(importlib.util.find_spec("tyro") is None, reason="flags need tyro, which is not installed")
def test_a_batch_too_large_for_a_gpu(runs: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 64e6) / total)
    try:
        flags = ("--device", "cuda", "--rows", 4096, "--width", 256, "--context", 256)
        told = refused(*small(runs, tmp_path / "cuda", *flags))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert "out of memory on the GPU: " in told and "asked for" in told and "--rows 2048" in told
