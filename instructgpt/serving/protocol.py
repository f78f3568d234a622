"""What may be asked: bodies of /v1/chat/completions, /v1/completions and /v1/tokens, checked, in one form.

Fields mean what they mean in OpenAI's interface. Those that it knows and that are not done here are refused, unless
their value asks for nothing; those that nobody knows are refused as there. Beyond it stand, with the names that they
have elsewhere in this project: `top_k`, `min_p`, `repetition_penalty`, `stop_token_ids`, `regex` and `choices` (what
the answer must match, or be one of).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from instructgpt.errors import UserError, suggestion
from instructgpt.generation.sampling import SamplingConfig
from instructgpt.serving.fields import Fields, invalid, real_number, shown, whole_number, whole_text, wrong_type
from instructgpt.serving.options import Limits
from instructgpt.text.chat import ROLES, Message, validate_messages

_MOST_BIASES, _MOST_STOP_CHARACTERS, _MOST_CHOICES = 1024, 200, 256
_MOST_TOP, _MOST_TOP_TEXT = 20, 5
"""Alternatives to a token: as many as the original gives, in a chat and for a text."""
_SEEDS = 2**61
_IGNORED = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls",
)  # fmt: skip
_NOT_DONE: dict[str, tuple[Any, ...]] = {
    "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    "modalities": (["text"],), "audio": (), "prediction": (), "reasoning_effort": ("none",), "verbosity": (),
    "web_search_options": (), "moderation": (), "prompt_cache_options": (),
}  # fmt: skip


AnyPrompt = list[Message] | str | tuple[int, ...]
"""A conversation, a text to go on with, or the tokens of one."""


class Shape(NamedTuple):
    """What of the model decides how a request is read."""

    vocab_size: int
    context: int


class Form(NamedTuple):
    """What an answer must be like."""

    kind: Literal["schema", "regex", "choices"]
    value: Any
    """The schema, the expression, or the choices."""

    @property
    def field(self) -> str:
        """The field of the request that asks for it."""
        return self.kind if self.kind in ("regex", "choices") else "response_format"


@dataclass(frozen=True)
class Asked:
    """What one request asks for."""

    model: str
    prompts: tuple[AnyPrompt, ...]
    """One conversation, or texts (or their tokens) to go on with."""
    is_chat: bool
    sampling: SamplingConfig
    """Its `max_new_tokens` is what was asked for, or the most that there may be."""
    n: int = 1
    logprobs: int | None = None
    form: Form | None = None
    stream: bool = False
    include_usage: bool = False
    echo: bool = False
    """The answer begins with the prompt."""


def read_chat(values: dict[str, Any], limits: Limits, shape: Shape) -> Asked:
    """The body of /v1/chat/completions. Errors: Problem."""
    fields = Fields(values)
    model = fields.required("model", fields.text("model", 256))
    messages = read_messages(fields)
    asked = _max_tokens(fields, ("max_completion_tokens", "max_tokens"), limits, shape)
    wants, top = fields.flag("logprobs"), fields.integer("top_logprobs", 0, _MOST_TOP)
    if top is not None and not wants:
        raise invalid("top_logprobs", "it asks for alternatives to each token, and 'logprobs' is not true.")
    n = fields.integer("n", 1, limits.max_samples) or 1
    form = _form(fields, limits)
    stream, usage = _streaming(fields)
    sampling = _sampling(fields, limits, shape, asked or limits.max_answer_tokens or shape.context)
    fields.refuse(_NOT_DONE, "this model answers in text, and calls no tools.")
    fields.ignore(*_IGNORED)
    fields.done()
    return Asked(model, (messages,), True, sampling, n, (top or 0) if wants else None, form, stream, usage)


def read_text(values: dict[str, Any], limits: Limits, shape: Shape) -> Asked:
    """The body of /v1/completions. Errors: Problem."""
    fields = Fields(values)
    model = fields.required("model", fields.text("model", 256))
    prompts = _prompts(fields, shape)
    asked = _max_tokens(fields, ("max_tokens",), limits, shape)
    top = fields.integer("logprobs", 0, _MOST_TOP_TEXT)
    n = fields.integer("n", 1, limits.max_samples) or 1
    if n * len(prompts) > limits.max_samples:
        raise invalid("n", f"{n} answers to each of {len(prompts)} prompts are more than {limits.max_samples}.")
    best_of = fields.integer("best_of", 1, limits.max_samples)
    if best_of is not None and best_of != n:
        raise invalid("best_of", "answers are not compared here; leave it out, or let it equal 'n'.")
    echo = fields.flag("echo")
    if echo and top is not None:
        raise invalid("echo", "the prompt's own log-probabilities are not computed; leave out 'echo' or 'logprobs'.")
    form = _form(fields, limits)
    stream, usage = _streaming(fields)
    sampling = _sampling(fields, limits, shape, asked or min(16, limits.max_answer_tokens or 16))
    fields.refuse({"suffix": ("",)}, "text is not filled in between two others.")
    fields.ignore(*_IGNORED)
    fields.done()
    return Asked(model, prompts, False, sampling, n, top, form, stream, usage, echo)


class AskedTokens(NamedTuple):
    """Whose tokens are asked for."""

    model: str
    prompt: AnyPrompt
    is_chat: bool


def read_tokens(values: dict[str, Any], shape: Shape) -> AskedTokens:
    """The body of /v1/tokens: `model` and either `messages` or `prompt`. Errors: Problem."""
    fields = Fields(values)
    model = fields.required("model", fields.text("model", 256))
    is_chat = values.get("messages") is not None
    if is_chat and values.get("prompt") is not None:
        raise invalid("prompt", "give 'messages' or 'prompt', not both.")
    prompt = read_messages(fields) if is_chat else _prompts(fields, shape)[0]
    fields.ignore("prompt", "messages")
    fields.done()
    return AskedTokens(model, prompt, is_chat)


# ---- conversations and texts


def read_messages(fields: Fields) -> list[Message]:
    """The field `messages` as a conversation: the developer's messages are the system's, and several at the beginning
    are one. Errors: Problem."""
    values = fields.required("messages", fields.array("messages"))
    if not values:
        raise invalid(
            "messages",
            "empty array. Expected an array with minimum length 1, but got an empty array instead.",
            "empty_array",
        )
    messages = [_message(value, f"messages[{i}]") for i, value in enumerate(values)]
    opening = 0
    while opening < len(messages) and messages[opening]["role"] == "system":
        opening += 1
    if opening > 1:
        text = "\n\n".join(message["content"] for message in messages[:opening])
        messages[:opening] = [{"role": "system", "content": text}]
    try:
        validate_messages(messages)
    except UserError as error:
        raise invalid("messages", f"{error}.") from None
    if messages[-1]["role"] != "user":
        raise invalid("messages", f"the last message must be the user's, not of {messages[-1]['role']!r}.")
    return messages


def _message(value: Any, path: str) -> Message:
    fields = Fields(value, path)
    role = fields.required("role", fields.text("role"))
    role = "system" if role == "developer" else role
    if role in ("tool", "function"):
        raise invalid(f"{path}.role", "this model calls no tools, and hears of none.")
    if role not in ROLES:
        near = suggestion(shown(role)[1:-1], ROLES)
        raise invalid(f"{path}.role", f"there is no role {shown(role)}{near}.")
    content = _content(fields, path)
    fields.ignore("name")
    nothing: dict[str, tuple[Any, ...]] = {
        "refusal": (),
        "tool_calls": ([],),
        "function_call": (),
        "audio": (),
        "annotations": ([],),
    }
    fields.refuse(nothing, "this model answers in text, and calls no tools.")
    fields.done()
    return {"role": role, "content": content}


def _content(fields: Fields, path: str) -> str:
    """A message's text: a string, or the texts of its parts joined."""
    place = f"{path}.content"
    value = fields.required("content", fields.take("content"))
    if isinstance(value, str):
        return whole_text(value, place)
    if not isinstance(value, list):
        raise wrong_type(place, "a string or an array of parts", value)
    if not value:
        raise invalid(place, "empty array. Expected a string, or at least one part.", "empty_array")
    return "".join(_part(part, f"{place}[{i}]") for i, part in enumerate(value))


def _part(value: Any, path: str) -> str:
    fields = Fields(value, path)
    kind = fields.required("type", fields.text("type"))
    if kind != "text":
        raise invalid(f"{path}.type", f"this model reads text only, no part of the type {shown(kind)}.")
    text = fields.required("text", fields.text("text"))
    fields.done()
    return text


def _prompts(fields: Fields, shape: Shape) -> tuple[str | tuple[int, ...], ...]:
    """The field `prompt`: a text, the tokens of one, or several of either."""
    value = fields.required("prompt", fields.take("prompt"))
    if isinstance(value, str):
        return (whole_text(value, "prompt"),)
    if not isinstance(value, list):
        raise wrong_type("prompt", "a string, or an array of strings or of tokens", value)
    if not value:
        raise invalid("prompt", "empty array. Expected at least one prompt.", "empty_array")
    if all(type(item) is int for item in value):
        return (_ids(value, "prompt", shape),)
    return tuple(_prompt(item, f"prompt[{i}]", shape) for i, item in enumerate(value))


def _prompt(value: Any, path: str, shape: Shape) -> str | tuple[int, ...]:
    if isinstance(value, str):
        return whole_text(value, path)
    if not isinstance(value, list):
        raise wrong_type(path, "a string or an array of tokens", value)
    return _ids(value, path, shape)


def _ids(values: list[Any], path: str, shape: Shape) -> tuple[int, ...]:
    if not values:
        raise invalid(path, "empty array. Expected at least one token.", "empty_array")
    return tuple(whole_number(value, f"{path}[{i}]", 0, shape.vocab_size - 1) for i, value in enumerate(values))


# ---- how the answer is to be made


def _max_tokens(fields: Fields, names: Sequence[str], limits: Limits, shape: Shape) -> int | None:
    most = limits.max_answer_tokens or shape.context
    given = [value for name in names if (value := fields.integer(name, 1, most)) is not None]
    return given[0] if given else None


def _streaming(fields: Fields) -> tuple[bool, bool]:
    """Whether to stream, and whether to end with what it cost."""
    stream = fields.flag("stream")
    options = fields.object("stream_options", _stream_options)
    if options is not None and not stream:
        raise invalid("stream_options", "it says how to stream, and 'stream' is not true.")
    return stream, bool(options)


def _stream_options(fields: Fields) -> bool:
    fields.ignore("include_obfuscation")
    return fields.flag("include_usage")


def _sampling(fields: Fields, limits: Limits, shape: Shape, max_new_tokens: int) -> SamplingConfig:
    temperature = fields.number("temperature", 0, 2)
    top_p = fields.number("top_p", 0, 1)
    seed = fields.integer("seed", -(2**63), 2**63 - 1)
    return SamplingConfig(
        max_new_tokens=max_new_tokens,
        temperature=1.0 if temperature is None else temperature,
        top_k=fields.integer("top_k", 0, shape.vocab_size) or 0,
        top_p=1.0 if top_p is None else max(top_p, 1e-9),  # 0 leaves the likeliest token alone
        min_p=fields.number("min_p", 0, 1) or 0.0,
        repetition_penalty=_given(fields.number("repetition_penalty", 0.01, 100), 1.0),
        presence_penalty=fields.number("presence_penalty", -2, 2) or 0.0,
        frequency_penalty=fields.number("frequency_penalty", -2, 2) or 0.0,
        stop=_stops(fields, limits),
        stop_ids=_stop_ids(fields, limits, shape),
        logit_bias=_biases(fields, shape),
        seed=secrets.randbelow(_SEEDS) if seed is None else seed % _SEEDS,
    )


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def _stops(fields: Fields, limits: Limits) -> tuple[str, ...]:
    value = fields.take("stop")
    if value is None:
        return ()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise wrong_type("stop", "a string or an array of strings", value)
    if len(texts) > limits.max_stops:
        why = f"array too long. Expected an array with maximum length {limits.max_stops}, but got {len(texts)} instead."
        raise invalid("stop", why, "array_above_max_length")
    for i, text in enumerate(texts):
        path = f"stop[{i}]" if isinstance(value, list) else "stop"
        if not isinstance(text, str):
            raise wrong_type(path, "a string", text)
        if not 0 < len(whole_text(text, path)) <= _MOST_STOP_CHARACTERS:
            raise invalid(path, f"a stop string has 1 to {_MOST_STOP_CHARACTERS} characters, not {len(text)}.")
    return tuple(texts)


def _stop_ids(fields: Fields, limits: Limits, shape: Shape) -> tuple[int, ...]:
    values = fields.array("stop_token_ids") or []
    if len(values) > limits.max_stops:
        raise invalid(
            "stop_token_ids", f"array too long. Expected at most {limits.max_stops} tokens.", "array_above_max_length"
        )
    return tuple(whole_number(value, f"stop_token_ids[{i}]", 0, shape.vocab_size - 1) for i, value in enumerate(values))


def _biases(fields: Fields, shape: Shape) -> tuple[tuple[int, float], ...]:
    values = fields.take("logit_bias")
    if values is None:
        return ()
    if not isinstance(values, dict):
        raise wrong_type("logit_bias", "an object", values)
    if len(values) > _MOST_BIASES:
        raise invalid("logit_bias", f"it has {len(values)} tokens; at most {_MOST_BIASES} may be favoured.")
    biases = []
    for key, value in values.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < shape.vocab_size):
            raise invalid(
                "logit_bias", f"{shown(key)} is no token of this model; tokens are 0 to {shape.vocab_size - 1}."
            )
        biases.append((int(key), real_number(value, f"logit_bias.{key}", -100, 100)))
    return tuple(biases)


def _form(fields: Fields, limits: Limits) -> Form | None:
    """What `response_format`, `regex` or `choices` ask of the answer, at most one of which may."""
    regex = fields.text("regex", limits.max_schema_bytes)
    forms = [
        fields.object("response_format", lambda inner: _response_format(inner, limits)),
        None if regex is None else Form("regex", regex),
        _choices(fields),
    ]
    given = [form for form in forms if form is not None]
    if len(given) > 1:
        raise invalid(
            "response_format", "an answer follows one form: give one of 'response_format', 'regex' and 'choices'."
        )
    return given[0] if given else None


def _response_format(fields: Fields, limits: Limits) -> Form | None:
    kind = fields.required("type", fields.text("type"))
    if kind == "text":
        return None
    if kind == "json_object":
        return Form("schema", {"type": "object"})
    if kind != "json_schema":
        known = ("text", "json_object", "json_schema")
        raise invalid(fields.at("type"), f"there is no {shown(kind)}{suggestion(kind[:40], known)}.")
    return fields.required("json_schema", fields.object("json_schema", lambda inner: _schema(inner, limits)))


def _schema(fields: Fields, limits: Limits) -> Form:
    fields.required("name", fields.text("name", 64))
    fields.text("description")
    fields.flag("strict")
    schema = fields.required("schema", fields.take("schema"))
    if not isinstance(schema, dict):
        raise wrong_type(fields.at("schema"), "an object", schema)
    size = len(json.dumps(schema))
    if size > limits.max_schema_bytes:
        raise invalid(fields.at("schema"), f"it has {size} bytes; at most {limits.max_schema_bytes} are read.")
    return Form("schema", schema)


def _choices(fields: Fields) -> Form | None:
    values = fields.array("choices")
    if values is None:
        return None
    if not 0 < len(values) <= _MOST_CHOICES:
        raise invalid("choices", f"an answer is one of 1 to {_MOST_CHOICES} choices, not of {len(values)}.")
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise wrong_type(f"choices[{i}]", "a string", value)
        if not whole_text(value, f"choices[{i}]"):
            raise invalid(f"choices[{i}]", "a choice cannot be empty.")
    return Form("choices", tuple(values))
