"""The engine's thread: full queues, clients that go away, failures, and the end."""

from __future__ import annotations

import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.serving.conftest import ENGINE, Start

pytest.importorskip("starlette", reason="starlette is in the extra `serve`")
CHAT = "/v1/chat/completions"


def asked(**fields: Any) -> dict[str, Any]:
    return {"model": "small", "messages": [{"role": "user", "content": "the cat"}], "max_tokens": 6} | fields


class Gate:
    """An engine that steps only when it is let."""

    def __init__(self, engine: Any):
        self._engine, self.open = engine, threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self) -> list[Any]:
        return self._engine.step() if self.open.wait(0.005) else []


@pytest.fixture
def gate(model: Any, tokenizer: Any) -> Gate:
    from instructgpt.generation.engine import Engine

    return Gate(Engine(model, tokenizer, ENGINE))


def test_a_full_queue_says_when_to_come_again_and_loses_nothing(start: Start, gate: Gate) -> None:
    with start(engine=gate, most_answers=4) as live, ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(live.call, "POST", CHAT, asked()) for _ in range(4)]
        live.wait_until(lambda: live.service.loop.under_way == 4)
        for n in (1, 3):
            status, headers, body = live.call("POST", CHAT, asked(n=n))
            assert status == 429 and int(headers["retry-after"]) >= 1
            assert json.loads(body)["error"]["code"] == "queue_full"
        gate.open.set()
        assert [call.result()[0] for call in calls] == [200] * 4
        assert live.call("POST", CHAT, asked(n=4))[0] == 200
        assert live.figures()['instructgpt_refusals_total{reason="queue"}'] == 2


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_blocks_before_the_next_step(start: Start, gate: Gate, stream: bool) -> None:
    with start(engine=gate) as live:
        connection = http.client.HTTPConnection("127.0.0.1", live.port)
        connection.request("POST", CHAT, json.dumps(asked(stream=stream, n=3)), {"Content-Type": "application/json"})
        live.wait_until(lambda: live.service.loop.under_way == 3 and gate.busy)
        connection.close()  # not one step was made, and none will be
        live.wait_until(lambda: not gate.busy)
        assert gate.stats().blocks_used == 0 and live.service.loop.under_way == 0
        live.wait_until(lambda: bool(live.log))
        assert live.log[0]["status"] == 499


def test_a_step_that_fails_is_told_to_those_in_it_and_the_next_are_served(start: Start, gate: Gate) -> None:
    with start(engine=gate) as live, ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(live.call, "POST", CHAT, asked(stream=stream)) for stream in (False, True)]
        live.wait_until(lambda: sum(gate.stats()[:2]) == 2)
        engine = gate._engine
        step, engine.step = engine.step, lambda: 1 / 0
        gate.open.set()
        (status, _, whole), (_, _, streamed) = (call.result() for call in calls)
        assert status == 500 and json.loads(whole)["error"]["code"] == "engine_failed"
        assert b'"engine_failed"' in streamed and b"[DONE]" not in streamed and b"ZeroDivision" not in whole + streamed
        engine.step = step
        assert live.call("POST", CHAT, asked())[0] == 200
        assert (
            live.figures()["instructgpt_engine_failures_total"] == 1 and live.figures()["instructgpt_errors_total"] == 2
        )


def test_an_engine_beyond_repair_is_told_to_all_and_the_service_says_that_it_is_broken(
    start: Start, gate: Gate
) -> None:
    with start(engine=gate) as live, ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(live.call, "POST", CHAT, asked(stream=stream)) for stream in (False, True)]
        live.wait_until(lambda: sum(gate.stats()[:2]) == 2)
        gate._engine.step = gate._engine.abort = lambda *number: 1 / 0
        gate.open.set()
        assert [b'"engine_failed"' in call.result()[2] for call in calls] == [True, True]
        assert live.call("GET", "/health")[0] == live.call("GET", "/ready")[0] == 503
        assert live.call("POST", CHAT, asked())[0] == 503


def test_an_answer_that_takes_too_long_is_cut_off(start: Start, gate: Gate) -> None:
    from instructgpt.serving.options import Options

    with start(Options(max_seconds=0.2), engine=gate) as live:
        status, _, whole = live.call("POST", CHAT, asked())
        assert status == 200 and json.loads(whole)["choices"][0]["finish_reason"] == "length"
        _, _, streamed = live.call("POST", CHAT, asked(stream=True))
        assert b'"finish_reason":"length"' in streamed and streamed.endswith(b"[DONE]\n\n")
        live.wait_until(lambda: not gate.busy)


def test_told_to_stop_it_finishes_what_it_has_begun(start: Start, gate: Gate) -> None:
    with start(engine=gate) as live, ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(live.call, "POST", CHAT, asked(stream=stream)) for stream in (False, True)]
        live.wait_until(lambda: live.service.loop.under_way == 2)
        live.server.should_exit = True  # what SIGTERM does
        with pytest.raises(OSError):
            for _ in range(200):
                live.call("GET", "/ready")
                time.sleep(0.01)
        gate.open.set()
        whole, streamed = (call.result() for call in calls)
        assert whole[0] == 200 and streamed[2].endswith(b"[DONE]\n\n")


def test_one_that_goes_on_too_long_is_cut_when_the_time_to_stop_is_over(start: Start, gate: Gate) -> None:
    from instructgpt.serving.options import Options

    with start(Options(drain_seconds=0), engine=gate) as live, ThreadPoolExecutor(1) as pool:
        call = pool.submit(live.call, "POST", CHAT, asked(stream=True))
        live.wait_until(lambda: live.service.loop.under_way == 1)
        live.server.should_exit = True
        with pytest.raises((http.client.HTTPException, OSError)):
            call.result(10)
    assert not live.service.loop._thread.is_alive()


def test_a_slow_reader_holds_up_nobody(start: Start) -> None:
    with start() as live:
        connection = http.client.HTTPConnection("127.0.0.1", live.port)
        body = json.dumps(asked(stream=True, n=8, max_tokens=60, logprobs=True, top_logprobs=20))
        connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
        assert live.call("POST", CHAT, asked())[0] == 200
        live.wait_until(lambda: not live.service.loop.under_way, 30)  # all was generated although nothing was read
        assert connection.getresponse().read().endswith(b"[DONE]\n\n")
        connection.close()
