"""What may be asked and said: hooks that look at a conversation before it is answered, and at the answer as it grows.

A hook is a function `f(messages, answer) -> Verdict | None`. Before anything is generated `answer` is None, afterwards
it is the answer so far, and None lets it pass:

    refuse  the verdict's text is the answer; of one that has begun to stream, nothing more is sent
    mask    the verdict's text stands in the place of the last message, or of the answer so far
    stop    the answer ends with what was let through before

An answer that is looked at is sent a little behind what is generated, so that what is to be masked is seen whole.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from instructgpt.errors import UserError
from instructgpt.generation.request import Token
from instructgpt.model.heads import RewardModel
from instructgpt.text.chat import Message, render_answer, render_prompt
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.checkpoint import load_reward_model
from instructgpt.training.rewards import imported_function

_BEHIND = 64
"""Characters that are held back from a stream while more may come: what is to be masked is rarely longer."""
REFUSAL = "Sorry, I cannot help with that."


class Verdict(NamedTuple):
    """What a hook wants done."""

    action: Literal["refuse", "mask", "stop"]
    text: str = REFUSAL


Hook = Callable[[list[Message], "str | None"], "Verdict | None"]


def load_hook(name: str) -> Hook:
    """The hook of `package.module:function` or `path/file.py:function`. UserError when there is none."""
    function = imported_function(name, "--safety")
    try:
        inspect.signature(function).bind([], None)
    except TypeError:
        raise UserError(f"--safety {name}: it must take two arguments, the messages and the answer or None") from None
    except ValueError:  # built in, and says nothing of its parameters
        pass
    return function


class Judge:
    """A hook that asks a reward model: an answer that it scores below a threshold is refused."""

    def __init__(self, model: RewardModel, tokenizer: Tokenizer, least: float):
        self._model, self._tokenizer, self._least = model, tokenizer, least
        self._lock = threading.Lock()

    @classmethod
    def load(cls, run: str, least: float) -> Judge:
        """The reward model of a run directory. Errors: UserError."""
        return cls(*load_reward_model(run, "cpu"), least)

    def __call__(self, messages: list[Message], answer: str | None) -> Verdict | None:
        if answer is None:
            return None
        ids = [*render_prompt(messages, self._tokenizer), *render_answer(answer, self._tokenizer)]
        context = self._model.transformer.config.context
        with self._lock:
            score = self._model.score([ids[-context:]]).item()
        return None if score >= self._least else Verdict("refuse")  # NaN is refused, too


class Guard:
    """All hooks of a service, asked one after the other in a thread that holds nobody up.

    A hook that raises, or gives what is no verdict, refuses: what cannot be looked at is not let through.
    """

    def __init__(self, hooks: Sequence[Hook], every: int = 16):
        """every: characters after which a growing answer is looked at again."""
        self._hooks, self.every = list(hooks), every
        self.complain: Callable[[str], None] = print
        """Told, in a line, of a hook that failed."""

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def _ask(self, hook: Hook, messages: list[Message], answer: str | None) -> Verdict | None:
        try:
            verdict: Any = hook([{**message} for message in messages], answer)
        except Exception as error:
            self.complain(f"a safety hook raised {type(error).__name__}: {error}")
            return Verdict("refuse")
        if verdict is None or (isinstance(verdict, Verdict) and verdict.action in ("refuse", "mask", "stop")):
            return verdict
        self.complain(f"a safety hook gave {type(verdict).__name__}, which is no Verdict and not None")
        return Verdict("refuse")

    async def before(self, messages: list[Message]) -> tuple[list[Message], Verdict | None]:
        """The conversation as it may be answered, or the verdict that it may not be."""
        return await asyncio.to_thread(self._before, messages)

    def _before(self, messages: list[Message]) -> tuple[list[Message], Verdict | None]:
        for hook in self._hooks:
            verdict = self._ask(hook, messages, None)
            if verdict and verdict.action != "mask":
                return messages, verdict
            if verdict:
                messages = [*messages[:-1], {**messages[-1], "content": verdict.text}]
        return messages, None

    async def after(self, messages: list[Message], answer: str) -> tuple[str, Verdict | None]:
        """The answer as it may be shown, or the verdict that it may not."""
        return await asyncio.to_thread(self._after, messages, answer)

    def _after(self, messages: list[Message], answer: str) -> tuple[str, Verdict | None]:
        for hook in self._hooks:
            verdict = self._ask(hook, messages, answer)
            if verdict and verdict.action != "mask":
                return answer, verdict
            if verdict:
                answer = verdict.text
        return answer, None


class Piece(NamedTuple):
    """What of an answer may be shown now."""

    text: str
    tokens: list[Token]
    is_stopped: bool = False
    """The answer ends with it, whatever the model would go on with."""


class Watched:
    """One growing answer on its way through a guard."""

    def __init__(self, guard: Guard, messages: list[Message], streams: bool):
        """streams: what is shown cannot be taken back; otherwise all of it is shown at the end."""
        self._guard, self._messages, self._behind = guard, messages, _BEHIND if streams else math.inf
        self._text = self._allowed = self._sent = ""
        self._looked_at = 0
        self._held: list[tuple[int, Token]] = []
        """Tokens that are not shown yet, each with the characters that there were with it."""
        self._was_masked = False

    async def push(self, text: str, tokens: Sequence[Token], is_last: bool) -> Piece:
        """What may be shown when this has been added to the answer."""
        if not self._guard:
            return Piece(text, list(tokens))
        self._text += text
        self._held += [(len(self._text), token) for token in tokens]
        if not is_last and len(self._text) - self._looked_at < self._guard.every:
            return Piece("", [])
        self._looked_at = len(self._text)
        allowed, verdict = await self._guard.after(self._messages, self._text)
        if verdict is not None or not allowed.startswith(self._sent):
            return self._stopped(verdict)
        self._was_masked |= allowed != self._text
        self._allowed = allowed
        end = len(allowed) if is_last else int(max(len(self._sent), len(allowed) - self._behind))
        shown, self._sent = allowed[len(self._sent) : end], allowed[:end]
        return Piece(shown, self._release(end, is_last))

    def _stopped(self, verdict: Verdict | None) -> Piece:
        """The end, where something was found that is not to be said, or that cannot be masked any more."""
        self._held.clear()
        if verdict is not None and verdict.action == "refuse":
            return Piece("" if self._sent else verdict.text, [], True)
        return Piece(self._allowed[len(self._sent) :] if verdict is not None else "", [], True)

    def _release(self, end: int, is_last: bool) -> list[Token]:
        """The tokens whose text is shown; none any more once something was masked, for they would spell it."""
        if self._was_masked:
            self._held.clear()
        shown = [token for characters, token in self._held if is_last or characters <= end]
        self._held = self._held[len(shown) :]
        return shown
