"""The service on many processes or machines, as an application of Ray Serve (extra `ray`).

    serve run instructgpt.serving.ray_app:application model=runs/tiny/sft most_replicas=4

Each replica is the whole service of `app.py` around an engine of its own. Ray starts another one when those there are
have more requests on their way than they should, and takes it away when they have few. Before them stands a front,
which holds no model: it reads a request, hands it to a replica, and passes on what comes back.

**When a replica dies**, the front asks another one, with the same body, unless the answer has begun to stream: until
the first piece of it has come, nothing is sent to the client. An answer that has begun is cut off; the client sees a
stream without its end. (It could be asked for again, for tokens follow from request and seed; but a client who gave no
seed would get another answer than the one that it saw begin.)

Limits of a key (`access.py`) hold for each replica by itself: with four, a key may use up to four times as much.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from instructgpt.flags import parse
from instructgpt.generation.request import EngineConfig
from instructgpt.serving.access import Keys
from instructgpt.serving.app import LOOPBACK, make_app
from instructgpt.serving.call import read_body, while_there
from instructgpt.serving.options import Options
from instructgpt.serving.problems import Problem
from instructgpt.serving.replies import ClientGone
from instructgpt.serving.safety import Guard, load_hook
from instructgpt.serving.service import Service
from instructgpt.settings import FilePath, NonNegative, Positive, PositiveInt, Settings

_TRIES = 4
_PLAIN = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers", "client", "server")


@dataclass(frozen=True)
class Scaling(Settings):
    """How many replicas there are, by how much they have to do."""

    least_replicas: PositiveInt = 1
    """Replicas that there always are."""
    most_replicas: PositiveInt = 4
    """Replicas that there are under load, at most."""
    target_requests: Positive = 16.0
    """Requests on their way in a replica that are right; where they are more, another replica is started."""
    most_requests: PositiveInt = 64
    """Requests on their way in a replica, at most; further ones wait in the front."""
    most_waiting: PositiveInt = 256
    """Requests that wait in the front, at most; further ones are told to come again, with status 429."""
    up_seconds: NonNegative = 5.0
    """How long the load must have been too high before a replica is started."""
    down_seconds: NonNegative = 120.0
    """How long it must have been low before one is taken away."""
    cores: NonNegative = 1.0
    """Processor cores that a replica is given; Ray starts no more replicas than there are cores for."""
    gpus: NonNegative = 0.0
    """GPUs that a replica is given."""


@dataclass(frozen=True)
class RayConfig(Settings):
    """The service of one model on Ray Serve."""

    model: FilePath = ""
    """The run directory to use, at a path that every machine has."""
    name: str = ""
    """What clients call the model; without it the name of the run's folder."""
    keys: FilePath = ""
    """A file of who may use the service, as of `instructgpt serve`; without it, anybody who reaches it may."""
    safety: tuple[str, ...] = ()
    """Functions that look at prompts and answers, as of `instructgpt serve`."""
    device: str = "auto"
    """Where a replica computes: auto, cpu or cuda."""
    scaling: Scaling = field(default_factory=Scaling)
    options: Options = field(default_factory=Options)
    engine: EngineConfig = field(default_factory=lambda: EngineConfig(max_rows=64))


def application(arguments: dict[str, str]) -> serve.Application:
    """What `serve run` starts; arguments are the fields of `RayConfig` and of what is in it."""
    flags = [part for name, value in arguments.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    config = parse(RayConfig, flags, "serve run instructgpt.serving.ray_app:application")
    return deployed(lambda: _app(config), config.scaling, config.options)


def deployed(make: Callable[[], ASGIApp], scaling: Scaling, options: Options | None = None) -> serve.Application:
    """A front and the replicas behind it. make: an application of ASGI, made in the process of a replica."""
    replica = serve.deployment(
        Replica,
        name="replica",
        ray_actor_options={"num_cpus": scaling.cores, "num_gpus": scaling.gpus},
        max_ongoing_requests=scaling.most_requests,
        max_queued_requests=scaling.most_waiting,
        autoscaling_config={
            "min_replicas": scaling.least_replicas,
            "max_replicas": scaling.most_replicas,
            "target_ongoing_requests": scaling.target_requests,
            "upscale_delay_s": scaling.up_seconds,
            "downscale_delay_s": scaling.down_seconds,
            "look_back_period_s": 3,
        },
        health_check_period_s=2,
    )
    front = serve.deployment(
        serve.ingress(_front_app)(Front), name="front", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=4096
    )
    return front.bind(replica.bind(make), options or Options())


_HEALTH = {
    "type": "http", "http_version": "1.1", "method": "GET", "scheme": "http", "path": "/health",
    "raw_path": b"/health", "query_string": b"", "headers": [(b"host", b"localhost")],
}  # fmt: skip


class Replica:
    """A service in a process of its own, asked by the front."""

    async def __init__(self, make: Callable[[], ASGIApp]) -> None:
        self._app: Any = make()
        self._lifespan = self._app.router.lifespan_context(self._app)
        await self._lifespan.__aenter__()

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[Message]:
        """What the service sends in answer to a request. Given up when the front no longer listens."""
        sent: asyncio.Queue[Message | None] = asyncio.Queue()
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if unread:
                return unread.pop()
            await asyncio.Event().wait()  # the client stays, as far as this process knows
            raise AssertionError

        async def serve_it() -> None:
            try:
                await self._app({**scope, "asgi": {"version": "3.0"}, "root_path": ""}, receive, sent.put)
            finally:
                sent.put_nowait(None)

        task = asyncio.ensure_future(serve_it())
        try:
            while (message := await sent.get()) is not None:
                yield message
            await task
        finally:
            task.cancel()

    async def check_health(self) -> None:
        """Raises where the engine's thread is gone; Ray starts another replica then."""
        messages = [message async for message in self.answer(_HEALTH, b"")]
        if messages[0]["status"] != 200:
            raise RuntimeError("the engine is broken")

    async def __del__(self) -> None:
        await self._lifespan.__aexit__(None, None, None)


class Front:
    """Hands requests to replicas, and again to another where one died before anything was sent."""

    def __init__(self, replicas: DeploymentHandle, options: Options) -> None:
        self._replicas = replicas.options(method_name="answer", stream=True)
        self._options = options

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request over HTTP."""
        try:
            body = await read_body(Request(scope, receive), self._options.max_body_bytes, self._options.body_seconds)
        except Problem as problem:
            await JSONResponse(problem.body, problem.status, problem.headers)(scope, receive, send)
            return
        except ClientGone:
            return
        plain = {name: scope[name] for name in _PLAIN if name in scope}
        for tries_left in reversed(range(_TRIES)):
            sender = _Held(send)
            try:
                await self._pass_on(plain, body, receive, sender)
                return
            except ClientGone:
                return
            except BackPressureError:
                problem = Problem(429, "The service is busy; try again.", code="queue_full", retry_after=2)
            except RayActorError:
                problem = Problem(503, "The part of the service that had this request died.", code="unavailable")
                if sender.has_begun:
                    raise  # the connection breaks, so that nobody takes half an answer for a whole one
                if tries_left:
                    continue
            await JSONResponse(problem.body, problem.status, problem.headers)(scope, receive, send)
            return

    async def _pass_on(self, scope: dict[str, Any], body: bytes, receive: Receive, sender: _Held) -> None:
        answer = self._replicas.remote(scope, body)

        async def pass_all() -> None:
            async for message in cast(AsyncIterator[Message], answer):
                await sender.take(message)
            await sender.flush()

        try:
            await while_there(receive, pass_all())
        finally:
            answer.cancel()  # of a call that is over, nothing


class _Held:
    """Keeps back the status and what opens a stream until a piece of the answer follows."""

    def __init__(self, send: Send) -> None:
        self._send, self._held, self.has_begun = send, [], False

    async def take(self, message: Message) -> None:
        self._held.append(message)
        if len(self._held) > 2 or self.has_begun or not message.get("more_body", True):
            await self.flush()

    async def flush(self) -> None:
        held, self._held = self._held, []
        for message in held:
            self.has_begun = True
            await self._send(message)


class _ToFront:
    """What Ray's proxy calls, in the process of the front."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await serve.get_replica_context().servable_object.serve(scope, receive, send)


def _front_app() -> ASGIApp:
    return Starlette(routes=[Route("/{path:path}", _ToFront())])


def _app(config: RayConfig) -> ASGIApp:
    from instructgpt.runtime import resolve_device, resolve_precision
    from instructgpt.training.checkpoint import load

    device = resolve_device(config.device)
    precision = resolve_precision("auto", device)
    model, tokenizer = load(config.model, device)
    model = model.to(precision.parameters)
    keys = Keys(Path(config.keys)) if config.keys else None
    models = {config.name or Path(config.model).resolve().name: ""}
    guard = Guard([load_hook(name) for name in config.safety])
    service = Service.of(
        model, tokenizer, models, config.engine, lambda: precision.context(device), config.options, keys, guard
    )
    return make_app(service, () if keys else LOOPBACK)
