"""The figures are right, and each alarm fires in its case and not before.

Prometheus itself is not needed: `value` below evaluates what of its language the rules use, on figures as they are
scraped from /metrics before and after.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.serving.conftest import Live, Start

pytest.importorskip("prometheus_client", reason="prometheus-client is in the extra `serve`")
yaml = pytest.importorskip("yaml", reason="the rules are YAML")

RULES = Path("instructgpt/serving/alarms.yml")
Figures = dict[str, float]


def rules() -> dict[str, dict[str, Any]]:
    found = yaml.safe_load((Path(__file__).parents[2] / RULES).read_text(encoding="utf-8"))
    return {rule["alert"]: rule for group in found["groups"] for rule in group["rules"]}


class Scrapes(NamedTuple):
    """Figures at the beginning and at the end of the interval that a rule looks at."""

    before: Figures
    after: Figures
    seconds: float = 300.0

    def increase(self, name: str) -> float:
        return self.after[name] - self.before.get(name, 0)


def value(expression: str, scrapes: Scrapes) -> Any:
    """What an expression of PromQL is: a number, or, of a comparison, whether it holds. A name is a figure with its
    labels; `[5m]` is the whole interval; a division by 0 is NaN, as there."""
    named: dict[str, str] = {}

    def name(match: re.Match[str]) -> str:
        key = f"_{len(named)}"
        named[key] = match[0].split("[")[0]
        return key

    python = re.sub(r"instructgpt_\w+(\{[^}]*\})?(\[\w+\])?", name, expression)
    return _value(ast.parse(python, mode="eval").body, named, scrapes)


def _value(node: ast.AST, named: dict[str, str], scrapes: Scrapes) -> Any:
    def of(inner: ast.AST) -> Any:
        return _value(inner, named, scrapes)

    match node:
        case ast.Constant(value=number):
            return number
        case ast.Name(id=key):
            return scrapes.after[named[key]]
        case ast.BoolOp(op=ast.And(), values=parts):
            return all(of(part) for part in parts)
        case ast.Compare(left=left, ops=[operator], comparators=[right]):
            a, b = of(left), of(right)
            return a > b if isinstance(operator, ast.Gt) else a == b
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            a, b = of(left), of(right)
            return a / b if b else float("nan")
        case ast.Call(func=ast.Name(id="increase"), args=[ast.Name(id=key)]):
            return scrapes.increase(named[key])
        case ast.Call(func=ast.Name(id="rate"), args=[ast.Name(id=key)]):
            return scrapes.increase(named[key]) / scrapes.seconds
        case ast.Call(
            func=ast.Name(id="histogram_quantile"), args=[ast.Constant(value=q), ast.Call(args=[ast.Name(id=key)])]
        ):
            return quantile(q, named[key], scrapes)
    raise AssertionError(f"the rules use more of PromQL than this reads: {ast.dump(node)}")


def quantile(q: float, name: str, scrapes: Scrapes) -> float:
    """As Prometheus has it: linear within the bucket in which it falls, the largest bound where that is infinite."""
    buckets = {
        float(found[1].replace("+Inf", "inf")): scrapes.increase(key)
        for key in scrapes.after
        if (found := re.fullmatch(re.escape(name) + r'\{le="([^"]+)"\}', key))
    }
    total = buckets[float("inf")]
    below, before = 0.0, 0.0
    for bound, count in sorted(buckets.items()):
        if total and count >= q * total:
            return below if bound == float("inf") else below + (bound - below) * (q * total - before) / (count - before)
        below, before = bound, count
    return float("nan")


# ---- the cases: what is done to a service, so that the alarm of this name must fire


class Dials:
    """An engine's figures, to be turned by hand."""

    def __init__(self, live: Live):
        self._loop = live.service.loop

    def turn(self, **figures: int) -> None:
        self._loop.stats = self._loop.stats._replace(**figures)


def refuse(reason: str, times: int) -> Callable[[Live], None]:
    return lambda live: live.service.telemetry.refusals.labels(reason).inc(times)


def turn(**figures: int) -> Callable[[Live], None]:
    return lambda live: Dials(live).turn(**figures)


def observe(name: str, seconds: float) -> Callable[[Live], None]:
    return lambda live: [getattr(live.service.telemetry, name).observe(seconds) for _ in range(10)] and None


def fail(live: Live) -> None:
    for _ in range(3):
        live.service.telemetry.errors.inc()
        live.service.telemetry.duration.observe(1)


CASES: dict[str, Callable[[Live], None]] = {
    "NotReady": lambda live: setattr(live.service.loop, "is_broken", True),
    "EngineFails": lambda live: setattr(live.service.loop, "failures", 1),
    "Errors": fail,
    "Stalled": turn(running=3),
    "QueueFull": refuse("queue", 11),
    "QueueLong": turn(waiting=33),
    "CacheFull": turn(blocks_used=96, blocks_total=100),
    "ComputedAgain": turn(preempted=100),
    "FirstTokenLate": observe("first_token", 8),
    "TokensSlow": observe("between_tokens", 0.9),
    "WrongKeys": refuse("key", 51),
    "ManyRefusals": refuse("safety", 101),
    "KeyFileWrong": lambda live: live.service.telemetry.complain("keys:3: what is that?"),
}


@pytest.fixture(scope="module")
def watched(start: Start) -> Any:
    with start() as live:
        yield live


def test_every_alarm_has_its_case() -> None:
    assert set(CASES) == set(rules())
    assert all(
        set(rule) <= {"alert", "expr", "for", "annotations"} and rule["annotations"]["summary"]
        for rule in rules().values()
    )


def firing(scrapes: Scrapes) -> list[str]:
    return [name for name, rule in rules().items() if value(rule["expr"], scrapes)]


@pytest.mark.parametrize("name", CASES)
def test_an_alarm_fires_in_its_case_and_not_before(watched: Live, name: str) -> None:
    loop = watched.service.loop
    was = loop.stats, loop.is_broken, loop.failures
    before = watched.figures()
    watched.ask()
    watched.wait_until(lambda: not loop.stats.running)
    well = watched.figures()
    assert firing(Scrapes(before, well)) == []
    CASES[name](watched)
    assert firing(Scrapes(well, watched.figures())) == [name]
    loop.stats, loop.is_broken, loop.failures = was


# ---- figures and log


def test_figures_are_those_of_the_requests(start: Start) -> None:
    with start() as live:
        answers = [live.ask(), live.ask("/v1/completions", prompt="the cat", n=2)]
        live.call("POST", "/v1/chat/completions", {"model": "small"})
        live.wait_until(lambda: len(live.log) == 3)
        found = live.figures()
        assert found["instructgpt_generated_total"] == sum(answer["usage"]["completion_tokens"] for answer in answers)
        assert found["instructgpt_prompt_tokens_total"] == sum(answer["usage"]["prompt_tokens"] for answer in answers)
        assert found['instructgpt_requests_total{status="200"}'] == 2
        assert found['instructgpt_requests_total{status="400"}'] == 1
        assert found['instructgpt_refusals_total{reason="request"}'] == 1
        assert found["instructgpt_time_to_first_token_seconds_count"] == 2
        assert found["instructgpt_running"] == found["instructgpt_waiting"] == 0
        assert found["instructgpt_ready"] == 1
        line = live.log[0]
        assert line["prompt_tokens"] == answers[0]["usage"]["prompt_tokens"] and line["finish"] in ("stop", "length")
        assert line["seconds"] >= line["first_token_s"] > 0 and line["key"] == "" and "prompt" not in line


def test_what_is_served_is_prometheus_format(live: Live) -> None:
    status, headers, body = live.call("GET", "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in body.decode().splitlines():
        assert re.fullmatch(r"#.*|[a-z_]+(\{[a-z]+=\"[^\"]*\"\})? [-+.\deInf]+", line), line


def test_health_and_readiness(start: Start) -> None:
    with start() as live:
        assert live.call("GET", "/health")[0] == live.call("GET", "/ready")[0] == 200
        live.service.loop.is_broken = True
        assert live.call("GET", "/health")[0] == live.call("GET", "/ready")[0] == 503
        status, headers, body = live.call("POST", "/v1/completions", {"model": "small", "prompt": "a"})
        assert status == 503 and headers["retry-after"] and json.loads(body)["error"]["code"] == "unavailable"


def test_texts_are_logged_where_asked_for_and_masked(start: Start) -> None:
    from instructgpt.serving.options import Options

    with start(Options(log_texts=True)) as live:
        live.ask(messages=[{"role": "user", "content": "write to anna@example.com about 鸟"}])
        live.wait_until(lambda: bool(live.log))
        assert "anna@example.com" not in json.dumps(live.log)
        assert "write to" in live.log[0]["prompt"] and "鸟" in live.log[0]["prompt"] and "answer" in live.log[0]
