"""Generated tokens a second by batch size and number format, beside `transformers`; then what the engine's schedule
brings (`batching.py`). `python -m benchmarks.decode`.

GPT-2's 124M parameters on CUDA, with and without graphs, the same form at 12.3M on a CPU: random weights, the same in
all. A measurement is a whole call: prompts of unequal length are read, then each row gets as many greedy tokens. The
cases take turns in one process, and medians are shown. A step must read every weight and what the cache holds; `limit`
is the share of its time that this takes at the rate of a large copy, measured in the same run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch

from benchmarks import batching
from benchmarks.batching import BatchingConfig
from benchmarks.machine import copy_rate, describe, publish, results_file, synchronize
from benchmarks.steps import shape_named
from benchmarks.untrained import (
    Generate,
    Ids,
    as_transformers,
    by_transformers,
    random_model,
    random_prompts,
    step_bytes,
)
from benchmarks.workers import chosen
from instructgpt.flags import parse, run_main
from instructgpt.generation import engine
from instructgpt.generation.decoding import Decoder
from instructgpt.generation.sampling import SamplingConfig
from instructgpt.model.quantize import FORMATS, quantize
from instructgpt.model.transformer import Transformer
from instructgpt.runtime import resolve_device, resolve_precision
from instructgpt.settings import FilePath, NonNegative, NonNegativeInt, PositiveInt, Settings
from instructgpt.strict_json import write_json


@dataclass(frozen=True)
class DecodeConfig(Settings):
    """Measures generation in every number format, and that of `transformers`."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    shape: str = ""
    """The model: 12m (GPT-2's form at 12.3M) or gpt2; gpt2 on CUDA and 12m elsewhere by default."""
    batches: tuple[PositiveInt, ...] = ()
    """Rows of a batch; 1, 16 and 64 on CUDA, 1 and 16 elsewhere by default."""
    new_tokens: PositiveInt = 128
    """Tokens generated for each row."""
    rounds: PositiveInt = 5
    """Measurements of each case, which take turns."""
    seconds: NonNegative = 240.0
    """After so many no case is begun and no round, but the first of each."""
    seed: NonNegativeInt = 0
    """Of weights and prompts."""
    only: tuple[str, ...] = ()
    """Names of the cases to measure, without the batch; all by default."""
    compiled: bool = False
    """Also `transformers` with its static cache, which it compiles: half a minute and more for each batch size."""
    schedule: bool = True
    """Also what `benchmarks.batching` measures: throughput against static batches, latencies, prefixes, rollouts."""
    before: str = ""
    """A commit whose rollouts are timed beside today's."""
    init: FilePath = ""
    """The run directory whose policy answers in the rollouts; without it they are left out."""
    quick: bool = False
    """A tiny model, a few tokens, one round: whether it runs."""
    json: FilePath = "auto"
    """The file to write; auto is benchmarks/results/DEVICE-decode.json, empty is none."""


def filled_in(config: DecodeConfig) -> DecodeConfig:
    """With the defaults of the device."""
    device = resolve_device(config.device)
    is_gpu = device.type == "cuda"
    if config.quick:
        config = replace(config, shape="minute", batches=config.batches or (1, 3), new_tokens=6, rounds=1)
    return replace(
        config,
        device=str(device),
        shape=config.shape or ("gpt2" if is_gpu else "12m"),
        batches=config.batches or ((1, 16, 64) if is_gpu else (1, 16)),
        json=results_file(config.json, device, "decode"),
    )


# ---- what is measured


def ours(model: Transformer, dtype: str, prompts: list[list[int]], graphs: bool = True) -> Generate:
    def call(new_tokens: int) -> list[list[int]]:
        with resolve_precision(dtype, model.device).context(model.device), _decoding_by(graphs):
            done = engine.generate_ids(
                model, Ids(model.config.vocab_size), prompts, SamplingConfig(max_new_tokens=new_tokens)  # type: ignore[arg-type]
            )  # fmt: skip
        return [completion.ids for completion in done]

    return call


@contextmanager
def _decoding_by(graphs: bool) -> Iterator[None]:
    """The product has no switch for being slow; it is put in here from outside."""
    usual = engine.decoder_of
    if not graphs:
        engine.decoder_of = Decoder
    try:
        yield
    finally:
        engine.decoder_of = usual


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    generate: Generate
    batch: int
    format: str
    """Of the blocks' weights."""
    is_ours: bool
    step_bytes: float
    """What a step must read, on average."""


def cases(config: DecodeConfig) -> dict[str, Case]:
    device, shape = torch.device(config.device), shape_named(config.shape)
    model = random_model(shape, device, config.seed)
    # Integers are multiplied in bfloat16 on a GPU; on a CPU they are what makes float32 faster.
    formats = {"float32": "float32", "bfloat16": "bfloat16", **dict.fromkeys(FORMATS, "auto")}
    if device.type == "cpu":
        formats |= dict.fromkeys(FORMATS, "float32")
    models = dict.fromkeys(formats, model)
    for name in FORMATS:
        models[name] = quantize(random_model(shape, device, config.seed), name)
    theirs = as_transformers(model)
    peers = {} if theirs is None else {"float32": theirs, "bfloat16": deepcopy(theirs).bfloat16()}
    found: dict[str, Case] = {}
    for batch in config.batches:
        prompts = random_prompts(shape, batch, config.new_tokens, config.seed + batch)
        reads = {format: step_bytes(model, prompts, config.new_tokens, format) for format in formats}
        for format, dtype in formats.items():
            found[f"{batch:>3}  {format}"] = Case(
                ours(models[format], dtype, prompts), batch, format, True, reads[format]
            )
            if device.type == "cuda":
                found[f"{batch:>3}  {format}, no graphs"] = Case(
                    ours(models[format], dtype, prompts, graphs=False), batch, format, True, reads[format]
                )
        for format, peer in peers.items():
            name = f"{batch:>3}  transformers, {format}"
            found[name] = Case(by_transformers(peer, prompts), batch, format, False, reads[format])
            if config.compiled:
                call = by_transformers(peer, prompts, cache_implementation="static")
                found[name + ", static cache"] = Case(call, batch, format, False, reads[format])
    return chosen(found, config.only, lambda name: name[5:])


# ---- the measurement


def timed(case: Case, new_tokens: int, device: torch.device) -> tuple[float, list[list[int]]]:
    synchronize(device)
    started = time.perf_counter()
    tokens = case.generate(new_tokens)
    synchronize(device)
    return time.perf_counter() - started, tokens


def summary(name: str, works: dict[str, Case], times: dict[str, list[tuple[float, float]]], config: DecodeConfig,
            rate: float) -> dict[str, Any]:  # fmt: skip
    """The figures of one case: medians, and medians of the ratios within a round."""
    case, n = works[name], config.new_tokens
    whole = [seconds for _, seconds in times[name]]
    activations = case.format if case.format not in FORMATS else "float32" if config.device == "cpu" else "bfloat16"
    step = median(max(seconds - first, 1e-9) / max(n - 1, 1) for first, seconds in times[name])

    def times_faster_than(other: str) -> float | None:
        found = times.get(f"{case.batch:>3}  {other}")
        return median(theirs / ours for (_, theirs), ours in zip(found, whole)) if found else None

    return {
        "tokens_per_second": case.batch * n / median(whole),
        "step_milliseconds": 1e3 * step,
        "step_megabytes": case.step_bytes / 1e6,
        "share_of_limit": case.step_bytes / rate / step,
        "times_float32": times_faster_than("float32"),
        "times_transformers": times_faster_than(f"transformers, {activations}") if case.is_ours else None,
        "each": [case.batch * n / seconds for seconds in whole],
    }


def equality(works: dict[str, Case], tokens: dict[str, list[list[int]]]) -> dict[str, Any]:
    """How many rows of ours are token for token those of `transformers`, where the number format is the same; and to
    those without graphs."""
    found: dict[str, Any] = {}
    for name, case in works.items():
        others = {"transformers": f"{case.batch:>3}  transformers, {case.format}", "no graphs": f"{name}, no graphs"}
        for said, other in others.items():
            if case.is_ours and other in tokens and not name.endswith("no graphs"):
                same = sum(a == b for a, b in zip(tokens[name], tokens[other]))
                found.setdefault(name.strip(), {})[said] = f"{same} of {case.batch}"
    return found


def measure(config: DecodeConfig) -> int:
    config = filled_in(config)
    device, began = torch.device(config.device), time.monotonic()
    works = cases(config)
    rate = copy_rate(device, 1 << (22 if config.quick else 28))
    print(f"a large copy reads and writes {rate / 1e9:,.3g} GB/s", flush=True)
    tokens: dict[str, list[list[int]]] = {}
    for name, case in works.items():
        if tokens and time.monotonic() - began > config.seconds / 2:
            print(f"{name}: no time was left for it", flush=True)
        else:
            tokens[name] = timed(case, config.new_tokens, device)[1]  # to warm up, too
    works = {name: works[name] for name in tokens}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    document: dict[str, Any] = {}
    for round_number in range(config.rounds):
        if round_number and time.monotonic() - began > config.seconds:
            break
        for name, case in works.items():
            times[name].append((timed(case, 1, device)[0], timed(case, config.new_tokens, device)[0]))
        document = {
            **describe(device), "shape": config.shape, "new_tokens": config.new_tokens, "seed": config.seed,
            "rounds": round_number + 1, "copy_bytes_per_second": rate, "equal_rows": equality(works, tokens),
            "results": {name.strip(): summary(name, works, times, config, rate) for name in works},
        }  # fmt: skip
        if config.json:
            write_json(config.json, document)
    for name, found in document["results"].items():
        ratios = "  ".join(
            f"{found[key]:.2f} × {key[6:]}" for key in ("times_float32", "times_transformers") if found[key]
        )
        print(
            f"{name:<36} {found['tokens_per_second']:>10,.0f} tokens/s  step {found['step_milliseconds']:>7.2f} ms  "
            f"limit {found['share_of_limit']:>4.0%}  {ratios}"
        )
    for name, found in document["equal_rows"].items():
        print(f"{name}: equal rows: {', '.join(f'{count} to {said}' for said, count in found.items())}")
    if config.schedule:
        schedule = BatchingConfig(
            device=config.device, shape=config.shape, seed=config.seed, rounds=min(3, config.rounds),
            before=config.before, init=config.init, quick=config.quick,
        )  # fmt: skip
        for document["schedule"] in batching.figures(batching.filled_in(schedule), rate):
            if config.json:
                write_json(config.json, document)
    publish(document, config.json)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: measure(parse(DecodeConfig, sys.argv[1:], "benchmarks.decode"))))
