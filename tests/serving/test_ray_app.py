"""Replicas on Ray Serve, on this machine: they come under load, go when idle, and lose nothing when one is killed.

Slow, and skipped without Ray. What a replica does is mostly an application of a few lines: it thinks for a while,
streams for a while, and says in which process; at the end it is the service of a model.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.commands.test_serve import make_run

pytestmark = pytest.mark.slow
if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is missing: it is in the extra `ray`", allow_module_level=True)


def thinking_app() -> Any:
    """Answers in pieces after `think` seconds, and says at /running at once how many answers are on their way."""
    import asyncio
    import json
    import os

    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, StreamingResponse
    from starlette.routing import Route

    running = []

    async def tell(request: Any) -> JSONResponse:
        return JSONResponse(len(running))

    async def answer(request: Any) -> StreamingResponse:
        asked = json.loads(await request.body())

        async def pieces() -> Any:
            running.append(1)
            try:
                yield f"opening {os.getpid()}\n"
                await asyncio.sleep(asked["think"])
                for i in range(4):
                    yield f"{asked['name']} {i}\n"
                    await asyncio.sleep(asked["think"] / 8)
            finally:
                running.pop()

        return StreamingResponse(pieces())

    return Starlette(
        routes=[Route("/health", tell), Route("/running", tell), Route("/answer", answer, methods=["POST"])]
    )


PORT = 18439


class Scaled:
    """The application that runs, and what a client and Ray see of it."""

    def call(self, name: str, think: float) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
        connection.request("POST", "/answer", json.dumps({"name": name, "think": think}))
        response = connection.getresponse()
        return response.status, response.read()

    @property
    def replicas(self) -> int:
        from ray import serve

        return serve.status().applications["default"].deployments["replica"].replica_states.get("RUNNING", 0)

    def wait_for(self, replicas: int, seconds: float) -> float:
        begun = time.monotonic()
        while self.replicas != replicas:
            assert time.monotonic() < begun + seconds, f"{self.replicas} replicas after {seconds} s, not {replicas}"
            time.sleep(0.1)
        return time.monotonic() - begun


@pytest.fixture(scope="module")
def scaled() -> Iterator[Scaled]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import cloudpickle, serve

    from instructgpt.serving.ray_app import Scaling, deployed

    make = cloudpickle.loads(cloudpickle.dumps(thinking_app))
    make.__module__ = "__main__"  # sent by value: the replicas' processes know nothing of the tests
    ray.init(
        num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        configure_logging=False,
    )  # fmt: skip
    serve.start(http_options={"port": PORT}, logging_config={"log_level": "ERROR"})
    scaling = Scaling(most_replicas=2, target_requests=2, most_requests=8, up_seconds=0.5, down_seconds=2, cores=0.5)
    serve.run(deployed(make, scaling))
    yield Scaled()
    serve.shutdown()
    ray.shutdown()


def at_once(
    pool: ThreadPoolExecutor, scaled: Scaled, names: list[str], think: float
) -> list[Future[tuple[int, bytes]]]:
    return [pool.submit(scaled.call, name, think) for name in names]


def whole(name: str, answered: tuple[int, bytes]) -> bool:
    status, body = answered
    return status == 200 and body.split(b"\n", 1)[1] == "".join(f"{name} {i}\n" for i in range(4)).encode()


def pid(answered: tuple[int, bytes]) -> int:
    return int(answered[1].split()[1])


def test_load_brings_a_second_replica_and_idleness_takes_it_away(scaled: Scaled):
    scaled.wait_for(1, 30)
    busy = threading.Event()
    with ThreadPoolExecutor(8) as pool:

        def go_on(client: int) -> list[tuple[int, bytes]]:
            answers = []
            while not busy.is_set():
                answers.append(scaled.call(f"client {client}", 0.5))
            return answers

        running = [pool.submit(go_on, client) for client in range(8)]
        up = scaled.wait_for(2, 60)
        time.sleep(3)
        busy.set()
        answers = [(client, answer) for client, future in enumerate(running) for answer in future.result()]
    assert all(whole(f"client {client}", answer) for client, answer in answers)
    by_process = Counter(pid(answer) for _, answer in answers)
    assert len(by_process) == 2
    down = scaled.wait_for(1, 60)
    print(f"\nsecond replica after {up:.1f} s of load, gone {down:.1f} s after it; answers a replica: {by_process}")


def test_a_killed_replica_loses_no_answer_that_had_not_begun(scaled: Scaled):
    scaled.wait_for(1, 60)
    names = [f"request {i}" for i in range(16)]
    with ThreadPoolExecutor(len(names)) as pool:
        warm = scaled.call("warm", 0)
        futures = at_once(pool, scaled, names, 2.0)
        time.sleep(1)  # all are on their way, and none has got past the opening
        os.kill(pid(warm), signal.SIGKILL)
        answers = [future.result(60) for future in futures]
    assert all(whole(name, answer) for name, answer in zip(names, answers, strict=True)), answers
    assert pid(warm) not in {pid(answer) for answer in answers}
    print(f"\n{len(names)} requests on their way, their replica killed: {len(answers)} whole answers")


def test_an_answer_that_had_begun_is_cut_off_and_the_client_can_tell(scaled: Scaled):
    body = json.dumps({"name": "long", "think": 2.0}).encode()
    with socket.create_connection(("127.0.0.1", PORT), timeout=60) as client:
        head = f"POST /answer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        received = b""
        while b"long 0" not in received:
            received += client.recv(4096)
        os.kill(int(re.findall(rb"opening (\d+)", received)[0]), signal.SIGKILL)
        while more := client.recv(4096):
            received += more
    assert b"chunked" in received and b"long 3" not in received
    assert not received.endswith(b"0\r\n\r\n")  # the sign that an answer is whole
    assert whole("after", scaled.call("after", 0.1))


def test_a_client_that_leaves_ends_its_request(scaled: Scaled):
    def running() -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/running", timeout=30) as response:
            return json.load(response)

    def wait_for(answers: int) -> None:
        until = time.monotonic() + 15
        while running() != answers:
            assert time.monotonic() < until, f"{running()} answers on their way, not {answers}"
            time.sleep(0.05)

    scaled.wait_for(1, 60)
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    connection.request("POST", "/answer", json.dumps({"name": "leaver", "think": 60.0}))
    wait_for(1)
    connection.close()
    wait_for(0)


def test_a_body_that_is_too_large_is_refused(scaled: Scaled):
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    connection.request("POST", "/answer", b"x" * (2 << 20))
    response = connection.getresponse()
    assert response.status == 413 and b"larger than" in response.read()


def replica_process() -> int:
    """The process of the one replica there is."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                if (folder / "cmdline").read_text().startswith("ray::ServeReplica:default:replica"):
                    found.append(int(folder.name))
    (process,) = found
    return process


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the replica's process in /proc")
def test_a_model_whose_replica_is_killed_under_load_answers_everybody(scaled: Scaled, tmp_path: Path):
    from ray import serve

    from instructgpt.serving.ray_app import application

    serve.delete("default")
    run = make_run(tmp_path / "small")
    serve.run(application({"model": str(run), "most_replicas": "1", "cores": "0.5"}))
    answers: dict[int, list[tuple[int, str]]] = {seed: [] for seed in range(8)}
    killed, over = threading.Event(), threading.Event()
    after = Counter[int]()

    def go_on(seed: int) -> None:
        asked = {"model": "small", "prompt": "Once", "max_tokens": 120, "seed": seed}
        while not over.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
            connection.request("POST", "/v1/completions", json.dumps(asked), {"Content-Type": "application/json"})
            response = connection.getresponse()
            told = json.load(response)
            answers[seed].append((response.status, told["choices"][0]["text"] if response.status == 200 else str(told)))
            after[seed] += killed.is_set()

    with ThreadPoolExecutor(len(answers)) as pool:
        running = [pool.submit(go_on, seed) for seed in answers]
        until = time.monotonic() + 60
        while not all(answers.values()):
            assert time.monotonic() < until
            time.sleep(0.05)
        first = replica_process()
        os.kill(first, signal.SIGKILL)
        killed.set()
        until = time.monotonic() + 90
        while not all(after[seed] > 1 for seed in answers):  # the first may have been on its way back
            assert time.monotonic() < until
            time.sleep(0.05)
        over.set()
        for future in running:
            future.result(60)
    assert replica_process() != first
    assert {status for its in answers.values() for status, _ in its} == {200}
    for seed, its in answers.items():  # by the same seed the same, whichever process gave it
        assert len({text for _, text in its}) == 1, seed
    assert len({its[0][1] for its in answers.values()}) == len(answers)
    print(f"\n{sum(map(len, answers.values()))} answers of a model, its replica killed meanwhile: all whole")


def test_arguments_are_fields_and_a_wrong_one_is_told_in_a_line():
    from instructgpt.errors import UserError
    from instructgpt.serving.ray_app import application

    application({"model": "runs/x", "most_replicas": "3", "cores": "0.5", "max_seconds": "9", "block_size": "32"})
    with pytest.raises(UserError, match="most-replicas"):
        application({"model": "runs/x", "most_replicas": "none"})
