"""SmolLM2's greedy answers here and in llama.cpp: how many of 20 agree, and until which token the others do.

    python -m benchmarks.agreement --run runs/smollm2        # after `make smollm2`

llama.cpp is asked twice: with the GGUF file that the run was imported from, whose packed weights it multiplies by
activations that it rounds to 8 bits; and with an export of the run in float32, which it computes as we do.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.machine import describe, publish, results_file
from benchmarks.peers import llama_cpp
from instructgpt.errors import UserError
from instructgpt.flags import parse, run_main
from instructgpt.generation.engine import generate_ids
from instructgpt.generation.sampling import SamplingConfig
from instructgpt.pretrained import hub, smollm2
from instructgpt.pretrained.outgoing import export_gguf
from instructgpt.settings import FilePath, PositiveInt, Settings
from instructgpt.text.chat import as_messages, render_prompt
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.checkpoint import RunDirectory, load

PROMPTS = (
    "What is the capital of France?", "Translate to French: The cat sits on the mat.", "What is 12 + 30?",
    "Why is the sky blue?", "Write a poem about rain.", "Name three animals that fly.", "Who wrote Hamlet?",
    "Explain photosynthesis to a child.", "What is the opposite of cold?", "List the days of the week.",
    "How do I boil an egg?", "Write a Python function that adds two numbers.", "What is a prime number?",
    "Summarise: The dog ran home because it was raining.", "Give me a name for a bakery.", "What year did WWII end?",
    "Is a tomato a fruit?", "Tell me a joke.", "What does HTTP stand for?", "Say hello in Spanish.",
)  # fmt: skip


@dataclass(frozen=True)
class AgreementConfig(Settings):
    """Compares greedy answers with llama.cpp's (the package xllamacpp)."""

    run: FilePath = "runs/smollm2"
    """The run directory of the imported model."""
    gguf: FilePath = ""
    """The file that it was imported from; where `make smollm2` keeps it by default."""
    tokens: PositiveInt = 64
    """Tokens of an answer, at most."""
    json: FilePath = "auto"
    """The file to write; auto is benchmarks/results/cpu-agreement.json, empty is none."""


def llama_cpp_answers(file: Path, prompts: list[list[int]], tokens: int, is_exact: bool) -> list[str]:
    """What llama.cpp answers to prompts of ids, greedily. is_exact: with keys and values, too, in float32."""
    server = llama_cpp(file, torch.get_num_threads(), is_exact)
    asked = {"n_predict": tokens, "temperature": 0.0, "cache_prompt": False}
    return [server.handle_completions({**asked, "prompt": ids})["choices"][0]["text"] for ids in prompts]


def agreeing(tokenizer: Tokenizer, ids: list[int], text: str) -> int:
    """How many of our tokens, from the first on, spell what the other text says there."""
    spelt, there = b"", text.encode()
    for i, token in enumerate(ids):
        spelt += tokenizer.token_bytes(token)
        if not there.startswith(spelt):
            return i
    return len(ids)


def compared(
    config: AgreementConfig, file: Path, what: str, prompts: list[list[int]], is_exact: bool
) -> dict[str, Any]:
    """Our answers beside those of llama.cpp from a file."""
    model, tokenizer = load(config.run, "cpu")
    ours = generate_ids(model, tokenizer, prompts, SamplingConfig(max_new_tokens=config.tokens))
    theirs = llama_cpp_answers(file, prompts, config.tokens, is_exact)
    rows = [
        {"prompt": prompt, "tokens": len(done.ids), "agree": agreeing(tokenizer, done.ids, text),
         "equal": done.text == text, "ours": done.text, "llama.cpp": text}
        for prompt, done, text in zip(PROMPTS, ours, theirs)
    ]  # fmt: skip
    equal = sum(row["equal"] for row in rows)
    until = median([row["agree"] for row in rows if not row["equal"]] or [0])
    others = f"; the others agree for {until:g} tokens (median)" if equal < len(rows) else ""
    print(f"{what}: {equal} of {len(rows)} answers are equal{others}")
    return {"what": what, "equal": equal, "of": len(rows), "others_agree_until": until, "answers": rows}


def main() -> int:
    config = parse(AgreementConfig, sys.argv[1:], "python -m benchmarks.agreement")
    file = Path(config.gguf) if config.gguf else hub.cache_folder() / smollm2.NAME / smollm2.FILE
    if not file.is_file():
        raise UserError("no such file; `make smollm2` brings it", file)
    shape, tokenizer, weights = RunDirectory(config.run).open_model()
    prompts = [render_prompt(as_messages(prompt), tokenizer) for prompt in PROMPTS]
    found = [compared(config, file, f"{file.name}, activations in 8 bits", prompts, is_exact=False)]
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "model.gguf"
        export_gguf(exported, shape, weights, tokenizer, "float32")
        found.append(compared(config, exported, "exported in float32", prompts, is_exact=True))
    device = torch.device("cpu")
    publish({**describe(device), "comparisons": found}, results_file(config.json, device, "agreement"))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
