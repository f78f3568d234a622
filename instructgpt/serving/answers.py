"""How a request is answered: the original's objects, whole or in the chunks of a stream.

An answer is made of updates of the engine; what is added to it goes through `Choice`, which holds it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from instructgpt.generation.request import Token
from instructgpt.serving.protocol import Asked
from instructgpt.text.tokenizer import Tokenizer

REASONS = {"end": "stop", "stop": "stop", "length": "length", "context": "length", "filter": "content_filter"}
"""The original's words for why an answer ended."""


@dataclass
class Choice:
    """One of the answers to a request, as far as it is."""

    index: int
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    reason: str | None = None
    """In the original's words; None while it goes on."""


class Answer:
    """Who is answered what: ids and times that stay the same from the first chunk to the last."""

    def __init__(self, asked: Asked, tokenizer: Tokenizer, prompt_tokens: int, prompts: list[str]):
        """prompts: the texts that an answer begins with where they are to be echoed."""
        self.asked, self._tokenizer, self._prompts = asked, tokenizer, prompts
        self.id = f"{'chatcmpl' if asked.is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.prompt_tokens, self.generated = prompt_tokens, 0
        self.choices = [Choice(i) for i in range(asked.n * len(asked.prompts))]
        self._offsets = [len(self.echoed(choice)) for choice in self.choices]
        """Characters before each choice's next token, for `text_offset`."""

    @property
    def is_done(self) -> bool:
        return all(choice.reason for choice in self.choices)

    def echoed(self, choice: Choice) -> str:
        return self._prompts[choice.index // self.asked.n] if self.asked.echo else ""

    @property
    def usage(self) -> dict[str, Any]:
        total = self.prompt_tokens + self.generated
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.generated, "total_tokens": total}

    # ---- whole

    def whole(self) -> dict[str, Any]:
        kind = "chat.completion" if self.asked.is_chat else "text_completion"
        return {**self._head(kind), "choices": [self._choice(choice) for choice in self.choices], "usage": self.usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id, "object": kind, "created": self.created, "model": self.asked.model,
            "system_fingerprint": None,
        }  # fmt: skip

    def _choice(self, choice: Choice) -> dict[str, Any]:
        logprobs = self._logprobs(choice, choice.tokens)
        if not self.asked.is_chat:
            text = self.echoed(choice) + choice.text
            return {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": choice.reason}
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        return {"index": choice.index, "message": message, "logprobs": logprobs, "finish_reason": choice.reason}

    # ---- in chunks

    def opening(self) -> Iterable[dict[str, Any]]:
        """What comes before anything is generated: in a chat who speaks, else the prompt, if it is echoed."""
        for choice in self.choices:
            if self.asked.is_chat:
                delta = {"role": "assistant", "content": "", "refusal": None}
                yield self._chunk({"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None})
            elif echoed := self.echoed(choice):
                yield self._chunk({"index": choice.index, "text": echoed, "logprobs": None, "finish_reason": None})

    def piece(self, choice: Choice, text: str, tokens: list[Token]) -> dict[str, Any]:
        """What was added to a choice."""
        logprobs = self._logprobs(choice, tokens)
        said = {"delta": {"content": text}} if self.asked.is_chat else {"text": text}
        return self._chunk({"index": choice.index, **said, "logprobs": logprobs, "finish_reason": None})

    def closing(self, choice: Choice) -> dict[str, Any]:
        """Why it ended, and nothing more."""
        said: dict[str, Any] = {"delta": {}} if self.asked.is_chat else {"text": ""}
        return self._chunk({"index": choice.index, **said, "logprobs": None, "finish_reason": choice.reason})

    def bill(self) -> dict[str, Any]:
        """The last chunk of a stream that was to say what it cost."""
        return {**self._chunk(), "usage": self.usage}

    def _chunk(self, *choices: dict[str, Any]) -> dict[str, Any]:
        head = self._head("chat.completion.chunk" if self.asked.is_chat else "text_completion")
        usage = {"usage": None} if self.asked.include_usage else {}
        return {**head, "choices": list(choices), **usage}

    # ---- log-probabilities

    def _logprobs(self, choice: Choice, tokens: list[Token]) -> dict[str, Any] | None:
        """Of the tokens that are part of the text: what closes an answer is not."""
        if self.asked.logprobs is None:
            return None
        said = [token for token in tokens if token.id not in self._tokenizer.closing]
        if self.asked.is_chat:
            return {"content": [self._with_alternatives(token) for token in said], "refusal": None}
        offsets = []
        for token in said:
            offsets.append(self._offsets[choice.index])
            self._offsets[choice.index] += len(self._spelt(token.id))
        return {
            "tokens": [self._spelt(token.id) for token in said],
            "token_logprobs": [_finite(token.logprob) for token in said],
            "top_logprobs": [{self._spelt(i): _finite(logprob) for i, logprob in token.top} for token in said],
            "text_offset": offsets,
        }

    def _with_alternatives(self, token: Token) -> dict[str, Any]:
        top = [self._token(i, logprob) for i, logprob in token.top]
        return {**self._token(token.id, token.logprob), "top_logprobs": top}

    def _token(self, i: int, logprob: float | None) -> dict[str, Any]:
        return {"token": self._spelt(i), "logprob": _finite(logprob), "bytes": list(token_bytes(self._tokenizer, i))}

    def _spelt(self, i: int) -> str:
        return self._tokenizer.spelt(i)


def _finite(logprob: float | None) -> float:
    """What has no probability at all is -9999, as with the original: JSON has no infinity."""
    return -9999.0 if logprob is None else max(logprob, -9999.0)


def token_bytes(tokenizer: Tokenizer, i: int) -> bytes:
    """Of an embedding that belongs to no token, none."""
    return tokenizer.token_bytes(i) if i < tokenizer.vocab_size else b""


def token_list(model: str, ids: Iterable[int], tokenizer: Tokenizer, context: int) -> dict[str, Any]:
    """The answer of /v1/tokens: the tokens that the model reads, control tokens marked as such."""
    control = set(tokenizer.control_ids.values())
    data = [
        {"id": i, "text": tokenizer.spelt(i), "bytes": list(token_bytes(tokenizer, i)), "control": i in control}
        for i in ids
    ]
    return {"object": "list", "model": model, "data": data, "count": len(data), "context": context}
