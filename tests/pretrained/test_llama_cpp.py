"""llama.cpp, an engine that is not ours, answers from a GGUF file of ours as we do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import instructgpt as ig
from instructgpt.cli import run_command
from instructgpt.config import ModelConfig
from instructgpt.model.transformer import Transformer
from instructgpt.text.chat import as_messages, render_prompt
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.checkpoint import RunDirectory

xllamacpp = pytest.importorskip("xllamacpp")
pytest.importorskip("gguf")


def served(file: Path) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.warmup, params.fit_params, params.verbosity = 64, 1, False, False, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it rounds to 11 bits
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    return xllamacpp.Server(params)


def assert_answers_as_we_do(run: Path, folder: Path, dtype: str = "float32", atol: float = 1e-3) -> None:
    """Greedy tokens one by one, with their log-probabilities; then a text and a chat, by llama.cpp's own tokenizer."""
    assert run_command(["export", "--model", str(run), "--to", str(folder), "--format", "gguf", "--dtype", dtype]) == 0
    server = served(folder / "model.gguf")
    model, tokenizer = ig.load(run, "cpu")
    text = "The cat sees a bird, 12 of 红色!"
    ids = tokenizer.document_start + tokenizer.encode(text)
    checked = 0
    for _ in range(12):
        asked = {"prompt": ids, "n_predict": 1, "temperature": 0.0, "logprobs": 1, "ignore_eos": True}
        told = server.handle_completions(asked)["choices"][0]["logprobs"]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
        best = logprobs.index_fill(0, torch.tensor([*tokenizer.closing]), -torch.inf)
        if told is not None:  # of half a character it tells nothing
            token, checked = told["content"][0], checked + 1
            assert best[token["id"]] > best.max() - atol
            assert abs(float(logprobs[token["id"]]) - token["logprob"]) < atol
        ids.append(int(best.argmax()))
    assert checked > 3
    said = server.handle_completions({"prompt": text, "n_predict": 1})
    assert said["usage"]["prompt_tokens"] == len(tokenizer.document_start + tokenizer.encode(text))
    chat = server.handle_chat_completions({"messages": as_messages("The cat\n sees 7"), "max_tokens": 1})
    assert chat["usage"]["prompt_tokens"] == len(render_prompt(as_messages("The cat\n sees 7"), tokenizer))


def test_each_family(saved, tmp_path):
    assert run_command(["import", "--from", str(saved.folder), "--out", str(tmp_path / "run")]) == 0
    assert_answers_as_we_do(tmp_path / "run", tmp_path / "out")


@pytest.mark.parametrize("dtype", ["float16", "q8_0"])
def test_a_model_of_ours(tmp_path, dtype):
    tokenizer = Tokenizer.train(["The cat sees a red bird.", "A bird, 12 of them", "红色的鸟看见猫!"] * 20, 320)
    torch.manual_seed(0)
    model = Transformer(
        ModelConfig(vocab_size=tokenizer.vocab_size, context=64, layers=2, width=64, heads=4, kv_heads=2, mlp_width=96)
    )
    run = RunDirectory.open(tmp_path / "run")
    run.write_config("sft", model.config, tokenizer, {})
    run.save_model(model)
    # What is multiplied with is rounded there to the weights' format: 11 and 8 bits.
    assert_answers_as_we_do(run.path, tmp_path / "out", dtype, 2e-3 if dtype == "float16" else 5e-2)
