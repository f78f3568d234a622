"""How a service stands up to load: `python -m benchmarks.service`.

Requests come at random times (a Poisson process), whether or not the ones before are answered: an open loop, as
strangers are. The client is OpenAI's own, streaming. Rates double until some are refused, then one more; at each are
shown what was answered, refused by 429 and lost, the time to the first token and between tokens, and tokens a second.
Nothing may be lost.
"""

from __future__ import annotations

import asyncio
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import ROOT, describe, publish, results_file
from benchmarks.untrained import random_run
from instructgpt.config import ModelConfig
from instructgpt.errors import UserError
from instructgpt.flags import parse, run_main
from instructgpt.settings import FilePath, NonNegativeInt, Positive, PositiveInt, Settings

_SHAPE = ModelConfig(vocab_size=320, context=512, layers=4, width=128, heads=4)
"""What is served where no run is named."""


@dataclass(frozen=True)
class ServiceConfig(Settings):
    """Measures a service at rising rates, up to refusal."""

    model: FilePath = ""
    """The run directory to serve; empty is a small one of random weights."""
    url: str = ""
    """A service that runs already, as http://127.0.0.1:8000; empty starts one."""
    first_rate: Positive = 1.0
    """Requests a second to begin with."""
    most_rates: PositiveInt = 10
    """Rates at most, each twice the one before."""
    seconds: Positive = 20.0
    """How long requests come at each rate."""
    max_tokens: PositiveInt = 64
    """Longest answer; each is drawn from an eighth of it on."""
    max_rows: PositiveInt = 16
    """Answers on their way at a time, of the service that is started."""
    max_queue: PositiveInt = 32
    """Requests that may wait there."""
    seed: NonNegativeInt = 0
    """Of what is asked, and when."""
    json: FilePath = "auto"
    """The file to write; auto is benchmarks/results/DEVICE-service.json, empty is none."""


@dataclass
class Outcome:
    """What became of one request; seconds, to and between pieces of text."""

    kind: str
    """answered, refused (429), or lost: anything else."""
    first: float = 0.0
    whole: float = 0.0
    between: list[float] = field(default_factory=list)
    tokens: int = 0
    why: str = ""


@contextmanager
def served(model: Path, config: ServiceConfig) -> Iterator[str]:
    """The address of a service in a process of its own."""
    words = [sys.executable, "-m", "instructgpt", "serve", "--model", str(model), "--port", "0",
             "--max-rows", str(config.max_rows), "--max-queue", str(config.max_queue)]  # fmt: skip
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout
    try:
        found = re.search(r"http://\S+", process.stdout.readline())
        if not found:
            raise UserError(f"the service did not start; see: {' '.join(words[1:])}")
        yield found[0]
    finally:
        process.terminate()
        process.wait()


# ---- the load


async def ask(client: Any, model: str, body: dict[str, Any]) -> Outcome:
    import openai

    started = last = time.monotonic()
    outcome = Outcome("lost")
    try:
        usage = {"include_usage": True}
        stream = await client.chat.completions.create(model=model, stream=True, stream_options=usage, **body)
        reason = None
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                now = time.monotonic()
                if outcome.first:
                    outcome.between.append(now - last)
                else:
                    outcome.first = now - started
                last = now
            outcome.tokens = chunk.usage.completion_tokens if chunk.usage else 0
            reason = chunk.choices[0].finish_reason or reason if chunk.choices else reason
        outcome.kind = "answered" if reason else "lost"
        outcome.why = "" if reason else "the stream ended without a reason"
    except openai.RateLimitError:
        outcome.kind = "refused"
    except openai.OpenAIError as error:
        outcome.why = repr(error)
    outcome.whole = time.monotonic() - started
    return outcome


async def open_load(client: Any, model: str, rate: float, config: ServiceConfig) -> list[Outcome]:
    """Every request that came in `config.seconds`, after the last is done with."""
    drawn, tasks = random.Random(f"{config.seed} {rate}"), list[asyncio.Task[Outcome]]()
    due, started = 0.0, time.monotonic()
    while (due := due + drawn.expovariate(rate)) < config.seconds:
        await asyncio.sleep(max(0.0, started + due - time.monotonic()))
        words = " ".join(drawn.choice(["the", "cat", "saw", "red", "birds"]) for _ in range(drawn.randint(1, 60)))
        body = {"messages": [{"role": "user", "content": words}], "seed": drawn.randrange(1000),
                "max_tokens": drawn.randint(-(-config.max_tokens // 8), config.max_tokens)}  # fmt: skip
        tasks.append(asyncio.create_task(ask(client, model, body)))
    return await asyncio.gather(*tasks)


def percentile(values: Sequence[float], share: float) -> float | None:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else None


def summary(rate: float, outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """seconds: from the first request to the last answer."""
    answered = [each for each in outcomes if each.kind == "answered"]
    kinds = {kind: sum(each.kind == kind for each in outcomes) for kind in ("answered", "refused", "lost")}
    found: dict[str, Any] = {
        "rate": rate,
        **kinds,
        "tokens_per_second": sum(each.tokens for each in answered) / seconds,
    }
    times = {
        "first": [each.first for each in answered if each.first], "whole": [each.whole for each in answered],
        "between": [gap for each in answered for gap in each.between],
        "refusal": [each.whole for each in outcomes if each.kind == "refused"],
    }  # fmt: skip
    for name, values in times.items():
        found |= {f"{name}_p50": percentile(values, 0.5), f"{name}_p99": percentile(values, 0.99)}
    found["why_lost"] = sorted({each.why for each in outcomes if each.kind == "lost"})[:3]
    return found


def shown(found: dict[str, Any]) -> str:
    def milliseconds(name: str) -> str:
        value = found[name]
        return "      -" if value is None else f"{1e3 * value:>7,.0f}"

    counts = "  ".join(f"{kind} {found[kind]:>5}" for kind in ("answered", "refused", "lost"))
    times = "  ".join(
        f"{told} {milliseconds(f'{name}_p50')} ms (p99 {milliseconds(f'{name}_p99')})"
        for told, name in (("first token", "first"), ("between", "between"))
    )
    return f"{found['rate']:>7.1f}/s  {counts}  {times}  {found['tokens_per_second']:>7,.0f} tokens/s"


async def rising(address: str, config: ServiceConfig) -> list[dict[str, Any]]:
    try:
        import openai
    except ImportError:
        raise UserError("OpenAI's client is not installed; pip install openai") from None
    found: list[dict[str, Any]] = []
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=600) as client:
        model = (await client.models.list()).data[0].id
        await ask(client, model, {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 4})  # warms up
        was_refused = False
        for i in range(config.most_rates):
            rate, started = config.first_rate * 2**i, time.monotonic()
            outcomes = await open_load(client, model, rate, config)
            found.append(summary(rate, outcomes, time.monotonic() - started))
            print(shown(found[-1]), flush=True)
            if was_refused:
                break
            was_refused = found[-1]["refused"] > 0
    return found


def measure(config: ServiceConfig) -> int:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.url:
        rates = asyncio.run(rising(config.url.rstrip("/"), config))
    else:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(config.model) if config.model else random_run(Path(folder) / "small", _SHAPE)
            with served(model, config) as address:
                rates = asyncio.run(rising(address, config))
    document = {
        **describe(device), "model": "/".join(Path(config.model).parts[-2:]) or "4 layers of 128, random",
        "seed": config.seed,
        "seconds": config.seconds, "max_rows": config.max_rows, "max_queue": config.max_queue, "rates": rates,
        "lost": sum(each["lost"] for each in rates),
    }  # fmt: skip
    publish(document, results_file(config.json, device, "service"))
    return 1 if document["lost"] else 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: measure(parse(ServiceConfig, sys.argv[1:], "benchmarks.service"))))
