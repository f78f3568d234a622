"""Services that listen on this machine, with a small random model that says many different things."""

from __future__ import annotations

import http.client
import importlib.util
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from instructgpt.config import ModelConfig
from instructgpt.generation.request import EngineConfig
from instructgpt.model.transformer import Transformer
from instructgpt.text.tokenizer import Tokenizer
from tests.random_models import talkative

_MISSING = [name for name in ("starlette", "uvicorn", "prometheus_client") if importlib.util.find_spec(name) is None]


class Live:
    """A service that is running."""

    def __init__(self, service: Any, port: int, lines: list[str]):
        self.service, self.port, self._lines = service, port, lines
        self.url = f"http://127.0.0.1:{port}"

    def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, raw: bytes | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of a request; body: sent as JSON, raw: as it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = raw if raw is not None else None if body is None else json.dumps(body).encode()
        connection.request(method, path, sent, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        found = response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        connection.close()
        return found

    def ask(self, path: str = "/v1/chat/completions", **fields: Any) -> dict[str, Any]:
        """The answer to a greedy question, a short one unless the fields say otherwise."""
        asked = {"model": "small", "max_tokens": 8, "temperature": 0} | fields
        if path.endswith("chat/completions"):
            asked.setdefault("messages", [{"role": "user", "content": "the cat"}])
        status, _, body = self.call("POST", path, asked)
        assert status == 200, body
        return json.loads(body)

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._lines]

    def figures(self) -> dict[str, float]:
        """What /metrics says, by name and labels."""
        text = self.service.telemetry.exposition().decode()
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    def wait_until(self, is_so: Callable[[], bool], seconds: float = 10) -> None:
        until = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < until, "it did not come to be"
            time.sleep(0.005)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    lines = [f"the cat number {i} saw {i * 7} red birds near the old house. 猫看见鸟。" for i in range(60)]
    return Tokenizer.train(lines, vocab_size=360)


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> Transformer:
    """Ends its answers now and then."""
    config = ModelConfig(
        tokenizer.vocab_size, context=128, layers=2, width=32, heads=4, kv_heads=2, tie_embeddings=False
    )
    return talkative(config, dtype=torch.float32)


Start = Callable[..., Any]
ENGINE = EngineConfig(blocks=512, max_rows=32)


@pytest.fixture(scope="session")
def start(model: Transformer, tokenizer: Tokenizer) -> Start:
    """Starts a service, as a context: options, keys, hooks and what the engine has may be given."""
    if _MISSING:
        pytest.skip(f"{_MISSING[0]} is missing: it is in the extra `serve`")
    from instructgpt.generation.engine import Engine
    from instructgpt.serving.app import LOOPBACK, make_app
    from instructgpt.serving.loop import EngineLoop
    from instructgpt.serving.options import Options
    from instructgpt.serving.protocol import Shape
    from instructgpt.serving.safety import Guard
    from instructgpt.serving.server import make_server
    from instructgpt.serving.service import Service
    from instructgpt.serving.sockets import listening_socket
    from instructgpt.serving.telemetry import Telemetry

    @contextmanager
    def start(
        options: Options | None = None, keys: Any = None, hooks: Any = (), engine: Any = None,
        most_answers: int = 1000, models: Any = None,
    ) -> Iterator[Live]:  # fmt: skip
        options, lines = options or Options(), []
        loop = EngineLoop(engine or Engine(model, tokenizer, ENGINE), most_answers)
        shape = Shape(model.config.vocab_size, model.config.context)
        service = Service(
            loop, tokenizer, shape, models or {"small": ""}, options, keys, Guard(list(hooks)),
            Telemetry(loop, lines.append),
        )  # fmt: skip
        hosts = () if keys else LOOPBACK
        server = make_server(make_app(service, hosts), options.body_seconds, options.drain_seconds)
        with listening_socket("127.0.0.1", 0) as listener:
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
            thread.start()
            live = Live(service, listener.getsockname()[1], lines)
            live.server = server  # pyright: ignore[reportAttributeAccessIssue]
            live.wait_until(lambda: server.started)
            yield live
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()

    return start


@pytest.fixture(scope="session")
def live(start: Start) -> Iterator[Live]:
    """A service that anybody on this machine may use."""
    with start() as running:
        yield running
