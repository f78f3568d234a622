from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.flags import flag_types
from instructgpt.stages import STAGES
from instructgpt.stages.adapting import AdapterFlags
from instructgpt.stages.plan import PlanConfig, most_rows
from instructgpt.stages.pretrain import PretrainConfig
from tests.stages.conftest import stage

SMALL = "plan --context 64 --layers 1 --width 32 --heads 2 --rows 4 --tflops 1 --device cpu --dtype float32".split()


def test_flags_are_those_of_training() -> None:
    ours, theirs = flag_types(PlanConfig), flag_types(PretrainConfig) | flag_types(AdapterFlags)
    assert {flag for flag in ours if ours[flag] != theirs.get(flag)} == {"--memory", "--tflops"}
    assert fields(PlanConfig) and "plan" in STAGES


def test_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert stage(*SMALL, "--memory", "2GB") == 0
    told = capsys.readouterr().out
    parts = ("parameters", "gradients", "optimizer", "activations", "logits", "most at once", "tokens/s", "--rows")
    assert all(part in told for part in parts)


def test_more_rows_than_fit_are_told_with_the_flags_that_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert stage(*SMALL, "--rows", 4000, "--memory", "600MB") == 0
    told = capsys.readouterr().out
    assert "the same update in parts: --rows " in told and "--checkpointing blocks needs" in told


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_here(capsys: pytest.CaptureFixture[str], refused: Callable[..., str]) -> None:
    assert stage(*SMALL, "--device", "cuda", "--memory", "2GB", "--dtype", "auto") == 0
    assert "on cuda, bfloat16, backend triton" in capsys.readouterr().out
    assert "can be planned only where there is" in refused(*SMALL, "--device", "cuda", "--backend", "sdpa")
    assert "--memory is missing" in refused(*SMALL, "--device", "cuda")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [("--memory 10KB", "--memory 10KB is less than the parameters alone take, "),
     ("--layers 99 --memory 1MB", "--memory 1MB is less than the parameters alone take, "),
     ("--memory 401MB", "one row of 64 tokens needs "), ("--memory 24GBB", "did you mean 'GB'?"),
     ("--memory=-1GB", "is not a size"), ("--memory 24", "has no unit"), ("--memory 24 GB", "takes one value"),
     ("--row-length 65", "--row-length 65 is longer than the context, 64"), ("--rows 0", "rows is 0"),
     ("--tflops -1", "tflops is -1"), ("--checkpointing all", "--checkpointing all is unknown"),
     ("--heads 3", "width 32 is not a multiple of heads 3"), ("--device gpu", "--device gpu is unknown")],
)  # fmt: skip
def test_wrong_input(refused: Callable[..., str], flags: str, complaint: str) -> None:
    assert complaint in refused(*SMALL, *flags.split())


@given(fixed=st.integers(0, 50), row=st.integers(1, 9), bend=st.integers(1, 300), room=st.integers(0, 3000))
def test_the_most_rows(fixed: int, row: int, bend: int, room: int) -> None:
    calls: list[int] = []

    def peak(rows: int) -> int:
        calls.append(rows)
        return max(fixed + 2 * row * rows - min(rows, bend) * row // 2, 40)

    most = most_rows(peak, room, {16: peak(16)})
    assert most == 0 if peak(1) > room else peak(most) <= room < peak(most + max(1, most // 100))
    assert len(calls) < 30


def test_an_adapter(capsys: pytest.CaptureFixture[str]) -> None:
    assert stage(*SMALL, "--memory", "2GB", "--lora-rank", 2, "--base-format", "int4", "--tflops", 1) == 0
    told = capsys.readouterr().out
    assert "an adapter of rank 2 on attention, mlp beside weights in int4" in told and "of the adapter" in told
