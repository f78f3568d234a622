"""A stream read by hand, byte by byte, as somebody without the official client would."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.conftest import ENGINE, Live, Start

CHAT = "/v1/chat/completions"
ASKED = {"model": "small", "messages": [{"role": "user", "content": "the cat"}], "temperature": 0, "max_tokens": 9}


def request(path: str, body: Any, port: int) -> bytes:
    sent = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Content-Type: application/json",
        f"Content-Length: {len(sent)}",
    ]  # fmt: skip
    return "\r\n".join([*lines, "", ""]).encode() + sent


def read_one_by_one(connection: socket.socket) -> Iterator[bytes]:
    while byte := connection.recv(1):
        yield byte


def unchunked(stream: Iterator[bytes]) -> Iterator[bytes]:
    """The bytes of a body in HTTP/1.1's chunks, up to the empty one (RFC 9112, section 7.1)."""
    while True:
        line = b""
        while not line.endswith(b"\r\n"):
            line += next(stream)
        size = int(line, 16)
        for _ in range(size):
            yield next(stream)
        assert next(stream) + next(stream) == b"\r\n"
        if not size:
            return


def head_of(stream: Iterator[bytes]) -> tuple[int, dict[str, str]]:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += next(stream)
    status, *lines = head.decode("ascii").strip().split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines)
    return int(status.split()[1]), {name.lower(): value for name, value in fields.items()}


def events_of(body: bytes) -> list[Any]:
    """What the events of a stream say; of nothing but `data: ` lines with an empty line after each."""
    assert body.endswith(b"\n\n")
    blocks = body.decode("utf-8").removesuffix("\n\n").split("\n\n")
    assert all(re.fullmatch(r"data: [^\n]+", block) for block in blocks)
    assert blocks[-1] == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]


def streamed(live: Live, **fields: Any) -> list[Any]:
    with socket.create_connection(("127.0.0.1", live.port), timeout=30) as connection:
        connection.sendall(request(CHAT, ASKED | {"stream": True} | fields, live.port))
        stream = read_one_by_one(connection)
        status, headers = head_of(stream)
        assert status == 200
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert headers["transfer-encoding"] == "chunked" and headers["cache-control"] == "no-store"
        return events_of(b"".join(unchunked(stream)))


def test_a_chat(live: Live) -> None:
    events = streamed(live)
    whole = live.ask(max_tokens=9)
    head = {key: events[0][key] for key in ("id", "object", "created", "model", "system_fingerprint")}
    assert head["object"] == "chat.completion.chunk" and head["system_fingerprint"] is None
    assert all(set(event) == {*head, "choices"} and head.items() <= event.items() for event in events)
    choices = [event["choices"][0] for event in events]
    assert all(set(choice) == {"index", "delta", "logprobs", "finish_reason"} for choice in choices)
    assert choices[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert all(list(choice["delta"]) == ["content"] and choice["delta"]["content"] for choice in choices[1:-1])
    assert all(choice["finish_reason"] is None and choice["logprobs"] is None for choice in choices[:-1])
    assert choices[-1] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": whole["choices"][0]["finish_reason"],
    }
    text = "".join(choice["delta"].get("content", "") for choice in choices)
    assert text == whole["choices"][0]["message"]["content"]


def test_usage_is_null_until_the_last_chunk_which_has_no_choices(live: Live) -> None:
    *events, bill = streamed(live, stream_options={"include_usage": True})
    assert all(event["usage"] is None and event["choices"] for event in events)
    assert bill["choices"] == [] and bill["usage"] == live.ask(max_tokens=9)["usage"]


def test_log_probabilities_come_with_their_text(live: Live) -> None:
    events = streamed(live, logprobs=True, top_logprobs=2)
    found = [token for event in events for token in (event["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert found == live.ask(max_tokens=9, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    assert all(set(token) == {"token", "logprob", "bytes", "top_logprobs"} for token in found)


def test_several_answers_come_side_by_side(live: Live) -> None:
    events = streamed(live, n=3, temperature=1, seed=1)
    ends = [choice["index"] for event in events for choice in event["choices"] if choice["finish_reason"]]
    assert sorted(ends) == [0, 1, 2]
    assert [event["choices"][0]["index"] for event in events[:3]] == [0, 1, 2]


class AllAtOnce:
    """An engine whose updates come together, as they do where the reader is slow."""

    def __init__(self, engine: Any):
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self) -> list[Any]:
        updates = []
        while self._engine.busy:
            updates += self._engine.step()
        return updates


def test_what_comes_together_is_sent_in_order_and_ends_once(start: Start, model: Any, tokenizer: Any) -> None:
    from instructgpt.generation.engine import Engine

    with start(engine=AllAtOnce(Engine(model, tokenizer, ENGINE))) as live:
        choices = [event["choices"][0] for event in streamed(live, n=2, temperature=1, seed=3)]
        whole = live.ask(n=2, temperature=1, seed=3, max_tokens=9)["choices"]
    for index in (0, 1):
        own = [choice for choice in choices if choice["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in own) == whole[index]["message"]["content"]
        assert [bool(choice["finish_reason"]) for choice in own] == [False] * (len(own) - 1) + [True]


def test_a_text(live: Live) -> None:
    with socket.create_connection(("127.0.0.1", live.port), timeout=30) as connection:
        body = {"model": "small", "temperature": 0, "max_tokens": 9, "stream": True, "prompt": "the cat", "echo": True}
        connection.sendall(request("/v1/completions", body, live.port))
        stream = read_one_by_one(connection)
        assert head_of(stream)[0] == 200
        events = events_of(b"".join(unchunked(stream)))
    assert all(event["object"] == "text_completion" for event in events)
    choices = [event["choices"][0] for event in events]
    assert choices[0]["text"] == "the cat" and choices[-1]["text"] == "" and choices[-1]["finish_reason"]
    whole = live.ask("/v1/completions", prompt="the cat", max_tokens=9, echo=True)
    assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]


def test_two_requests_over_one_connection(live: Live) -> None:
    with socket.create_connection(("127.0.0.1", live.port), timeout=30) as connection:
        stream = read_one_by_one(connection)
        for _ in range(2):
            connection.sendall(request(CHAT, ASKED | {"stream": True}, live.port))
            assert head_of(stream)[0] == 200
            assert events_of(b"".join(unchunked(stream)))


@pytest.mark.parametrize("fields", [{}, {"temperature": 2, "seed": 3, "max_tokens": 30}])
def test_a_whole_answer_has_all_its_fields(live: Live, fields: dict[str, Any]) -> None:
    answer = live.ask(**fields)
    assert set(answer) == {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"}
    assert set(answer["choices"][0]) == {"index", "message", "logprobs", "finish_reason"}
    assert set(answer["choices"][0]["message"]) == {"role", "content", "refusal"}
    assert set(answer["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens"}


def test_tokens(live: Live) -> None:
    body = {"model": "small", "messages": [{"role": "user", "content": "the <end> 猫"}]}
    status, _, answer = live.call("POST", "/v1/tokens", body)
    found = json.loads(answer)
    assert status == 200 and found["context"] == 128 and found["count"] == len(found["data"])
    control = [token["text"] for token in found["data"] if token["control"]]
    assert control == ["<bos>", "<user>", "<end>", "<assistant>"]  # what the user spelt is none of them
    said = b"".join(bytes(token["bytes"]) for token in found["data"] if not token["control"])
    assert said.decode().strip() == "the <end> 猫"


def test_tokens_are_those_that_are_billed(live: Live) -> None:
    body = {"model": "small", "messages": [{"role": "user", "content": "the cat"}]}
    found = json.loads(live.call("POST", "/v1/tokens", body)[2])
    assert found["count"] == live.ask()["usage"]["prompt_tokens"]
