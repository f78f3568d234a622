"""Small models of random weights, saved by `transformers` in each of the families' shapes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

_VOCAB, _CONTEXT = 320, 96
_LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32, "rope_theta": 500.0,
}  # fmt: skip
_GPT2 = dict(vocab_size=_VOCAB, n_positions=_CONTEXT, n_embd=48, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
_LLAMA = dict(
    vocab_size=_VOCAB, max_position_embeddings=_CONTEXT, hidden_size=48, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=2, intermediate_size=80, rms_norm_eps=1e-5, tie_word_embeddings=False,
)  # fmt: skip
_THETA = {"rope_theta": 1e6, "rope_type": "default"}

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", _GPT2),
    "gpt2-untied": ("GPT2", {**_GPT2, "tie_word_embeddings": False, "n_inner": 72}),
    "llama": ("Llama", {**_LLAMA, "num_key_value_heads": 6}),
    "llama-grouped-tied": ("Llama", {**_LLAMA, "tie_word_embeddings": True}),
    "llama-one-key-head": ("Llama", {**_LLAMA, "num_key_value_heads": 1, "head_dim": 12}),
    "llama3": ("Llama", {**_LLAMA, "rope_parameters": _LLAMA3}),
    "mistral": ("Mistral", {**_LLAMA, "sliding_window": None}),
    "qwen2": ("Qwen2", {**_LLAMA, "rope_parameters": _THETA}),
    "qwen2-tied": ("Qwen2", {**_LLAMA, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {**_LLAMA, "head_dim": 16, "rope_parameters": _THETA}),
}
"""By name: how their classes' names begin, and what their config is made with."""


class Saved(NamedTuple):
    name: str
    model: Any
    """Of `transformers`, in eval mode."""
    folder: Path


def _made(kind: str, settings: dict[str, Any]) -> Any:
    """A model of theirs, all weights drawn, so that norms and biases are not the ones and zeros they start as."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        # Small embeddings: what a block adds decides the next token, not the token itself.
        is_embedding = any(word in name for word in ("embed", "wte", "wpe"))
        noise = (0.03 if is_embedding else 0.12) * torch.randn_like(parameter)
        parameter.data = 1 + noise if parameter.ndim == 1 and name.endswith("weight") else noise
    return model.eval()


_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _tokenizer_files(folder: Path) -> None:
    """A small byte-level tokenizer with ChatML's control tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(["The cat sees the bird. The bird sees the cat, and the rain."] * 9, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "chat_template": _TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="session")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    """`save(name)`: a model of theirs, and a folder that it was saved in, with a tokenizer; made once."""
    known: dict[str, Saved] = {}

    def save(name: str) -> Saved:
        if name not in known:
            model, folder = _made(*SHAPES[name]), tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            _tokenizer_files(folder)
            known[name] = Saved(name, model, folder)
        return known[name]

    return save


@pytest.fixture(params=SHAPES)
def saved(request: pytest.FixtureRequest, save: Callable[[str], Saved]) -> Saved:
    """Each of the models in turn."""
    return save(request.param)
