"""One service: a model behind an engine, who may use it, within which limits, and what is told of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from instructgpt.errors import UserError, suggestion
from instructgpt.generation.constraints import choice_constraint, regex_constraint, schema_constraint
from instructgpt.generation.engine import Engine, prompt_ids
from instructgpt.generation.request import Constraint, EngineConfig, Request
from instructgpt.model.transformer import Transformer
from instructgpt.serving.access import Caller, Key, Keys
from instructgpt.serving.fields import invalid, shown
from instructgpt.serving.loop import EngineLoop
from instructgpt.serving.options import Options
from instructgpt.serving.problems import Problem
from instructgpt.serving.protocol import AnyPrompt, Asked, Form, Shape
from instructgpt.serving.safety import Guard, Verdict
from instructgpt.serving.telemetry import Telemetry
from instructgpt.text.chat import Message
from instructgpt.text.tokenizer import Tokenizer

_AT_ONCE = 4096
"""Characters of a prompt that are made into tokens without holding others up."""


class Service:
    """What a request needs of the service."""

    def __init__(
        self, loop: EngineLoop, tokenizer: Tokenizer, shape: Shape, models: Mapping[str, str | None],
        options: Options | None = None, keys: Keys | None = None, guard: Guard | None = None,
        telemetry: Telemetry | None = None,
    ):  # fmt: skip
        """models: the adapter that computes it, by the name of a model; the first is the one that the page takes.
        keys: None lets everybody in, without limits."""
        self.loop, self.tokenizer, self.shape, self.models = loop, tokenizer, shape, dict(models)
        self.options, self.keys, self.guard = options or Options(), keys, guard or Guard([])
        self.telemetry = telemetry or Telemetry(loop)
        for each in (self.keys, self.guard):
            if each is not None:
                each.complain = self.telemetry.complain
        self.since = int(time.time())
        self._anybody = Caller(Key("", b""))
        self._longest_token = int(tokenizer.byte_lengths.max())

    @classmethod
    def of(
        cls, model: Transformer, tokenizer: Tokenizer, models: Mapping[str, str | None], config: EngineConfig,
        context: Callable[[], AbstractContextManager[Any]], options: Options, keys: Keys | None,
        guard: Guard | None = None, draft: Transformer | None = None,
    ) -> Service:  # fmt: skip
        """A service with an engine of its own. context: to compute in. draft: guesses ahead, where `config` wants it.
        Errors: UserError."""
        with context():
            engine = Engine(model, tokenizer, config, draft)
        loop = EngineLoop(engine, config.max_rows + options.max_queue, context)
        return cls(loop, tokenizer, Shape(model.config.vocab_size, model.config.context), models, options, keys, guard)

    def caller(self, authorization: str | None) -> Caller:
        """Who sends a request with this header. Errors: Problem."""
        return self._anybody if self.keys is None else self.keys.who(authorization)

    def model(self, name: str) -> dict[str, Any]:
        """What is said of a model. Raises Problem where there is none of that name."""
        self.adapter(name)
        return {
            "id": name, "object": "model", "created": self.since, "owned_by": "instructgpt",
            "context": self.shape.context,
        }  # fmt: skip

    def adapter(self, name: str) -> str | None:
        """Which adapter computes a model, as `Request.adapter`. Raises Problem where there is no such model."""
        if name not in self.models:
            near = suggestion(name[:100], self.models)
            raise Problem(404, f"The model {shown(name)} does not exist{near}.", "model", "model_not_found")
        return self.models[name]

    async def ids(self, prompt: AnyPrompt, is_chat: bool) -> tuple[int, ...]:
        """The tokens of a prompt. Raises Problem where they are too many."""
        if isinstance(prompt, tuple):
            return self._fitting(prompt, is_chat)
        texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
        size = sum(len(text.encode()) for text in texts)
        if size > self.shape.context * self._longest_token:  # no need to count
            raise self._too_long(f"at least {size // self._longest_token}", is_chat)
        try:
            if size <= _AT_ONCE:
                found = prompt_ids(prompt, self.tokenizer, raw=not is_chat)
            else:
                found = await asyncio.to_thread(prompt_ids, prompt, self.tokenizer, raw=not is_chat)
        except UserError as error:
            raise invalid("messages" if is_chat else "prompt", f"{error}.") from None
        if not found:
            raise invalid("prompt", "it is empty; the model needs a token to go on from.")
        return self._fitting(tuple(found), is_chat)

    @property
    def most_prompt_tokens(self) -> int:
        return min(self.options.limits.max_prompt_tokens or self.shape.context, self.shape.context)

    def _fitting(self, ids: tuple[int, ...], is_chat: bool) -> tuple[int, ...]:
        if len(ids) > self.most_prompt_tokens:
            raise self._too_long(str(len(ids)), is_chat)
        return ids

    def _too_long(self, tokens: str, is_chat: bool) -> Problem:
        what = "messages" if is_chat else "prompt"
        message = (
            f"This model reads at most {self.most_prompt_tokens} tokens, and your {what} resulted in {tokens}. Please "
            f"reduce the length of the {what}."
        )
        return Problem(400, message, what, "context_length_exceeded")

    def conversation(self, prompt: AnyPrompt) -> list[Message]:
        """A prompt as hooks look at it: a text is one turn of the user's."""
        if isinstance(prompt, list):
            return prompt
        return [{"role": "user", "content": prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt)}]

    async def looked_at(self, asked: Asked) -> tuple[Asked, Verdict | None]:
        """What is asked as the hooks let it through, or the verdict of one that does not."""
        if not self.guard:
            return asked, None
        prompts: list[AnyPrompt] = []
        for prompt in asked.prompts:
            before = self.conversation(prompt)
            after, verdict = await self.guard.before(before)
            if verdict is not None:
                return asked, verdict
            prompts.append(prompt if after == before else after if asked.is_chat else after[-1]["content"])
        return replace(asked, prompts=tuple(prompts)), None

    async def requests(self, asked: Asked) -> list[Request]:
        """What is asked of the engine, a request for each prompt. Errors: Problem."""
        adapter = self.adapter(asked.model)
        ids = [await self.ids(prompt, asked.is_chat) for prompt in asked.prompts]
        constraint = None if asked.form is None else await self._constraint(asked.form, not asked.is_chat)
        return [
            Request(each, asked.sampling, asked.n, not asked.is_chat, asked.logprobs, constraint, adapter)
            for each in ids
        ]

    async def _constraint(self, form: Form, raw: bool) -> Constraint:
        try:
            return await asyncio.to_thread(self._compile, form, raw)
        except UserError as error:
            raise invalid(form.field, f"{error}.") from None

    def _compile(self, form: Form, raw: bool) -> Constraint:
        """Raises UserError for what is no schema or expression, cannot be met, or would never end."""
        match form.kind:
            case "schema":
                return schema_constraint(form.value, self.tokenizer, raw)
            case "regex":
                return regex_constraint(form.value, self.tokenizer, raw)
            case "choices":
                return choice_constraint(form.value, self.tokenizer, raw)
