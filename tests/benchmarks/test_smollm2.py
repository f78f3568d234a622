from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import smollm2
from benchmarks.smollm2 import SHAPE, SmolLM2Config, as_llama, measure, our_decoding, our_model, our_training, works
from instructgpt.model.counts import count_parameters

QUICK = SmolLM2Config(quick=True, threads=1, new_tokens=5, prompts=1, rows=1, rounds=1, json="")


def test_the_shape_is_that_of_the_model():
    assert round(count_parameters(SHAPE).total / 1e6, 1) == 134.5


@pytest.mark.parametrize("format", ["float32", "int8"])
def test_decoding_generates_as_many_tokens_as_it_says(format: str):
    assert our_decoding(QUICK, format)()["tokens_per_second"] > 0


@pytest.mark.parametrize("is_lora", [False, True])
def test_training_counts_all_tokens_of_a_step(is_lora: bool):
    assert our_training(QUICK, is_lora)()["tokens_per_second"] > 0
    batch = smollm2.training_batch(QUICK)
    assert int(batch.tokens) == 128 and int(batch.is_target.sum()) == 64


def test_llama_cpp_needs_its_file_and_names_choose():
    assert "decode, llama.cpp" not in works(QUICK) and len(works(QUICK)) == 10
    config = SmolLM2Config(gguf="model.gguf", only=("decode, llama.cpp", "decode, int8"))
    assert list(works(config)) == ["decode, int8", "decode, llama.cpp"]


def test_ratios_are_to_the_peer_of_the_same_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def in_turn(works: dict[str, Any], rounds: int, seconds: float) -> dict[str, Any]:
        rates = {"decode, int8": [10, 30, 20], "decode, llama.cpp": [20, 40, 40], "train, full": [6, 6, 9],
                 "train, full, transformers": [3, 2, 3]}  # fmt: skip
        absent = dict.fromkeys(works, "ImportError: it is not here")
        return absent | {name: [{"tokens_per_second": rate} for rate in each] for name, each in rates.items()}

    monkeypatch.setattr(smollm2, "in_turn", in_turn)
    threads = torch.get_num_threads()
    file = tmp_path / "smollm2.json"
    assert measure(SmolLM2Config(gguf="model.gguf", threads=1, json=str(file))) == 0
    torch.set_num_threads(threads)
    results = json.loads(file.read_text())["results"]
    assert results["decode, int8"]["times_peer"] == 0.5 and results["decode, llama.cpp"]["times_peer"] is None
    assert results["train, full"]["times_peer"] == 3 and results["train, LoRA"] == {
        "failed": "ImportError: it is not here"
    }
    assert "3.00 × the peer" in capsys.readouterr().out


@pytest.mark.slow
def test_the_peer_computes_what_our_model_computes():
    pytest.importorskip("transformers")
    model, ids = our_model(QUICK), torch.randint(256, (2, 40))
    with torch.inference_mode():
        ours, theirs = model(ids), as_llama(model).eval()(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
