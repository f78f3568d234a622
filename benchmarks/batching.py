"""What the engine's schedule brings: `python -m benchmarks.batching`.

    throughput   requests of unequal length as they come (continuous batching), against batches in order of arrival that
                 are padded to their longest prompt and end when their longest answer ends: of ours, and of
                 `transformers`; and the share of the paged cache that holds nothing
    latency      time to the first token and between tokens, by rows on their way, and how near a step comes to the time
                 in which memory could be read
    prefixes     a text that all requests begin with, found in the cache or read anew
    rollouts     one of PPO and one of GRPO, and the same in the tree of another commit (--before), in processes that
                 take turns; needs a run directory (--init)

Random weights, the same in all; greedy. Cases take turns in one process, and medians are shown.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import torch

from benchmarks.machine import ROOT, copy_rate, describe, results_file, synchronize
from benchmarks.steps import shape_named
from benchmarks.untrained import Ids, as_transformers, by_transformers, random_model, step_bytes
from instructgpt.errors import UserError
from instructgpt.flags import parse, run_main
from instructgpt.generation.engine import Engine
from instructgpt.generation.request import EngineConfig, Request
from instructgpt.generation.sampling import SamplingConfig
from instructgpt.model.transformer import Transformer
from instructgpt.runtime import resolve_device, resolve_precision
from instructgpt.settings import FilePath, NonNegative, NonNegativeInt, PositiveInt, Settings
from instructgpt.strict_json import to_json, write_json

PARTS = ("throughput", "latency", "prefixes", "rollouts")


@dataclass(frozen=True)
class BatchingConfig(Settings):
    """Measures continuous batching, latencies, shared prefixes and rollouts."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    shape: str = ""
    """The model: 12m (GPT-2's form at 12.3M) or gpt2; gpt2 on CUDA and 12m elsewhere by default."""
    dtype: Literal["", "float32", "bfloat16"] = ""
    """What is computed in; by default bfloat16 on CUDA and float32 elsewhere."""
    parts: tuple[str, ...] = PARTS
    """What to measure: throughput, latency, prefixes, rollouts."""
    requests: PositiveInt = 256
    """Requests of the throughput."""
    context: NonNegativeInt = 0
    """Of the model; 0: 2,048 on CUDA and 512 elsewhere, to which the lengths of prompts and answers are scaled."""
    least: NonNegativeInt = 0
    """Fewest tokens of a prompt, and of an answer; 0: a tenth of the most."""
    most: NonNegativeInt = 0
    """Most tokens of a prompt, and of an answer; 0: 1,024, or half the context where that is less."""
    rows: PositiveInt = 32
    """Rows of a static batch, and most answers on their way in the engine."""
    batches: tuple[PositiveInt, ...] = (1, 4, 16, 64)
    """Rows of the latencies."""
    rounds: PositiveInt = 3
    """Measurements of each case, which take turns."""
    seconds: NonNegative = 3600.0
    """When this time is over, what was measured once is not measured again."""
    seed: NonNegativeInt = 0
    """Of weights, prompts and lengths."""
    before: str = ""
    """A commit whose rollouts are timed, too."""
    init: FilePath = ""
    """The run directory whose policy answers in the rollouts; without it they are left out."""
    quick: bool = False
    """A tiny model, few requests, one round: whether it runs."""
    json: FilePath = "auto"
    """The file to write; auto is benchmarks/results/DEVICE-batching.json, empty is none."""


def filled_in(config: BatchingConfig) -> BatchingConfig:
    """With the defaults of the device. Raises UserError for parts that there are not."""
    if wrong := [part for part in config.parts if part not in PARTS]:
        raise UserError(f"--parts {wrong[0]} is unknown; choose from: {', '.join(PARTS)}")
    device = resolve_device(config.device)
    if config.quick:
        config = replace(config, shape="minute", context=64, requests=6, rows=3, batches=(1, 2), rounds=1)
    shape = config.shape or ("gpt2" if device.type == "cuda" else "12m")
    context = config.context or (2048 if device.type == "cuda" else 512)
    most = config.most or min(1024, context // 2)
    if 2 * most > context:
        raise UserError(f"--most {most}: prompt and answer need {2 * most} tokens, the context has fewer")
    return replace(
        config, device=str(device), dtype=config.dtype or ("bfloat16" if device.type == "cuda" else "float32"),
        shape=shape, context=context, most=most, least=min(most, config.least or -(-most // 10)),
        json=results_file(config.json, device, "batching"),
    )  # fmt: skip


class Job(NamedTuple):
    """A request of the throughput."""

    ids: list[int]
    new_tokens: int


def jobs(config: BatchingConfig) -> list[Job]:
    generator = torch.Generator().manual_seed(config.seed)
    lengths = torch.randint(config.least, config.most + 1, (config.requests, 2), generator=generator).tolist()
    vocabulary = shape_named(config.shape).vocab_size
    return [Job(torch.randint(1, vocabulary - 1, (prompt,), generator=generator).tolist(), n) for prompt, n in lengths]


# ---- one run of the engine, watched


class Watched(NamedTuple):
    """What one run of the engine showed."""

    seconds: float
    tokens: list[list[int]]
    first: list[float]
    """Seconds to each request's first token, all having come at once."""
    between: list[float]
    """Seconds between two tokens of a request."""
    waste: list[float]
    """Share of the blocks in use that holds no token, at each step."""
    prefix_hits: int


def engine_for(model: Transformer, asked: Sequence[Job], rows: int, prefix_cache: bool = False) -> Engine:
    longest = max(len(job.ids) + job.new_tokens for job in asked)
    blocks = -(-longest // EngineConfig().block_size) * (rows + 1)
    config = EngineConfig(blocks=blocks, max_rows=rows, prefix_cache=prefix_cache, longest=longest)
    return Engine(model, Ids(model.config.vocab_size), config)  # type: ignore[arg-type]


def run(engine: Engine, asked: Sequence[Job], step: Callable[[], None] = lambda: None) -> Watched:
    """All requests at once; `step` is called after each step."""
    started = time.perf_counter()
    place = {engine.add(Request(tuple(job.ids), SamplingConfig(job.new_tokens), raw=True)): i
             for i, job in enumerate(asked)}  # fmt: skip
    tokens: list[list[int]] = [[] for _ in asked]
    last, first, between, waste = [started] * len(asked), [0.0] * len(asked), list[float](), list[float]()
    while engine.busy:
        updates = engine.step()
        now = time.perf_counter()
        for update in updates:
            i = place[update.request]
            if tokens[i]:
                between.append(now - last[i])
            else:
                first[i] = now - started
            last[i] = now
            tokens[i] += [token.id for token in update.tokens]
        waste += _waste(engine, asked, tokens)
        step()
    return Watched(time.perf_counter() - started, tokens, first, between, waste, engine.stats().prefix_hit_tokens)


def _waste(engine: Engine, asked: Sequence[Job], tokens: list[list[int]]) -> list[float]:
    """Of this step; none where a prompt is half read, for its tokens are not known here."""
    stats = engine.stats()
    held = [len(job.ids) + len(said) - 1 for job, said in zip(asked, tokens) if 0 < len(said) < job.new_tokens]
    if not held or stats.running != len(held):
        return []
    return [1 - sum(held) / (stats.blocks_used * engine.config.block_size)]


# ---- throughput


def static(model: Transformer, asked: Sequence[Job], rows: int) -> None:
    """Batches in order of arrival, prompts padded to the longest, every row computed until the longest answer ends."""
    for start in range(0, len(asked), rows):
        batch = asked[start : start + rows]
        longest, new_tokens = max(len(job.ids) for job in batch), max(job.new_tokens for job in batch)
        padded = [Job([0] * (longest - len(job.ids)) + job.ids, new_tokens) for job in batch]
        engine = engine_for(model, padded, rows)
        for job in padded:
            engine.add(Request(tuple(job.ids), SamplingConfig(new_tokens), raw=True))
        while engine.busy:
            engine.step()


def throughput(config: BatchingConfig, model: Transformer) -> dict[str, Any]:
    asked = jobs(config)
    wanted = sum(job.new_tokens for job in asked)
    seen: list[Watched] = []
    cases: dict[str, Callable[[], Any]] = {
        "continuous": lambda: seen.append(run(engine_for(model, asked, config.rows), asked)),
        "static": lambda: static(model, asked, config.rows),
    }
    theirs = as_transformers(model)
    if theirs is not None:
        theirs = theirs.to(getattr(torch, config.dtype))

        def peer() -> None:
            for start in range(0, len(asked), config.rows):
                batch = asked[start : start + config.rows]
                by_transformers(theirs, [job.ids for job in batch])(max(job.new_tokens for job in batch))

        cases["transformers, static"] = peer
    times, began = {name: list[float]() for name in cases}, time.monotonic()
    for _ in range(config.rounds):
        for name, case in cases.items():
            if times[name] and time.monotonic() - began > config.seconds:
                continue
            synchronize(model.device)
            started = time.perf_counter()
            case()
            synchronize(model.device)
            times[name].append(time.perf_counter() - started)
            print(f"{name}: {wanted} tokens in {times[name][-1]:.1f} s", flush=True)
    waste = [share for each in seen for share in each.waste]
    results = {
        name: {
            "tokens_per_second": wanted / median(seconds), "seconds": seconds,
            "times_static": median(slow / fast for slow, fast in zip(times["static"], seconds)),
        }
        for name, seconds in times.items()
    }  # fmt: skip
    for name, found in results.items():
        print(f"{name:<24} {found['tokens_per_second']:>9,.0f} tokens/s  {found['times_static']:.2f} × static")
    mean = sum(waste) / len(waste) if waste else None
    if mean is not None:
        print(f"waste of the cache: {mean:.1%} on average, {max(waste):.1%} at most")
    alone = [run(engine_for(model, [job], 1), [job]).tokens[0] for job in asked[:4]]
    equal = sum(a == b for a, b in zip(alone, seen[0].tokens))
    print(f"of 4 answers {equal} are token for token those of the request alone")
    return {
        "requests": len(asked), "rows": config.rows, "new_tokens": wanted, "results": results, "waste": mean,
        "waste_most": max(waste, default=None), "equal_alone": f"{equal} of {len(alone)}",
    }  # fmt: skip


# ---- latency, prefixes


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def latency(config: BatchingConfig, model: Transformer, rate: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for batch in config.batches:
        asked = [replace_length(job, config) for job in jobs(replace(config, requests=batch))]
        seen = [run(engine_for(model, asked, batch), asked) for _ in range(config.rounds)]
        first, between = [s for each in seen for s in each.first], [s for each in seen for s in each.between]
        reads = step_bytes(model, [job.ids for job in asked], asked[0].new_tokens, config.dtype)
        found[str(batch)] = {
            "first_p50": median(first), "first_p99": percentile(first, 0.99), "between_p50": median(between),
            "between_p99": percentile(between, 0.99), "share_of_limit": reads / rate / median(between),
        }  # fmt: skip
        print(f"{batch:>3} rows  first token {1e3 * median(first):>8.2f} ms (p99 {1e3 * percentile(first, 0.99):.2f})  "
              f"between {1e3 * median(between):>7.2f} ms (p99 {1e3 * percentile(between, 0.99):.2f})  "
              f"limit {found[str(batch)]['share_of_limit']:.0%}")  # fmt: skip
    return found


def replace_length(job: Job, config: BatchingConfig) -> Job:
    """The same with an answer of middle length, so that all rows are on their way together."""
    return job._replace(new_tokens=max(2, (config.least + config.most) // 2))


def prefixes(config: BatchingConfig, model: Transformer) -> dict[str, Any]:
    """Requests that begin with the same text, three quarters of the longest prompt, one after the other."""
    shared = jobs(replace(config, requests=1, least=config.most))[0].ids[: config.most * 3 // 4]
    room = config.most - len(shared)
    asked = [Job(shared + job.ids[: max(1, room)], max(2, config.least)) for job in jobs(config)]
    found: dict[str, Any] = {"prompt_tokens": sum(len(job.ids) for job in asked)}
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(config.rounds):
        for keeps in times:
            engine = engine_for(model, asked, config.rows, prefix_cache=keeps)
            seen = run(engine, asked)
            times[keeps].append(seen.seconds)
            if keeps:
                found["hit_tokens"] = seen.prefix_hits
    found["hit_share"] = found["hit_tokens"] / found["prompt_tokens"]
    found["times_without"] = median(b / a for a, b in zip(times[True], times[False]))
    print(f"prefixes: {found['hit_share']:.0%} of the prompts' tokens found, {found['times_without']:.2f} × without")
    return found


# ---- rollouts


def rollouts(config: BatchingConfig) -> dict[str, Any] | None:
    if not config.init:
        print("rollouts: left out, give --init RUN")
        return None
    with tempfile.TemporaryDirectory() as folder:
        trees = {"now": ROOT}
        if config.before:
            archive = subprocess.run(["git", "-C", str(ROOT), "archive", config.before], capture_output=True)
            if archive.returncode:
                raise UserError(f"--before {config.before}: {archive.stderr.decode().strip()}")
            with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
                tar.extractall(folder, filter="data")
            trees["before"] = Path(folder)
        seen: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
        for _ in range(config.rounds):
            for name, tree in trees.items():
                seen[name].append(_rollout(tree, config))
    found: dict[str, Any] = {}
    for stage in seen["now"][0]:
        seconds = {name: [min(each[stage]["seconds"]) for each in runs] for name, runs in seen.items()}
        found[stage] = {"tokens": seen["now"][0][stage]["tokens"], "seconds": seconds["now"]}
        told = f"{stage}: {median(seconds['now']):.2f} s a rollout"
        if "before" in seen:
            pairs = list(zip(seen["now"][0][stage]["answers"], seen["before"][0][stage]["answers"]))
            found[stage] |= {
                "before": seconds["before"], "equal_answers": f"{sum(a == b for a, b in pairs)} of {len(pairs)}",
                "times_before": median(b / a for a, b in zip(seconds["now"], seconds["before"])),
            }  # fmt: skip
            told += f", {found[stage]['times_before']:.2f} × before, {found[stage]['equal_answers']} answers equal"
        print(told)
    return found


def _rollout(tree: Path, config: BatchingConfig) -> dict[str, Any]:
    script = [sys.executable, str(ROOT / "benchmarks" / "rollout_time.py"), str(Path(config.init).resolve()), "2"]
    done = subprocess.run(
        [*script, "0.1" if config.quick else "1"], cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise UserError(f"a rollout in {tree.name} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def figures(config: BatchingConfig, rate: float) -> Iterator[dict[str, Any]]:
    """Those measured so far, by part, after each part; config: filled in; rate: bytes a second of a large copy."""
    device = torch.device(config.device)
    model = random_model(replace(shape_named(config.shape), context=config.context), device, config.seed)
    found: dict[str, Any] = {
        name: getattr(config, name) for name in ("shape", "dtype", "seed", "rounds", "least", "most")
    }
    parts: dict[str, Callable[[], Any]] = {
        "throughput": lambda: throughput(config, model),
        "latency": lambda: latency(config, model, rate),
        "prefixes": lambda: prefixes(config, model),
        "rollouts": lambda: rollouts(config),
    }
    with resolve_precision(config.dtype, device).context(device):
        for name in config.parts:
            found[name] = parts[name]()
            yield found


def measure(config: BatchingConfig) -> int:
    config = filled_in(config)
    device = torch.device(config.device)
    rate = copy_rate(device, 1 << (22 if config.quick else 28))
    document = {**describe(device), "copy_bytes_per_second": rate}
    for found in figures(config, rate):
        document |= found
        if config.json:
            write_json(config.json, document)
    print(to_json(document))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: measure(parse(BatchingConfig, sys.argv[1:], "benchmarks.batching"))))
