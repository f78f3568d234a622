from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import decode
from benchmarks.decode import DecodeConfig, cases, filled_in
from benchmarks.steps import shape_named
from benchmarks.untrained import Ids, random_model, random_prompts, step_bytes
from instructgpt.model.counts import count_parameters

QUICK = filled_in(DecodeConfig(device="cpu", quick=True, json=""))


@pytest.mark.parametrize("with_peer", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_all_formats_and_the_peer_take_turns_and_say_the_same(
    with_peer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    if not with_peer:
        monkeypatch.setitem(sys.modules, "transformers", None)  # its import takes seconds
    monkeypatch.setattr(decode, "copy_rate", lambda *_: 1e10)
    file = tmp_path / "decode.json"
    assert decode.measure(DecodeConfig(device="cpu", quick=True, json=str(file))) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == json.loads(file.read_text()) and last["seed"] == 0 and last["instructions"] is not None
    names = {f"{batch}  {format}" for batch in (1, 3) for format in ("float32", "bfloat16", "int8", "int4")}
    assert names <= set(last["results"])
    assert {"throughput", "latency", "prefixes"} <= set(last["schedule"]) and last["schedule"]["rollouts"] is None
    for name, found in last["results"].items():
        assert found["tokens_per_second"] > 0 and found["step_megabytes"] > 0, name
    if any("transformers" in name for name in last["results"]):
        assert last["equal_rows"]["3  float32"] == {"transformers": "3 of 3"}
        assert last["results"]["3  float32"]["times_transformers"] > 0
        assert last["results"]["3  transformers, float32"]["times_transformers"] is None


def test_without_the_peer_it_is_left_out_by_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert not any("transformers" in name for name in cases(QUICK))
    assert capsys.readouterr().out == "transformers: left out, it is not installed\n"


def test_a_row_never_ends_early_and_prompts_are_unequal():
    shape = shape_named("minute")
    prompts = random_prompts(shape, 6, 8, seed=1)
    assert len({len(prompt) for prompt in prompts}) > 1 and max(map(len, prompts)) <= shape.context - 8
    model = random_model(shape, torch.device("cpu"), 0)
    tokens = decode.ours(model, "float32", prompts)(8)
    assert [len(row) for row in tokens] == [8] * 6
    assert not any(Ids(shape.vocab_size).end in row for row in tokens)
    assert len({tuple(row) for row in tokens}) > 1


def test_a_step_reads_weights_and_cache():
    shape = shape_named("12m")
    model = random_model(shape, torch.device("cpu"), 0)
    prompts = [[1] * 10, [1] * 20]
    products = count_parameters(shape).total - 256 * 384 - 6 * (384 * 13) - 2 * 384  # no positions, biases, norms
    cache = 2 * 6 * 384 * (30 + 2 * 4)
    exact = step_bytes(model, prompts, 8, "float32")
    assert exact == pytest.approx(4 * (products + cache), rel=0.002)
    assert step_bytes(model, prompts, 8, "bfloat16") == exact / 2
    assert step_bytes(model, prompts, 8, "int4") < step_bytes(model, prompts, 8, "int8") < exact / 2
