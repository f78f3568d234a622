"""An open load on a service: requests come when they come, whether or not the ones before are answered."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass
from typing import Any

DONE, REFUSED, LOST = "done", "refused", "lost"


@dataclass
class Outcome:
    """What became of one request."""

    kind: str
    """Answered to its end; told by 429 and Retry-After to come again; anything else."""
    first: float = 0.0
    """Seconds to the first token."""
    whole: float = 0.0
    """Seconds to the end."""
    why: str = ""


async def ask(port: int, body: dict[str, Any], seconds: float = 120) -> Outcome:
    """One streamed request on a connection of its own."""
    try:
        return await asyncio.wait_for(_ask(port, body), seconds)
    except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
        return Outcome(LOST, why=repr(error))


async def _ask(port: int, body: dict[str, Any]) -> Outcome:
    sent = json.dumps({**body, "stream": True}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    begun = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(sent)}\r\n\r\n".encode() + sent)
        answer = await reader.readuntil(b"\r\n\r\n")
        first = 0.0
        while some := await reader.read(65536):
            if not first and b'"content":"' in some.replace(b'"content":""', b""):
                first = time.monotonic() - begun
            answer += some
    finally:
        writer.close()
    whole = time.monotonic() - begun
    if b" 200 " in answer[:15] and b"data: [DONE]\n\n" in answer:
        return Outcome(DONE, first or whole, whole)
    if b" 429 " in answer[:15] and b"retry-after: " in answer:
        return Outcome(REFUSED, whole=whole)
    return Outcome(LOST, why=answer[:300].decode("utf-8", "replace"))


def request(rng: random.Random, model: str) -> dict[str, Any]:
    """Of mixed length, drawn at random."""
    words = " ".join(rng.choice(["the", "cat", "saw", "red", "birds", "near"]) for _ in range(rng.randint(1, 40)))
    said = [{"role": "user", "content": words}]
    return {"model": model, "messages": said, "max_tokens": rng.randint(4, 48), "seed": rng.randrange(1000)}


async def closed(port: int, model: str, at_once: int, seconds: float, seed: int = 0) -> float:
    """Requests a second that are answered when so many are always under way: the capacity."""
    rng, until = random.Random(seed), time.monotonic() + seconds
    done = 0

    async def worker() -> None:
        nonlocal done
        while time.monotonic() < until:
            outcome = await ask(port, request(rng, model))
            done += outcome.kind == DONE and time.monotonic() < until

    await asyncio.gather(*(worker() for _ in range(at_once)))
    return done / seconds


async def open_load(port: int, model: str, rate: float, seconds: float, seed: int = 1) -> list[Outcome]:
    """Requests at random times, `rate` a second on average (a Poisson process)."""
    rng, tasks = random.Random(seed), []
    due, begun = 0.0, time.monotonic()
    while (due := due + rng.expovariate(rate)) < seconds:
        await asyncio.sleep(max(0.0, begun + due - time.monotonic()))
        tasks.append(asyncio.create_task(ask(port, request(rng, model))))
    return await asyncio.gather(*tasks)


def percentile(values: list[float], p: float) -> float:
    return sorted(values)[min(len(values) - 1, int(p * len(values)))] if values else float("nan")
