"""SmolLM2 on a CPU: decoding beside llama.cpp and `transformers`, training beside `transformers`.

`python -m benchmarks.smollm2 --run runs/smollm2 --gguf FILE`, the run being what `import` made of that very file. Each
of them is a process of its own with the same threads, and they take turns. A decode rate is that of the tokens after an
answer's first, greedy, one prompt at a time. A training step is rows of 128 tokens, half of them targets, with AdamW:
all weights, or LoRA of rank 16 on all linear layers, which is the package `peft` beside `transformers`. Without --run,
random weights of that shape are measured, and no llama.cpp.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.decode import Ids, random_model
from benchmarks.machine import describe, publish, results_file
from benchmarks.peers import llama_cpp
from benchmarks.steps import Timed
from benchmarks.workers import Figures, Measure, Prepared, chosen, in_turn
from instructgpt.config import ModelConfig
from instructgpt.data.batch import Batch
from instructgpt.flags import parse, run_main
from instructgpt.generation.engine import generate_ids
from instructgpt.generation.sampling import SamplingConfig
from instructgpt.model.adapters import LoRA, add_adapter
from instructgpt.model.quantize import FORMATS, quantize
from instructgpt.model.transformer import Transformer
from instructgpt.objectives.lm import Loss, next_token_loss
from instructgpt.runtime import cores, resolve_precision
from instructgpt.settings import FilePath, NonNegative, NonNegativeInt, PositiveInt, Settings
from instructgpt.training.checkpoint import load
from instructgpt.training.loop import FitConfig, Hooks, fit

SHAPE = ModelConfig(
    vocab_size=49152, context=2048, layers=30, width=576, heads=9, kv_heads=3, mlp="swiglu", mlp_width=1536,
    norm="rmsnorm", position="rope", rope_theta=100000.0, tie_embeddings=True,
)  # fmt: skip
_QUICK = replace(SHAPE, vocab_size=256, layers=2, width=48, heads=3, kv_heads=1, mlp_width=64)
_LENGTH = 128
_RANK = 16


@dataclass(frozen=True)
class SmolLM2Config(Settings):
    """Measures SmolLM2 beside others."""

    run: FilePath = ""
    """The run directory of the imported model; without it, random weights."""
    gguf: FilePath = ""
    """The GGUF file that it was imported from, for llama.cpp (the package xllamacpp); without it, that is left out."""
    threads: NonNegativeInt = 0
    """Threads of each; 0 is the machine's cores."""
    new_tokens: PositiveInt = 96
    """Tokens generated for each prompt."""
    prompts: PositiveInt = 2
    """Prompts of a measurement, one after the other."""
    rows: PositiveInt = 8
    """Rows of a training step, each of 128 tokens."""
    steps: PositiveInt = 2
    """Training steps of a measurement."""
    rounds: PositiveInt = 5
    """Measurements of each, which take turns; the median is shown."""
    seconds: NonNegative = 0.0
    """How long it may take: what is not prepared by three quarters of it is left out. 0 sets no limit."""
    only: tuple[str, ...] = ()
    """Names of the table's rows; all by default."""
    quick: bool = False
    """A tiny model: whether it runs."""
    json: FilePath = "auto"
    """The file to write; auto is benchmarks/results/cpu-smollm2.json, empty is none."""


# ---- decoding

Generate = Callable[[list[int], int], None]
"""(prompt, tokens) -> nothing: it generates so many"""


def decoding(generate: Generate, config: SmolLM2Config) -> Measure:
    """Tokens a second of what comes after the first one."""
    longest = 24 if config.quick else 60
    generator = torch.Generator().manual_seed(1)
    prompts = [
        torch.randint(5, (_QUICK if config.quick else SHAPE).vocab_size - 5, (longest,), generator=generator).tolist()
        for _ in range(config.prompts)
    ]

    def timed(tokens: int) -> float:
        started = time.perf_counter()
        for prompt in prompts:
            generate(prompt, tokens)
        return time.perf_counter() - started

    def measure() -> Figures:
        first, whole = timed(1), timed(config.new_tokens)
        return {"tokens_per_second": len(prompts) * (config.new_tokens - 1) / max(whole - first, 1e-9), "first": first}

    timed(2)
    return measure


class Endless(Ids):
    """No token ends an answer."""

    def __init__(self, vocab_size: int):
        super().__init__(vocab_size)
        self.closing = frozenset()


def our_decoding(config: SmolLM2Config, format: str) -> Measure:
    model = our_model(config)
    if format in FORMATS:
        quantize(model, format)
    precision = resolve_precision("bfloat16" if format == "bfloat16" else "float32", model.device)
    tokenizer: Any = Endless(model.config.vocab_size)

    def generate(prompt: list[int], tokens: int) -> None:
        with precision.context(model.device):
            (done,) = generate_ids(model, tokenizer, [prompt], SamplingConfig(max_new_tokens=tokens))
        assert len(done.ids) == tokens

    return decoding(generate, config)


def their_decoding(config: SmolLM2Config, format: str) -> Measure:
    model = as_llama(our_model(config)).to(getattr(torch, format)).eval()

    def generate(prompt: list[int], tokens: int) -> None:
        ids = torch.tensor([prompt])
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens,
                              do_sample=False, pad_token_id=0)  # fmt: skip
        assert made.shape == (1, len(prompt) + tokens)

    return decoding(generate, config)


def llama_cpp_decoding(config: SmolLM2Config) -> Measure:
    server = llama_cpp(config.gguf, config.threads)

    def generate(prompt: list[int], tokens: int) -> None:
        done = server.handle_completions(
            {"prompt": prompt, "n_predict": tokens, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}
        )
        assert done["usage"]["completion_tokens"] == tokens, done

    return decoding(generate, config)


# ---- training


def our_training(config: SmolLM2Config, is_lora: bool) -> Measure:
    model = our_model(config).train()
    if is_lora:
        add_adapter(model, LoRA(rank=_RANK))
    batch = training_batch(config)
    parameters = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}

    def loss(batch: Batch) -> Loss:
        return next_token_loss(model, batch)

    def steps(count: int) -> float:
        timed = Timed(batch, model.device)
        settings = FitConfig(max_steps=count + 1, save_every=0, warmup_steps=0, learning_rate=1e-4)
        precision = resolve_precision("auto", model.device)
        fit(parameters, timed, loss, settings, Hooks(), device=model.device, precision=precision)
        return time.perf_counter() - timed.times[1]  # the first makes the optimizer's moments

    return training(steps, config, batch)


def their_training(config: SmolLM2Config, is_lora: bool) -> Measure:
    model: Any = as_llama(our_model(config)).train()
    if is_lora:
        peft: Any = import_module("peft")
        model = peft.get_peft_model(model, peft.LoraConfig(r=_RANK, lora_alpha=32, target_modules="all-linear"))
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), fused=True)
    batch = training_batch(config)
    labels = torch.cat((torch.full_like(batch.ids[:, :1], -100), batch.targets.masked_fill(~batch.is_target, -100)), 1)
    ids = torch.cat((batch.ids, batch.targets[:, -1:]), 1)

    def steps(count: int) -> float:
        started = 0.0
        for number in range(count + 1):
            started = time.perf_counter() if number == 1 else started
            model(input_ids=ids, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - started

    return training(steps, config, batch)


def training(steps: Callable[[int], float], config: SmolLM2Config, batch: Batch) -> Measure:
    """steps: takes one step more than it is asked for, and tells the seconds of the others."""
    return lambda: {"tokens_per_second": config.steps * int(batch.tokens) / steps(config.steps)}


def training_batch(config: SmolLM2Config) -> Batch:
    """Full rows of one document each; the second half of each is to be learnt."""
    size = (config.rows, _LENGTH)
    vocabulary = (_QUICK if config.quick else SHAPE).vocab_size
    text = torch.randint(vocabulary, (config.rows, _LENGTH + 1), generator=torch.Generator().manual_seed(0))
    slots = torch.arange(_LENGTH).repeat(config.rows, 1)
    return Batch(text[:, :-1], text[:, 1:], slots >= _LENGTH // 2, slots, torch.zeros(size, dtype=torch.int64))


# ---- models


def our_model(config: SmolLM2Config) -> Transformer:
    torch.set_num_threads(config.threads)
    if config.run:
        return load(config.run, "cpu")[0]
    return random_model(_QUICK if config.quick else SHAPE, torch.device("cpu"), 0)


def as_llama(model: Transformer) -> Any:
    """`transformers`' Llama with the same weights. Errors: ImportError where it is not installed."""
    transformers: Any = import_module("transformers")
    shape = model.config
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=shape.vocab_size, hidden_size=shape.width, intermediate_size=shape.mlp_width,
            num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
            max_position_embeddings=shape.context, rms_norm_eps=shape.norm_eps, rope_theta=shape.rope_theta,
            tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip
    weights: dict[str, Tensor] = {"embed_tokens.weight": model.embedding.weight, "norm.weight": model.final_norm.weight}
    rows = [heads * shape.head_dim for heads in (shape.heads, shape.kv_heads, shape.kv_heads)]
    for i, block in enumerate(model.blocks):
        ours = dict(block.named_parameters())
        q, k, v = ours["attention.qkv.weight"].split(rows)
        gate, up = ours["mlp.gate_up.weight"].chunk(2)
        named = {
            "input_layernorm": ours["attention_norm.weight"], "self_attn.q_proj": q, "self_attn.k_proj": k,
            "self_attn.v_proj": v, "self_attn.o_proj": ours["attention.output.weight"],
            "post_attention_layernorm": ours["mlp_norm.weight"], "mlp.gate_proj": gate, "mlp.up_proj": up,
            "mlp.down_proj": ours["mlp.down.weight"],
        }  # fmt: skip
        weights |= {f"layers.{i}.{name}.weight": weight for name, weight in named.items()}
    theirs.model.load_state_dict({name: weight.detach().clone() for name, weight in weights.items()})
    return theirs


# ---- the measurement


def works(config: SmolLM2Config) -> dict[str, Prepared]:
    found = {
        f"decode, {format}": Prepared(our_decoding, (config, format)) for format in ("float32", "bfloat16", *FORMATS)
    }
    found |= {
        f"decode, transformers {format}": Prepared(their_decoding, (config, format))
        for format in ("float32", "bfloat16")
    }
    if config.gguf:
        found["decode, llama.cpp"] = Prepared(llama_cpp_decoding, (config,))
    for name, is_lora in (("full", False), ("LoRA", True)):
        found[f"train, {name}"] = Prepared(our_training, (config, is_lora))
        found[f"train, {name}, transformers"] = Prepared(their_training, (config, is_lora))
    return chosen(found, config.only)


_PEERS = {"decode": "decode, llama.cpp", "train, full": "train, full, transformers",
          "train, LoRA": "train, LoRA, transformers"}  # fmt: skip
"""What a row's ratio is to, by the beginning of its name."""


def measure(config: SmolLM2Config) -> int:
    config = replace(config, threads=config.threads or cores())
    torch.set_num_threads(config.threads)
    found = in_turn(works(config), config.rounds, seconds=config.seconds or math.inf)
    results: dict[str, Any] = {}
    for name, figures in found.items():
        if isinstance(figures, str):
            results[name] = {"failed": figures}
            continue
        rates = [each["tokens_per_second"] for each in figures]
        peer = next((found.get(peer) for start, peer in _PEERS.items() if name.startswith(start)), None)
        ratio = None
        if isinstance(peer, list) and peer is not figures:
            ratio = median(ours / theirs["tokens_per_second"] for ours, theirs in zip(rates, peer))
        results[name] = {"tokens_per_second": median(rates), "times_peer": ratio, "each": rates}
        print(f"{name:<32} {median(rates):>8.1f} tokens/s" + (f"  {ratio:.2f} × the peer" if ratio else ""), flush=True)
    device = torch.device("cpu")
    settings = {name: value for name, value in vars(config).items() if name not in ("run", "gguf", "json")}
    document = {**describe(device), "settings": settings, "results": results}
    publish(document, results_file(config.json, device, "smollm2"))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: measure(parse(SmolLM2Config, sys.argv[1:], "benchmarks.smollm2"))))
