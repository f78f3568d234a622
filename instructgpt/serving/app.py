"""The routes: what is to be had at which address, and how every mistake becomes a status and a sentence.

    POST /v1/chat/completions, /v1/completions   answers, whole or streamed (`protocol.py`, `answers.py`)
    POST /v1/tokens                              the tokens of a prompt: {"model", "messages" or "prompt"} gives
        {"object": "list", "model", "data": [{"id", "text", "bytes", "control"}, …], "count", "context"};
        "control" is true where it is a control token, whose "text" is its name
    GET  /v1/models, /v1/models/NAME             what can be asked; the first is the page's
    GET  /                                       the page: its scripts stand in the page, nothing may be loaded
    GET  /health, /ready, /metrics               is it alive; does it take requests; its figures

Whoever asks for anything but the page, /health and /ready needs a key where there are keys.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from instructgpt.errors import UserError
from instructgpt.html import read_page, script_policy
from instructgpt.serving.access import Caller
from instructgpt.serving.answers import token_list
from instructgpt.serving.call import Call, Read, read_body
from instructgpt.serving.fields import parse_json
from instructgpt.serving.problems import Problem
from instructgpt.serving.protocol import read_chat, read_text, read_tokens
from instructgpt.serving.replies import ClientGone, Reply
from instructgpt.serving.service import Service
from instructgpt.serving.telemetry import Record

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_PAGE = Path(__file__).with_name("page.html")
_FAILED = Problem(500, "The service failed on this request.", code="internal_error")
Work = Callable[[Service, Request, Caller, Record, Reply], Awaitable[None]]


class Endpoint:
    """A route for those who have a key. Whatever happens, the client is told in a sentence and the log in a line."""

    def __init__(self, service: Service, work: Work):
        self._service, self._work = service, work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        record = Record(scope["path"])
        reply = Reply(send, record)
        try:
            await self._serve(request, record, reply)
        except ClientGone:
            record.status = 499
        except Problem as problem:
            record.tell(problem)
            await reply.problem(problem)
        except UserError as error:  # the engine says no
            problem = Problem(400, f"{error}.")
            record.tell(problem)
            await reply.problem(problem)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            record.tell(_FAILED)
            await reply.problem(_FAILED)
        finally:
            record.status = record.status or 499  # it was cut off when the service stopped
            self._service.telemetry.finished(record)

    async def _serve(self, request: Request, record: Record, reply: Reply) -> None:
        self._require_no_key_in_the_address(request)
        caller = self._service.caller(request.headers.get("authorization"))
        record.key = caller.key.name
        if request.method == "POST":
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise Problem(415, "The body must be JSON: send the header `Content-Type: application/json`.")
        with caller.admitted():
            await self._work(self._service, request, caller, record, reply)

    def _require_no_key_in_the_address(self, request: Request) -> None:
        if any(re.search("key|token|auth|secret", name, re.IGNORECASE) for name in request.query_params):
            message = (
                "A key does not belong in an address, which others may log: send it as the header `Authorization`."
            )
            raise Problem(401, message, code="key_in_address")


async def _answer(service: Service, request: Request, caller: Caller, record: Record, reply: Reply, read: Read) -> None:
    await Call(service, caller, record, reply).serve(request, read)


async def _tokens(service: Service, request: Request, caller: Caller, record: Record, reply: Reply) -> None:
    body = await read_body(request, service.options.max_body_bytes, service.options.body_seconds)
    asked = read_tokens(parse_json(body), service.shape)
    record.model = asked.model
    service.adapter(asked.model)
    ids = await service.ids(asked.prompt, asked.is_chat)
    await reply.json(token_list(asked.model, ids, service.tokenizer, service.shape.context))


async def _models(service: Service, request: Request, caller: Caller, record: Record, reply: Reply) -> None:
    await reply.json({"object": "list", "data": [service.model(name) for name in service.models]})


async def _model(service: Service, request: Request, caller: Caller, record: Record, reply: Reply) -> None:
    await reply.json(service.model(request.path_params["name"]))


def make_app(service: Service, hosts: tuple[str, ...] = ()) -> Starlette:
    """The application, which starts the engine with itself. hosts: the names under which alone it may be called; ():
    any."""

    def endpoint(path: str, work: Work, method: str) -> Route:
        return Route(path, Endpoint(service, work), methods=[method])

    routes = [
        endpoint("/v1/chat/completions", partial(_answer, read=read_chat), "POST"),
        endpoint("/v1/completions", partial(_answer, read=read_text), "POST"),
        endpoint("/v1/tokens", _tokens, "POST"),
        endpoint("/v1/models", _models, "GET"),
        endpoint("/v1/models/{name:path}", _model, "GET"),
        Route("/health", partial(_health, service)),
        Route("/ready", partial(_ready, service)),
        Route("/metrics", partial(_metrics, service)),
        Route("/", _page),
    ]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await service.loop.start()
        yield
        await service.loop.stop()

    app = Starlette(
        routes=routes, lifespan=lifespan,
        middleware=[Middleware(_OnlyUnder, hosts=hosts)] if hosts else [],
        exception_handlers={HTTPException: _no_such_address, Problem: _told, Exception: _failed},
    )  # fmt: skip
    app.router.redirect_slashes = False
    return app


class _OnlyUnder:
    """Refuses requests that call the service by other names: of a page elsewhere whose name points to this machine
    (DNS rebinding)."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...]):
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = Request(scope).headers.get("host", "")
            if re.sub(r":\d*$", "", host) not in self._hosts:
                problem = Problem(403, "This service is called by the name of this machine.", code="wrong_host")
                await JSONResponse(problem.body, 403)(scope, receive, send)
                return
        await self._app(scope, receive, send)


# ---- addresses that need no key, and what is none


async def _health(service: Service, request: Request) -> Response:
    """Whether the engine's thread lives: where not, the process is to be started anew."""
    is_well = not service.loop.is_broken
    return JSONResponse({"status": "ok" if is_well else "broken"}, 200 if is_well else 503)


async def _ready(service: Service, request: Request) -> Response:
    """Whether requests are taken: where not, they should be sent elsewhere."""
    is_ready = service.loop.is_ready
    return JSONResponse({"status": "ready" if is_ready else "not ready"}, 200 if is_ready else 503)


async def _metrics(service: Service, request: Request) -> Response:
    service.caller(request.headers.get("authorization"))
    return Response(service.telemetry.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _page(request: Request) -> Response:
    if not _PAGE.is_file():
        return JSONResponse(Problem(404, "This service has no page.").body, 404)
    html = read_page(_PAGE)
    return HTMLResponse(html, headers={"Content-Security-Policy": page_policy(html), "Referrer-Policy": "no-referrer"})


def page_policy(html: str) -> str:
    """A policy under which the scripts that stand in the page run, and no other: no attribute of an element, nothing
    from elsewhere, whatever a model has written."""
    return (
        f"default-src 'none'; {script_policy(html)}; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


async def _no_such_address(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    problem = Problem(error.status_code, "There is nothing at this address.", code="unknown_url")
    if error.status_code == 405:
        problem = Problem(405, f"This address does not answer to {request.method[:10]}.", code="method_not_allowed")
    return JSONResponse(problem.body, error.status_code, error.headers)


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return JSONResponse(error.body, error.status, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse(_FAILED.body, 500)
