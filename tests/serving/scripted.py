"""A service that says what it is told to, in the protocol that the page speaks: for answers that no model would give.

The answer to a message is the message itself, or what `answers` has for it; tokens are three characters long.
"""

from __future__ import annotations

import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from instructgpt.html import read_page
from instructgpt.serving.app import _PAGE, page_policy


class Scripted(ThreadingHTTPServer):
    """Runs in a thread of its own from entering to leaving."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, str] = {}
        self.pause = 0.0
        """Seconds between two tokens."""
        self.key = ""
        """Where it is not empty, requests need it."""
        self.asked: list[dict[str, Any]] = []
        """The bodies of all requests for an answer."""
        self.problem: tuple[int, str] | None = None
        """A status and a sentence instead of an answer."""
        self.cut_after = 10**9
        """Tokens after which the connection breaks."""
        self.sent = 0
        """Tokens of the last answer that were sent."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def __enter__(self) -> Scripted:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: Scripted

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""

    def _send(self, status: int, kind: str, body: str, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body.encode("utf-8", "surrogatepass"))

    def _json(self, value: Any, status: int = 200, **headers: str) -> None:
        self._send(status, "application/json", json.dumps(value), **headers)

    def _problem(self, status: int, message: str, **headers: str) -> None:
        self._json({"error": {"message": message, "type": "", "param": None, "code": None}}, status, **headers)

    def _may_enter(self) -> bool:
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            self._problem(401, "No key.")
            return False
        return True

    def do_GET(self) -> None:
        if self.path == "/":
            html = read_page(_PAGE)
            self._send(200, "text/html; charset=utf-8", html, Content_Security_Policy=page_policy(html))
        elif self.path == "/v1/models" and self._may_enter():
            self._json({"data": [{"id": name, "context": 512} for name in ("tiny", "tiny:pirate")]})
        elif self.path not in ("/", "/v1/models"):
            self.server.asked.append({"path": self.path})  # what a hostile answer may have fetched
            self._problem(404, "Nothing here.")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._may_enter():
            return
        if self.path == "/v1/tokens":
            self._tokens(body["messages"])
            return
        self.server.asked.append(body)
        if self.server.problem:
            self._problem(*self.server.problem, Retry_After="7")
            return
        said = body["messages"][-1]["content"]
        self._stream(self.server.answers.get(said, said))

    def _tokens(self, messages: list[dict[str, str]]) -> None:
        data = []
        for message in messages:
            data.append({"id": 1, "text": f"<{message['role']}>", "control": True})
            data += [{"id": 9, "text": word + " ", "control": False} for word in message["content"].split()]
        self._json({"data": data, "count": len(data), "context": 512})

    def _stream(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        pieces = [text[start : start + 3] for start in range(0, len(text), 3)]
        self.server.sent = 0
        self._chunk({"role": "assistant", "content": ""})
        for i, piece in enumerate(pieces):
            if i >= self.server.cut_after:
                self.close_connection = True
                return
            logprob = math.log(0.9 - 0.8 * (i % 7) / 7)
            top = [{"token": piece, "logprob": logprob}, {"token": "<b>no</b>", "logprob": math.log(0.05)}]
            raw = list(piece.encode("utf-8", "replace"))
            content = [{"token": piece, "logprob": logprob, "bytes": raw, "top_logprobs": top}]
            self._chunk({"content": piece}, {"content": content})
            self.server.sent += 1
            time.sleep(self.server.pause)
        self._chunk({}, finish="stop")
        usage = {"prompt_tokens": 7, "completion_tokens": len(pieces), "total_tokens": 7 + len(pieces)}
        self._event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _chunk(self, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        self._event({"choices": [choice], "usage": None})

    def _event(self, value: Any) -> None:
        self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())
        self.wfile.flush()
