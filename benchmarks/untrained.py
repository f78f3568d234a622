"""Models of random weights that are asked for tokens, and their peers: what the benchmarks of generation share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from instructgpt.config import ModelConfig
from instructgpt.model.backend import resolve_backend
from instructgpt.model.quantize import FORMATS
from instructgpt.model.transformer import Transformer
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.checkpoint import RunDirectory

Generate = Callable[[int], list[list[int]]]
"""Most new tokens -> the tokens of each row."""


class Ids:
    """In a tokenizer's place: every token may be chosen and none has a text, as `transformers` has it here."""

    pad, bos = 0, 0

    def __init__(self, vocab_size: int):
        self.vocab_size, self.byte_lengths = vocab_size, np.ones(vocab_size, dtype=np.int64)
        self.end = self.eos = vocab_size - 1  # `random_model` never says it
        self.closing = frozenset((self.end,))

    def stream(self, *_: object, **__: object) -> Ids:
        return self

    def push(self, token: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


def random_run(folder: Path, shape: ModelConfig) -> Path:
    """A run directory with a small model and a tokenizer of its own, which goes on for long."""
    lines = [f"the cat number {i} saw {i * 7} red birds." for i in range(60)]
    tokenizer = Tokenizer.train(lines, shape.vocab_size)
    model = Transformer(replace(shape, vocab_size=tokenizer.vocab_size))
    model.reset(torch.Generator().manual_seed(0))
    run = RunDirectory(folder)
    run.path.mkdir(parents=True)
    run.write_config("sft", model.config, tokenizer, {})
    run.save_model(model)
    return folder


def random_model(shape: ModelConfig, device: torch.device, seed: int) -> Transformer:
    model = Transformer(replace(shape, dropout=0.0), resolve_backend("auto", device))
    model.reset(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            if parameter.ndim > 1:
                parameter *= 3  # small weights would say the same whatever the prompt
        model.embedding.weight[-1] = 0  # its logit is 0, never the largest of thousands
    return model.to(device).eval()


def random_prompts(shape: ModelConfig, rows: int, new_tokens: int, seed: int) -> list[list[int]]:
    """16 to 64 tokens each, or fewer where the context is short."""
    longest = min(64, shape.context - new_tokens)
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(min(16, longest), longest + 1, (rows,), generator=generator).tolist()
    return [torch.randint(1, shape.vocab_size - 1, (length,), generator=generator).tolist() for length in lengths]


def as_transformers(model: Transformer) -> nn.Module | None:
    """`transformers`' GPT-2 with the same weights. None, and a line that says why, where there is none."""
    shape = model.config
    if (shape.position, shape.norm, shape.mlp) != ("learned", "layernorm", "gelu"):
        print("transformers: left out, this model has another form than GPT-2's", flush=True)
        return None
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        print("transformers: left out, it is not installed", flush=True)
        return None
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocab_size, n_positions=shape.context, n_embd=shape.width, n_layer=shape.layers,
            n_head=shape.heads, layer_norm_epsilon=shape.norm_eps, bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip
    weights: dict[str, Tensor] = {"wte.weight": model.embedding.weight, "wpe.weight": model.position_embedding.weight}
    pairs = {"ln_1": "attention_norm", "attn.c_attn": "attention.qkv", "attn.c_proj": "attention.output",
             "ln_2": "mlp_norm", "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"}  # fmt: skip
    modules = {f"h.{i}.{a}": block.get_submodule(b) for i, block in enumerate(model.blocks) for a, b in pairs.items()}
    for name, module in {**modules, "ln_f": model.final_norm}.items():
        is_product = isinstance(module, nn.Linear)
        weights[f"{name}.weight"] = module.weight.T if is_product else module.weight  # type: ignore[assignment]
        weights[f"{name}.bias"] = module.bias  # type: ignore[assignment]
    theirs.transformer.load_state_dict(weights)
    return theirs.to(model.device).eval()  # type: ignore[arg-type]


def by_transformers(theirs: Any, prompts: list[list[int]], **options: Any) -> Generate:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=theirs.device)
    lengths = torch.tensor([[len(prompt)] for prompt in prompts], device=theirs.device)
    is_token = (torch.arange(longest, device=theirs.device) >= longest - lengths).long()

    def call(new_tokens: int) -> list[list[int]]:
        made = theirs.generate(
            ids, attention_mask=is_token, max_new_tokens=new_tokens, do_sample=False, pad_token_id=0, **options
        )
        return made[:, longest:].tolist()

    return call


def step_bytes(model: Transformer, prompts: list[list[int]], new_tokens: int, format: str) -> float:
    """Weights that are multiplied by, and keys and values in the middle of the answer."""
    shape, is_gpu = model.config, model.device.type == "cuda"
    parts = {"float32": (4.0, 4), "bfloat16": (2.0, 2), "int8": (1.0, 2), "int4": (0.5 + 2 / 64, 2)}
    block_bytes, head_bytes = parts[format]
    if format in FORMATS and not is_gpu:
        head_bytes = 1
    cache_bytes = 4 if format == "float32" or (format in FORMATS and not is_gpu) else 2
    products = sum(layer.weight.numel() for layer in model.blocks.modules() if isinstance(layer, nn.Linear))
    tokens = sum(map(len, prompts)) + len(prompts) * new_tokens / 2
    cached = 2 * shape.layers * shape.kv_heads * shape.head_dim * tokens
    return products * block_bytes + model.output_weight.numel() * head_bytes + cached * cache_bytes
