"""What goes back over one connection: a JSON object, or a stream of server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from starlette.types import Send

from instructgpt.serving.problems import Problem
from instructgpt.serving.telemetry import Record

_ALWAYS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


class ClientGone(Exception):
    """The client went away before its answer was complete."""


class Reply:
    """The one answer to an HTTP request. Its status goes into the record."""

    def __init__(self, send: Send, record: Record):
        self._send, self._record = send, record
        self.has_begun = self.is_complete = False

    async def _begin(self, status: int, kind: str, more: dict[str, str]) -> None:
        self.has_begun, self._record.status = True, status
        named = {"Content-Type": kind, "X-Request-Id": self._record.id, **_ALWAYS, **more}
        headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in named.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _body(self, body: bytes, is_last: bool) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": not is_last})
        self.is_complete = is_last

    async def json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = to_bytes(value)
        await self._begin(status, "application/json", {"Content-Length": str(len(body)), **(headers or {})})
        await self._body(body, True)

    async def problem(self, problem: Problem) -> None:
        """Instead of an answer, or in the middle of its stream, which ends with it."""
        if not self.has_begun:
            await self.json(problem.body, problem.status, problem.headers)
        elif not self.is_complete:
            await self._body(b"data: " + to_bytes(problem.body) + b"\n\n", True)

    # ---- server-sent events

    async def begin_events(self) -> None:
        await self._begin(200, "text/event-stream; charset=utf-8", {"X-Accel-Buffering": "no"})

    async def events(self, values: Iterable[Any]) -> None:
        if body := b"".join(b"data: " + to_bytes(value) + b"\n\n" for value in values):
            await self._body(body, False)

    async def end_events(self) -> None:
        await self._body(b"data: [DONE]\n\n", True)


def to_bytes(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
