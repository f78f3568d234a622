"""The engine in a thread of its own, asked by many at once.

An engine belongs to one thread. Here that thread obeys what the others send it (add, abort, stop), makes a step, and
hands what came of it to asyncio; all that the others see is a `Stream`, one a call. Between two steps it obeys whatever
has come: a client that goes away has freed its blocks before the next step.
"""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from instructgpt.errors import UserError
from instructgpt.generation.request import EngineStats, Request, Update
from instructgpt.serving.problems import Problem

if TYPE_CHECKING:
    from instructgpt.generation.engine import Engine

_LONGEST_WAIT = 60.0
_FINISHED = 32
"""Answers over which it is measured how fast they are finished."""


class Stream:
    """What comes of one call's requests. Iterate over it: each item is what came since the last, in order, as pairs of
    the request's place in the call and an update. `close` it whatever happens."""

    def __init__(self, loop: EngineLoop, answers: int, added: asyncio.Future[None]):
        """added: done when the engine has taken the requests."""
        self._loop, self._unfinished, self.answers, self.added = loop, answers, answers, added
        self._arrived: asyncio.Queue[tuple[int, Update] | BaseException] = asyncio.Queue()
        self.ids: dict[int, int] = {}
        """Places of the requests by the engine's numbers; the engine's thread fills it."""

    @property
    def is_open(self) -> bool:
        """Whether an update is still to arrive."""
        return self._unfinished > 0

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> list[tuple[int, Update]]:
        if not self._unfinished and self._arrived.empty():
            raise StopAsyncIteration
        items = [await self._arrived.get()]
        while not self._arrived.empty():
            items.append(self._arrived.get_nowait())
        updates = []
        for item in items:
            if isinstance(item, BaseException):
                raise item
            updates.append(item)
        return updates

    def arrive(self, item: tuple[int, Update] | BaseException) -> None:
        """Called by the loop, in asyncio's thread."""
        if isinstance(item, BaseException):
            self._unfinished = 0
        elif item[1].finish is not None:
            self._unfinished -= 1
        self._arrived.put_nowait(item)

    def close(self) -> None:
        """Gives up what is not finished; blocks are free before the engine's next step."""
        self._unfinished = 0
        self._loop.give_up(self)


class EngineLoop:
    """Runs an engine. Everything here is called in asyncio's thread, unless it says otherwise."""

    def __init__(
        self, engine: Engine, most_answers: int, context: Callable[[], AbstractContextManager[Any]] = nullcontext
    ):
        """engine: from now on nobody else's. most_answers: under way or waiting; more are refused. context: to compute
        in."""
        self._engine, self._context, self.most_answers = engine, context, most_answers
        self._commands: queue.SimpleQueue[Callable[[Engine], None] | None] = queue.SimpleQueue()
        self._streams: dict[int, Stream] = {}
        self._left: dict[int, int] = {}
        """Whose a request is, and how many of its answers are not finished; the engine's thread alone touches them."""
        self._open: set[Stream] = set()
        self._finished: deque[float] = deque(maxlen=_FINISHED)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._is_stopping = False
        self.failures = 0
        """Steps that ended in an exception."""
        self.is_broken = False
        """The engine's thread has ended by one."""
        self.stats: EngineStats = engine.stats()
        """Of the last step."""

    # ---- asyncio's side

    async def start(self) -> None:
        self._asyncio = asyncio.get_running_loop()
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        return self._thread.is_alive() and not self._is_stopping and not self.is_broken

    @property
    def under_way(self) -> int:
        """Answers that were taken on and are not finished."""
        return sum(stream.answers for stream in self._open)

    async def submit(self, requests: Sequence[Request]) -> Stream:
        """Takes on a call's requests, all or none. Raises Problem where there is no room for them, or no engine, and
        UserError as `Engine.add`."""
        answers = sum(request.n for request in requests)
        if not self.is_ready:
            raise Problem(503, "The service is not taking requests.", code="unavailable", retry_after=5)
        if answers > self.most_answers:
            raise Problem(400, f"These are {answers} answers; the service gives {self.most_answers} at a time.", "n")
        if self.under_way + answers > self.most_answers:
            raise Problem(
                429, "The service is busy and its queue is full; try again later.", code="queue_full",
                retry_after=self.expected_wait,
            )  # fmt: skip
        stream = Stream(self, answers, self._asyncio.create_future())
        self._open.add(stream)
        self._commands.put(lambda engine: self._add(engine, requests, stream))
        try:
            await stream.added
        except BaseException:  # whoever asked may have gone away meanwhile
            stream.close()
            raise
        return stream

    @property
    def expected_wait(self) -> float:
        """Seconds until there may be room, as fast as answers have been finished lately."""
        if len(self._finished) < 2:
            return 1.0
        pace = (time.monotonic() - self._finished[0]) / len(self._finished)
        return min(_LONGEST_WAIT, max(1.0, pace))

    def give_up(self, stream: Stream) -> None:
        """Aborts what a stream has under way."""
        if stream in self._open:
            self._open.discard(stream)
            self._commands.put(lambda engine: self._abort(engine, stream))

    async def stop(self) -> None:
        """Ends the thread, whatever is under way."""
        self._is_stopping = True
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join)
        self._give_up_all(Problem(503, "The service is stopping.", code="unavailable"))

    def _break(self) -> None:
        """The engine's thread has ended by an error."""
        self._give_up_all(_failed())

    def _give_up_all(self, problem: Problem) -> None:
        for stream in self._open:
            _settle(stream.added, problem)
        self._hand_out([(stream, problem) for stream in self._open])

    def _hand_out(self, items: Sequence[tuple[Stream, Any]]) -> None:
        for stream, item in items:
            stream.arrive(item)
            is_last = isinstance(item, BaseException) or item[1].finish is not None
            if is_last:
                self._finished.append(time.monotonic())
                if not stream.is_open:
                    self._open.discard(stream)

    # ---- the engine's thread

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        """Has a function called in asyncio's thread, while there is one."""
        if not self._asyncio.is_closed():
            self._asyncio.call_soon_threadsafe(function, *arguments)

    def _run(self) -> None:
        engine = self._engine
        try:
            with self._context():
                while self._obey(engine):
                    self._step(engine)
                    self.stats = engine.stats()
        except Exception as error:  # beyond repair
            self._note(error)
            self.is_broken = True
            self._tell(self._break)

    def _obey(self, engine: Engine) -> bool:
        """Does what was sent; waits where there is nothing else to do. False where the thread is to end."""
        while True:
            try:
                command = self._commands.get(block=not engine.busy)
            except queue.Empty:
                return True
            if command is None:
                return False
            command(engine)
            self.stats = engine.stats()

    def _add(self, engine: Engine, requests: Sequence[Request], stream: Stream) -> None:
        try:
            for place, request in enumerate(requests):
                number = engine.add(request)
                stream.ids[number] = place
                self._streams[number], self._left[number] = stream, request.n
        except Exception as error:
            self._abort(engine, stream)
            if not isinstance(error, UserError):
                self._note(error)
            self._tell(_settle, stream.added, error)
        else:
            self._tell(_settle, stream.added, None)

    def _abort(self, engine: Engine, stream: Stream) -> None:
        for number in stream.ids:
            if self._streams.pop(number, None) is not None:
                del self._left[number]
                engine.abort(number)

    def _step(self, engine: Engine) -> None:
        try:
            updates = engine.step()
        except Exception as error:
            self._note(error)
            self._start_afresh(engine)
            return
        items = []
        for update in updates:
            stream = self._streams.get(update.request)
            if stream is None:
                continue
            items.append((stream, (stream.ids[update.request], update)))
            if update.finish is not None:
                self._left[update.request] -= 1
                if not self._left[update.request]:
                    del self._streams[update.request], self._left[update.request]
        if items:
            self._tell(self._hand_out, items)

    def _start_afresh(self, engine: Engine) -> None:
        """After a step that failed: all that were part of it are told so, and the engine goes on without them."""
        failed = set(self._streams.values())
        for number in self._streams:
            engine.abort(number)
        self._streams.clear()
        self._left.clear()
        self._tell(self._hand_out, [(stream, _failed()) for stream in failed])

    def _note(self, error: Exception) -> None:
        """For the operator; what clients read says nothing of it."""
        self.failures += 1
        traceback.print_exception(error, file=sys.stderr)


def _failed() -> Problem:
    return Problem(500, "The model failed on this request, or on one beside it.", code="engine_failed")


def _settle(future: asyncio.Future[None], error: BaseException | None) -> None:
    if future.done():  # whoever waited for it has gone away
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
