"""The application behind a socket: uvicorn, with limits of its own on whoever sends slowly or what is no HTTP."""

from __future__ import annotations

import asyncio

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from instructgpt.serving.problems import Problem
from instructgpt.serving.replies import to_bytes

_MOST_CONNECTIONS = 1000
_GRACE = 2.0
"""Seconds for which the application may tell a slow sender so itself, before the connection is closed."""


def limited_protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol for HTTP/1.1, with a time within which a request must have arrived whole."""

    class Limited(H11Protocol):
        """Closes connections on which a request takes too long to arrive; answers what is no HTTP in our form."""

        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            super().connection_made(transport)
            self._expect_a_request()

        def _expect_a_request(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.loop.call_later(seconds, self._close_if_incomplete)

        def _close_if_incomplete(self) -> None:
            if not self.transport.is_closing() and self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
                self.transport.close()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._expect_a_request()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._timer is not None:
                self._timer.cancel()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            body = to_bytes(Problem(400, "This is no request of HTTP/1.1.", code="invalid_http").body)
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            for event in (h11.Response(status_code=400, headers=headers, reason=b"Bad Request"), h11.Data(data=body)):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

    return Limited


def make_server(app: Starlette, body_seconds: float, drain_seconds: float) -> uvicorn.Server:
    """A server for sockets of one's own. SIGTERM makes it take no more connections, finish what is under way within
    `drain_seconds`, and stop."""
    config = uvicorn.Config(
        app, http=limited_protocol(body_seconds + _GRACE), ws="none", lifespan="on", log_level="warning",
        access_log=False, server_header=False, timeout_graceful_shutdown=max(1, round(drain_seconds)),
        limit_concurrency=_MOST_CONNECTIONS, timeout_keep_alive=5,
    )  # fmt: skip
    return uvicorn.Server(config)
