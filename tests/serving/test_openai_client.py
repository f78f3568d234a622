"""The official client, against a live service: what it asks for it gets, and what it refuses to read is not sent."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.serving.conftest import Live

openai = pytest.importorskip("openai", reason="openai's client is in the extra `dev`")
pytest.importorskip("starlette", reason="starlette is in the extra `serve`")

UNSET = openai.omit if hasattr(openai, "omit") else openai.NOT_GIVEN


def says(content: Any, role: str = "user", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


ASKED: list[Any] = [says("the cat")]
LONG = [says("the old house")]
PARTS = [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "bird",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"color": {"enum": ["red", "blue"]}, "sings": {"type": "boolean"}},
            "required": ["color", "sings"],
            "additionalProperties": False,
        },
    },
}
IMAGE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.fixture(scope="module")
def client(live: Live) -> Any:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=30)


def chat(client: Any, **fields: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "small", "messages": ASKED, "max_tokens": 8, "temperature": 0} | fields
    )


def text(client: Any, **fields: Any) -> Any:
    return client.completions.create(
        **{"model": "small", "prompt": "the cat", "max_tokens": 8, "temperature": 0} | fields
    )


def is_whole(answer: Any) -> bool:
    """Whether an answer has what the original's always has."""
    usage = answer.usage
    return (
        answer.id.startswith(("chatcmpl-", "cmpl-"))
        and answer.object in ("chat.completion", "text_completion")
        and abs(answer.created - __import__("time").time()) < 60
        and answer.model == "small"
        and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        and [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        and all(choice.finish_reason in ("stop", "length", "content_filter") for choice in answer.choices)
    )


CHATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "a system message": {"messages": [says("red birds", "system"), *ASKED]},
    "a developer's message": {"messages": [says("red birds", "developer"), *ASKED]},
    "two system messages": {"messages": [says("a", "system"), says("b", "developer"), *ASKED]},
    "several turns": {"messages": [*ASKED, says("saw", "assistant"), *LONG]},
    "parts of text": {"messages": [says(PARTS)]},
    "a name": {"messages": [says("the cat", name="anna")]},
    "temperature": {"temperature": 1.3, "seed": 1},
    "the default temperature": {"temperature": UNSET},
    "top_p": {"temperature": 1, "top_p": 0.5},
    "top_p of 0": {"temperature": 1, "top_p": 0},
    "n": {"n": 3, "temperature": 1},
    "one stop string": {"stop": "e"},
    "four stop strings": {"stop": ["a", "e", "i", "o"]},
    "no stop string": {"stop": None},
    "max_completion_tokens": {"max_completion_tokens": 5, "max_tokens": UNSET},
    "presence_penalty": {"presence_penalty": 1.5},
    "frequency_penalty": {"frequency_penalty": -1.5},
    "logit_bias": {"logit_bias": {"40": 5, "41": -100}},
    "logprobs": {"logprobs": True},
    "top_logprobs": {"logprobs": True, "top_logprobs": 3},
    "any JSON": {"response_format": {"type": "json_object"}, "temperature": 1, "max_tokens": 40},
    "JSON by a schema": {"response_format": SCHEMA, "temperature": 1, "max_tokens": 60},
    "an expression of our own": {"extra_body": {"regex": "(cat|bird)s? [0-9]{2}"}, "max_tokens": 30},
    "choices of our own": {"extra_body": {"choices": ["red birds", "the cat"]}, "max_tokens": 30},
    "text as the format": {"response_format": {"type": "text"}},
    "a user": {"user": "somebody"},
    "metadata": {"metadata": {"a": "b"}, "store": False},
    "no tools": {"tools": [], "tool_choice": "none"},
    "modalities": {"modalities": ["text"]},
    "a service tier": {"service_tier": "auto"},
    "top_k of our own": {"extra_body": {"top_k": 2}, "temperature": 1},
    "min_p of our own": {"extra_body": {"min_p": 0.1}, "temperature": 1},
    "repetition_penalty of our own": {"extra_body": {"repetition_penalty": 1.5}},
    "stop_token_ids of our own": {"extra_body": {"stop_token_ids": [40, 41]}},
}  # fmt: skip


@pytest.mark.parametrize("fields", CHATS.values(), ids=CHATS)
def test_a_chat_whole_and_streamed(client: Any, fields: dict[str, Any]) -> None:
    """A stream, put together, is the whole answer; both have the original's shape."""
    fields = {"seed": 7} | fields
    whole = chat(client, **fields)
    assert is_whole(whole)
    assert all(choice.message.role == "assistant" and choice.message.refusal is None for choice in whole.choices)
    texts = ["" for _ in whole.choices]
    reasons: list[str | None] = [None for _ in whole.choices]
    ids = set()
    for chunk in chat(client, stream=True, stream_options={"include_usage": True}, **fields):
        ids.add((chunk.id, chunk.created, chunk.object, chunk.model))
        for choice in chunk.choices:
            assert reasons[choice.index] is None, "something came after the end"
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason
            assert choice.finish_reason is None or choice.delta.content is None
        usage = chunk.usage
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage
    assert len(ids) == 1


TEXTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "several prompts": {"prompt": ["the cat", "the old house"]},
    "tokens": {"prompt": [40, 41, 42]},
    "several of tokens": {"prompt": [[40, 41], [42]]},
    "n": {"n": 2, "temperature": 1, "prompt": ["a", "b"]},
    "echo": {"echo": True},
    "logprobs": {"logprobs": 2},
    "logprobs of 0": {"logprobs": 0},
    "a stop string": {"stop": ["e"]},
    "best_of as n": {"n": 2, "best_of": 2},
    "an empty prompt": {"prompt": ""},
    "the default length": {"max_tokens": UNSET},
}


@pytest.mark.parametrize("fields", TEXTS.values(), ids=TEXTS)
def test_a_text_whole_and_streamed(client: Any, fields: dict[str, Any]) -> None:
    fields = {"seed": 7} | fields
    whole = text(client, **fields)
    assert is_whole(whole)
    texts = ["" for _ in whole.choices]
    for chunk in text(client, stream=True, **fields):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["small"]
    assert client.models.retrieve("small").object == "model"


def test_the_same_seed_gives_the_same_answer_and_another_another(client: Any) -> None:
    said = [
        chat(client, temperature=1, seed=seed, max_tokens=12).choices[0].message.content
        for seed in (1, 1, 2, -5, 2**63 - 1)
    ]
    assert said[0] == said[1] and len(set(said)) == 4


def test_sample_i_of_n_is_what_seed_plus_i_gives(client: Any) -> None:
    both = chat(client, temperature=1, seed=3, n=2).choices
    assert both[1].message.content == chat(client, temperature=1, seed=4).choices[0].message.content


def test_max_tokens_cuts_and_says_so(client: Any) -> None:
    answer = chat(client, messages=LONG, max_tokens=2, logit_bias=None)
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 2


def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(client: Any) -> None:
    whole = chat(client, messages=LONG, max_tokens=16).choices[0].message.content
    stop = whole[5:7]
    answer = chat(client, messages=LONG, max_tokens=16, stop=stop).choices[0]
    assert answer.message.content == whole[: whole.index(stop)] and answer.finish_reason == "stop"


def test_log_probabilities_are_those_of_the_tokens_said(client: Any) -> None:
    choice = chat(client, logprobs=True, top_logprobs=4, messages=LONG).choices[0]
    content = choice.logprobs.content
    assert (
        b"".join(bytes(token.bytes) for token in content).decode("utf-8", "replace").strip()
        == choice.message.content.strip()
    )
    for token in content:
        top = token.top_logprobs
        assert len(top) == 4 and token.logprob <= 0
        assert [one.logprob for one in top] == sorted((one.logprob for one in top), reverse=True)
        assert (top[0].token, top[0].logprob) == (token.token, pytest.approx(token.logprob))  # greedy
        assert sum(math.exp(one.logprob) for one in top) <= 1 + 1e-6


def test_the_token_that_closes_an_answer_is_paid_for_and_is_no_part_of_it(client: Any, live: Live) -> None:
    answer = chat(client, logprobs=True, logit_bias={str(live.service.tokenizer.end): 100})
    assert answer.choices[0].finish_reason == "stop" and answer.usage.completion_tokens == 1
    assert answer.choices[0].message.content == "" and answer.choices[0].logprobs.content == []


def test_log_probabilities_of_a_text(client: Any) -> None:
    choice = text(client, logprobs=2, prompt="the old house").choices[0]
    found = choice.logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset)
    assert found.text_offset[0] == 0 and all(len(top) <= 2 for top in found.top_logprobs)


def test_a_banned_token_is_not_said_and_a_forced_one_is(client: Any) -> None:
    forced = chat(client, logit_bias={"60": 100}, max_tokens=3, logprobs=True).choices[0]
    assert len({token.token for token in forced.logprobs.content}) == 1
    banned = chat(client, logit_bias={"60": -100}, max_tokens=3, logprobs=True).choices[0]
    assert forced.logprobs.content[0].token not in [token.token for token in banned.logprobs.content]


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_follows_its_form_or_is_cut(client: Any, seed: int) -> None:
    choice = chat(client, response_format=SCHEMA, temperature=1, seed=seed, max_tokens=60).choices[0]
    assert choice.finish_reason == "stop"  # there is room for all of it
    found = json.loads(choice.message.content)
    assert set(found) == {"color", "sings"} and found["color"] in ("red", "blue") and isinstance(found["sings"], bool)
    cut = chat(client, response_format=SCHEMA, temperature=1, seed=seed, max_tokens=2).choices[0]
    assert cut.finish_reason == "length"
    choice = chat(client, response_format={"type": "json_object"}, temperature=1, seed=seed, max_tokens=60).choices[0]
    assert choice.message.content.lstrip().startswith("{")
    assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)
    choice = chat(client, extra_body={"regex": "[0-9]{2} cats?"}, temperature=1, seed=seed, max_tokens=30).choices[0]
    assert re.fullmatch("[0-9]{2} cats?", choice.message.content) and choice.finish_reason == "stop"


def test_the_helper_for_streams(client: Any) -> None:
    with client.chat.completions.stream(model="small", messages=ASKED, max_tokens=8, temperature=0) as stream:
        kinds = [event.type for event in stream]
        final = stream.current_completion_snapshot  # the final one is refused where it was cut at max_tokens
    assert "content.delta" in kinds and final.choices[0].message.content == chat(client).choices[0].message.content


def test_raw_responses_have_an_id(client: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(model="small", messages=ASKED, max_tokens=1)
    assert raw.headers["x-request-id"].startswith("req-") and raw.parse().choices


MISTAKES: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "temperature": ({"temperature": 3}, "temperature", "decimal_above_max_value"),
    "n": ({"n": 0}, "n", "integer_below_min_value"),
    "tools": ({"tools": [TOOL]}, "tools", "unsupported_parameter"),
    "a long prompt": ({"messages": [says("cat " * 500)]}, "messages", "context_length_exceeded"),
    "an unknown field": ({"extra_body": {"bogus": 1}}, "bogus", "unknown_parameter"),
    "an image": ({"messages": [says(IMAGE)]}, "messages[0].content[0].type", "invalid_value"),
    "no messages": ({"messages": []}, "messages", "empty_array"),
    "an array for a number": ({"max_tokens": [1]}, "max_tokens", "invalid_type"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "code"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_the_clients_own_exception(client: Any, fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, **fields)
    error = caught.value
    assert (error.param, error.code, error.type) == (param, code, "invalid_request_error")


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        (lambda client: chat(client, model="gpt-9"), "model_not_found"),
        (lambda client: client.models.retrieve("x"), "model_not_found"),
        (lambda client: client.embeddings.create(model="small", input="x"), "unknown_url"),
    ],
)
def test_what_there_is_none_of_is_not_found(client: Any, ask: Callable[[Any], Any], code: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client)
    assert caught.value.code == code


def test_many_at_once_and_asynchronously(live: Live) -> None:
    import asyncio

    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
            answers = await asyncio.gather(*(
                client.chat.completions.create(model="small", messages=ASKED, max_tokens=8, temperature=1, seed=i % 4)
                for i in range(12)
            ))  # fmt: skip
        return [answer.choices[0].message.content for answer in answers]

    said = asyncio.run(run())
    assert all(said[i] == said[i % 4] for i in range(12)) and len(set(said)) > 1


def test_json_survives_as_it_was_said(client: Any) -> None:
    """Whatever bytes a model says, the body is JSON."""
    raw = client.chat.completions.with_raw_response.create(
        model="small", messages=ASKED, max_tokens=40, temperature=2, seed=5, n=4
    )
    assert json.loads(raw.text if isinstance(raw.text, str) else raw.text())["choices"]
