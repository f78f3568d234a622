"""What an operator sees: figures for Prometheus, and a line of JSON for each request.

The names of the figures begin with `instructgpt_`; `alarms.yml` beside this file has rules that watch them. Prompts and
answers are in the log only where that was asked for, and then masked (`privacy.py`).
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from instructgpt.serving.loop import EngineLoop
from instructgpt.serving.problems import Problem
from instructgpt.strict_json import to_json

PREFIX = "instructgpt_"
REFUSALS = ("key", "rate", "queue", "size", "request", "safety", "unavailable")
"""Why a request is refused: no right key; beyond its key's limits; the queue is full; the body or prompt is too large;
it says what cannot be done; a hook found it harmful; the service is starting or stopping."""
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_GAUGES = {
    "running": "Answers that have a place in the cache",
    "waiting": "Answers that wait for one",
    "blocks_used": "Blocks of the cache in use",
    "blocks_total": "Blocks of the cache",
}
_COUNTERS = {
    "prompt_tokens": "Tokens of prompts",
    "prefix_hit_tokens": "Tokens of prompts that were found in the cache",
    "generated": "Tokens that were generated",
    "drafted": "Tokens that were guessed ahead",
    "accepted": "Tokens that were guessed ahead and right",
    "preempted": "Answers that lost their place in the cache to an older one",
}


class _OfTheEngine:
    """What the engine counts itself, read when somebody asks."""

    def __init__(self, loop: EngineLoop):
        self._loop = loop

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(f"{PREFIX}ready", "Whether requests are taken", float(self._loop.is_ready))
        yield CounterMetricFamily(f"{PREFIX}engine_failures", "Steps that ended in an error", self._loop.failures)
        stats = self._loop.stats
        for name, meaning in _GAUGES.items():
            yield GaugeMetricFamily(PREFIX + name, meaning, getattr(stats, name))
        for name, meaning in _COUNTERS.items():
            yield CounterMetricFamily(PREFIX + name, meaning, getattr(stats, name))


@dataclass
class Record:
    """One request, as it is written down."""

    path: str
    id: str = field(default_factory=lambda: f"req-{uuid.uuid4().hex}")
    key: str = ""
    """The name of the key."""
    model: str = ""
    stream: bool = False
    prompt_tokens: int = 0
    generated_tokens: int = 0
    status: int = 0
    """Of HTTP; 499 where the client went away before the end."""
    finish: str = ""
    error: str = ""
    """The sentence that the client was told."""
    refused: str = ""
    """Which of REFUSALS, if any."""
    begun: float = field(default_factory=time.time)
    texts: dict[str, str] = field(default_factory=dict)
    """Prompt and answer, masked, where they are asked for."""
    _start: float = field(default_factory=time.monotonic)
    _first: float | None = None
    _last: float | None = None

    def tell(self, problem: Problem) -> None:
        """What the client is told."""
        self.status, self.error = problem.status, problem.message
        by_status = {401: "key", 413: "size", 429: "rate", 500: "", 503: "unavailable"}
        by_code = {"queue_full": "queue", "context_length_exceeded": "size"}
        self.refused = by_code.get(problem.code or "") or by_status.get(problem.status, "request")

    def saw_tokens(self, telemetry: Telemetry, tokens: int) -> None:
        """Some tokens of an answer have come."""
        now = time.monotonic()
        if self._first is None:
            self._first = now - self._start
            telemetry.first_token.observe(self._first)
        elif self._last is not None:
            telemetry.between_tokens.observe((now - self._last) / max(tokens, 1))
        self._last = now
        self.generated_tokens += tokens

    def line(self) -> dict[str, Any]:
        return {
            "time": round(self.begun, 3), "id": self.id, "key": self.key, "path": self.path, "model": self.model,
            "stream": self.stream, "status": self.status, "finish": self.finish, "error": self.error,
            "prompt_tokens": self.prompt_tokens, "generated_tokens": self.generated_tokens,
            "first_token_s": None if self._first is None else round(self._first, 4),
            "seconds": round(time.monotonic() - self._start, 4), **self.texts,
        }  # fmt: skip

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start


class Telemetry:
    """The figures of one service, and its log."""

    def __init__(self, loop: EngineLoop, write: Callable[[str], None] | None = None):
        """write: takes a line of the log; standard error by default."""
        self._write = write or (lambda line: print(line, file=sys.stderr, flush=True))
        self.registry = CollectorRegistry()
        self.registry.register(_OfTheEngine(loop))  # pyright: ignore[reportArgumentType]

        def histogram(name: str, meaning: str) -> Histogram:
            return Histogram(PREFIX + name, meaning, buckets=_SECONDS, registry=self.registry)

        self.first_token = histogram("time_to_first_token_seconds", "From a request to its first token")
        self.between_tokens = histogram("time_between_tokens_seconds", "From one token of a request to the next")
        self.duration = histogram("request_seconds", "From a request to the end of its answer")
        self.requests = Counter(f"{PREFIX}requests", "Requests by status", ["status"], registry=self.registry)
        self.refusals = Counter(f"{PREFIX}refusals", "Requests that were refused", ["reason"], registry=self.registry)
        self.errors = Counter(f"{PREFIX}errors", "Requests that failed by the service's fault", registry=self.registry)
        self.complaints = Counter(f"{PREFIX}complaints", "Keys or hooks that are wrong", registry=self.registry)
        for reason in REFUSALS:
            self.refusals.labels(reason)  # so that a rate can be taken from the beginning

    def finished(self, record: Record) -> None:
        """Counts a request and writes its line."""
        self.requests.labels(str(record.status)).inc()
        self.duration.observe(record.seconds)
        if record.refused:
            self.refusals.labels(record.refused).inc()
        if record.status == 500:
            self.errors.inc()
        self._write(to_json(record.line()))

    def complain(self, message: str) -> None:
        """A line of the log that is about no request: something that the operator should set right."""
        self.complaints.inc()
        self._write(to_json({"time": round(time.time(), 3), "message": message}))

    def exposition(self) -> bytes:
        """All figures in Prometheus's text format."""
        return generate_latest(self.registry)
