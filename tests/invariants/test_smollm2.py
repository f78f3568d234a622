"""SmolLM2, as `make smollm2` imports it, computes what `transformers` computes with the same unpacked weights.

These run where the file is: `make smollm2` brings it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import instructgpt as ig
from benchmarks.agreement import PROMPTS
from instructgpt.cli import run_command
from instructgpt.model import Sequences, Transformer
from instructgpt.pretrained import hub, smollm2
from instructgpt.text.chat import as_messages, render_prompt

pytestmark = pytest.mark.slow
transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf")

TOKENS = 64


@pytest.fixture(scope="module")
def file() -> Path:
    file = hub.cache_folder() / smollm2.NAME / smollm2.FILE
    if not file.exists():
        pytest.skip(f"no {file}: `make smollm2` brings it")
    return file


@pytest.fixture(scope="module")
def run(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2") / "run"
    assert run_command(["import", "--from", str(file), "--out", str(folder)]) == 0
    return folder


def greedy(model: Transformer, prompts: list[list[int]], tokens: int) -> torch.Tensor:
    """(prompts, tokens), the most probable ones, beyond the end of an answer too."""
    rows = Sequences(model.config, len(prompts), max(map(len, prompts)) + tokens)
    counts, ids, found = (
        [len(prompt) for prompt in prompts],
        torch.tensor([[i for prompt in prompts for i in prompt]]),
        [],
    )
    with torch.inference_mode():
        for _ in range(tokens):
            last = torch.tensor(counts).cumsum(0) - 1
            ids = model.head(model.hidden(ids, cache=rows.feed(counts))[:, last]).argmax(-1)  # (1, prompts)
            counts = [1] * len(prompts)
            found.append(ids[0])
    return torch.stack(found, 1)


def test_logits_and_greedy_answers_are_theirs(file: Path, run: Path) -> None:
    model, tokenizer = ig.load(run, "cpu")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()
    prompts = [render_prompt(as_messages(text), tokenizer) for text in PROMPTS]
    answers = greedy(model, prompts, TOKENS)
    for prompt, answer in zip(prompts, answers):
        ids = torch.tensor([prompt + answer.tolist()])
        with torch.inference_mode():
            expected, found = theirs(ids).logits[0], model(ids)[0]
        # Float32's rounding, of logits up to 39: 9.5e-5 apart; their two ways to compute attention are by 7.0e-5.
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-4)
        # By induction: given the tokens before it, each is the one that they would choose.
        assert expected[len(prompt) - 1 : -1].argmax(-1).tolist() == answer.tolist()


def test_it_knows_the_capital_of_france(run: Path) -> None:
    model, tokenizer = ig.load(run, "cpu")
    assert ig.generate(model, tokenizer, [PROMPTS[0]], max_new_tokens=20, temperature=0.0) == [
        "The capital of France is Paris."
    ]


@pytest.mark.parametrize("layout", ["hf", "gguf"])
def test_it_leaves_and_comes_back_bit_by_bit(run: Path, tmp_path: Path, layout: str) -> None:
    assert run_command(["export", "--model", str(run), "--to", str(tmp_path / "out"), "--format", layout]) == 0
    source = tmp_path / "out" / ("model.gguf" if layout == "gguf" else "")
    assert run_command(["import", "--from", str(source), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (run / "tokenizer.json").read_bytes()
