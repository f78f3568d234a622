"""One call for an answer, from its body to its last byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

import anyio
from starlette.requests import Request as HttpRequest
from starlette.types import Receive

from instructgpt.generation.request import Request
from instructgpt.serving.access import Caller
from instructgpt.serving.answers import REASONS, Answer, Choice
from instructgpt.serving.fields import parse_json
from instructgpt.serving.loop import Stream
from instructgpt.serving.options import Limits
from instructgpt.serving.privacy import mask
from instructgpt.serving.problems import Problem
from instructgpt.serving.protocol import Asked, Shape
from instructgpt.serving.replies import ClientGone, Reply
from instructgpt.serving.safety import Piece, Verdict, Watched
from instructgpt.serving.service import Service
from instructgpt.serving.telemetry import Record

T = TypeVar("T")


class Added(NamedTuple):
    """What came to a choice."""

    choice: Choice
    piece: Piece
    is_last: bool


Read = Callable[[dict[str, Any], Limits, Shape], Asked]


async def read_body(request: HttpRequest, most: int, seconds: float) -> bytes:
    """The body, no more of which is read than may be. Raises Problem where it is too large or too slow."""
    problem = Problem(413, f"The body is larger than {most} bytes.", code="request_too_large")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise problem
    body = bytearray()
    try:
        with anyio.fail_after(seconds):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                body += message.get("body", b"")
                if len(body) > most:
                    raise problem
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        raise Problem(408, f"The body did not arrive within {seconds:g} seconds.", code="timeout") from None


async def while_there(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The work's result. The work is given up, and ClientGone raised, when the client goes away before."""

    async def leave() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(leave())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientGone
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Call:
    """A request for an answer that is being served."""

    def __init__(self, service: Service, caller: Caller, record: Record, reply: Reply):
        self._service, self._caller, self._record, self._reply = service, caller, record, reply

    async def serve(self, request: HttpRequest, read: Read) -> None:
        """Reads, generates and sends. Errors: Problem, ClientGone."""
        options = self._service.options
        body = await read_body(request, options.max_body_bytes, options.body_seconds)
        asked = read(parse_json(body), options.limits, self._service.shape)
        self._record.model, self._record.stream = asked.model, asked.stream
        await while_there(request.receive, self._answer(asked))

    async def _answer(self, asked: Asked) -> None:
        service = self._service
        service.adapter(asked.model)
        asked, verdict = await service.looked_at(asked)
        requests = await service.requests(asked)
        tokens = sum(len(request.ids) for request in requests)
        self._record.prompt_tokens = tokens
        self._caller.charge_prompt(tokens)
        echoed = [service.tokenizer.decode(request.ids) for request in requests] if asked.echo else []
        answer = Answer(asked, service.tokenizer, tokens, echoed)
        if verdict is not None:
            await self._send(answer, self._refused(answer, verdict))
        else:
            stream = await self._submitted(requests, tokens)
            try:
                await self._send(answer, self._grow(answer, stream))
            finally:
                stream.close()
                self._caller.tokens.take(answer.generated)
        self._note(answer)

    async def _submitted(self, requests: list[Request], tokens: int) -> Stream:
        """What comes of the requests. Where they are not taken, their tokens are given back."""
        try:
            return await self._service.loop.submit(requests)
        except BaseException:
            self._caller.tokens.take(-tokens)
            raise

    # ---- what is added to the answer

    async def _refused(self, answer: Answer, verdict: Verdict) -> AsyncIterator[list[Added]]:
        """A refusal in the place of every choice."""
        text = verdict.text if verdict.action == "refuse" else ""
        for choice in answer.choices:
            choice.text, choice.reason = text, REASONS["filter"]
            yield [Added(choice, Piece(text, [], True), True)]

    async def _grow(self, answer: Answer, stream: Stream) -> AsyncIterator[list[Added]]:
        """What comes of the engine, as far as it may be shown, added to its choices; all at once that came together."""
        asked, guard = answer.asked, self._service.guard
        conversations = map(self._service.conversation, asked.prompts)
        watched = [Watched(guard, messages, asked.stream) for messages in conversations for _ in range(asked.n)]
        async for updates in stream:
            added = []
            self._record.saw_tokens(self._service.telemetry, sum(len(update.tokens) for _, update in updates))
            for place, update in updates:
                choice = answer.choices[place * asked.n + update.index]
                answer.generated += len(update.tokens)
                if choice.reason:  # it was stopped
                    continue
                piece = await watched[choice.index].push(update.text, update.tokens, update.finish is not None)
                choice.text += piece.text
                choice.tokens += piece.tokens
                if piece.is_stopped:
                    choice.reason = REASONS["filter"]
                elif update.finish is not None:
                    choice.reason = REASONS[update.finish]
                added.append(Added(choice, piece, choice.reason is not None))
            yield added
            if answer.is_done:
                return

    # ---- how it is sent

    async def _send(self, answer: Answer, growth: AsyncIterator[list[Added]]) -> None:
        send = self._stream if answer.asked.stream else self._whole
        await send(answer, growth)

    async def _whole(self, answer: Answer, growth: AsyncIterator[list[Added]]) -> None:
        with anyio.move_on_after(self._service.options.max_seconds):
            async for _ in growth:
                pass
        for choice in answer.choices:
            choice.reason = choice.reason or REASONS["length"]
        await self._reply.json(answer.whole())

    async def _stream(self, answer: Answer, growth: AsyncIterator[list[Added]]) -> None:
        await self._reply.begin_events()
        with anyio.move_on_after(self._service.options.max_seconds) as time:
            await self._reply.events(answer.opening())
            async for added in growth:
                await self._reply.events(self._chunks(answer, added))
        with anyio.move_on_after(1 if time.cancelled_caught else None):
            await self._reply.events(self._cut_off(answer))
            if answer.asked.include_usage:
                await self._reply.events([answer.bill()])
            await self._reply.end_events()

    def _chunks(self, answer: Answer, added: list[Added]) -> list[dict[str, Any]]:
        chunks = []
        for choice, piece, is_last in added:
            if piece.text or (piece.tokens and answer.asked.logprobs is not None):
                chunks.append(answer.piece(choice, piece.text, piece.tokens))
            if is_last:
                chunks.append(answer.closing(choice))
        return chunks

    def _cut_off(self, answer: Answer) -> list[dict[str, Any]]:
        """The ends of the choices whose time is over."""
        unfinished = [choice for choice in answer.choices if not choice.reason]
        for choice in unfinished:
            choice.reason = REASONS["length"]
        return [answer.closing(choice) for choice in unfinished]

    # ---- what is written down

    def _note(self, answer: Answer) -> None:
        reasons = [choice.reason or "" for choice in answer.choices]
        self._record.finish = ",".join(dict.fromkeys(reasons))
        if REASONS["filter"] in reasons:
            self._record.refused = "safety"
        if self._service.options.log_texts:
            conversations = map(self._service.conversation, answer.asked.prompts)
            prompt = "\n".join(message["content"] for messages in conversations for message in messages)
            texts = "\n".join(choice.text for choice in answer.choices)
            self._record.texts = {"prompt": mask(prompt), "answer": mask(texts)}
