"""Conversations and prompts made to fit the context by whole turns, and an honest count of what that cost.

A long conversation becomes several windows. Each begins with `bos` and the system message and holds whole exchanges (a
question and its answer); those that an earlier window has taught stand there again, to be read and not learnt:

    conversation   <bos> S  Q1 A1  Q2 A2  Q3 A3  Q4 A4
    window 1       <bos> S  Q1 A1  Q2 A2                   learns A1, A2
    window 2       <bos> S         Q2 a2  Q3 A3            learns A3
    window 3       <bos> S                Q3 a3  Q4 A4     learns A4

Only an exchange that is alone too long for the context is cut: the question loses its front, down to half the context,
then the answer its tail and with it the `end`, which would teach to stop there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from instructgpt.data.tokens import Tokens
from instructgpt.text.chat import Message, Rendered, render_turn, validate_messages
from instructgpt.text.tokenizer import Tokenizer

Long = Literal["windows", "cut", "drop"]
"""What becomes of a conversation longer than the context: several windows that hold every answer; the first of these
windows alone; nothing."""


@dataclass
class Fitted:
    """What fitting conversations into the context cost; answers are those that are to be learnt."""

    conversations: int = 0
    answers: int = 0
    too_long: int = 0
    """Conversations longer than the context."""
    windows: int = 0
    """What these became."""
    cut_prompts: int = 0
    """Questions that lost their front."""
    cut_answers: int = 0
    """Answers that lost their tail and their end."""
    lost_answers: int = 0
    """Answers of which nothing is left."""

    def report(self, context: int) -> str:
        """One line; "" when everything fits."""
        if not self.too_long:
            return ""
        costs = (
            (self.cut_prompts, "lost the front of their prompt"),
            (self.cut_answers, "lost their tail"),
            (self.lost_answers, "are lost whole"),
        )
        told = ", ".join(f"{count:,} {what}" for count, what in costs if count) or "none lost anything"
        became = f"and became {self.windows:,} windows of whole turns" if self.windows else "and were left out"
        return (
            f"of {self.conversations:,} conversations, {self.too_long:,} are longer than {context:,} tokens {became}; "
            f"of {self.answers:,} answers, {told}"
        )


class _Exchange(NamedTuple):
    """What is asked and what is answered to it; the answer comes last and is empty where there is none."""

    messages: list[Message]
    tokens: Rendered

    @property
    def is_learnt(self) -> bool:
        return any(self.tokens.is_answer)


def windows(
    messages: Sequence[Message], tokenizer: Tokenizer, limit: int, long: Long = "windows", fitted: Fitted | None = None
) -> list[Tokens]:
    """A conversation as windows of at most `limit` tokens; every answer is a target in exactly one of them.

    One window where the conversation fits, none where it has nothing to learn. `fitted` counts what did not fit.
    Raises UserError unless the messages are valid.
    """
    validate_messages(messages)
    fitted = fitted if fitted is not None else Fitted()
    has_system = messages[0]["role"] == "system"
    system = render_turn(messages[0], tokenizer).ids if has_system else []
    exchanges = list(_exchanges(messages[has_system:], tokenizer))
    lengths = [len(exchange.tokens.ids) for exchange in exchanges]
    room = limit - 1 - len(system)
    learnt = sum(exchange.is_learnt for exchange in exchanges)
    fitted.conversations += 1
    fitted.answers += learnt
    if sum(lengths) <= room:
        return [_window(tokenizer, system, exchanges, 0)] if learnt else []
    fitted.too_long += 1
    if long == "drop":
        fitted.lost_answers += learnt
        return []
    found = []
    for span in _spans(lengths, [exchange.is_learnt for exchange in exchanges], room):
        if found and long == "cut":
            fitted.lost_answers += sum(exchange.is_learnt for exchange in exchanges[span.new : span.end])
        elif lengths[span.new] > room:
            alone = [*messages[:has_system], *exchanges[span.new].messages]
            found.append(_cut_exchange(alone, exchanges[span.new].tokens, tokenizer, limit, fitted))
        else:
            found.append(_window(tokenizer, system, exchanges[span.first : span.end], span.new - span.first))
    fitted.windows += len(found)
    return found


def all_windows(
    conversations: Iterable[Sequence[Message]], tokenizer: Tokenizer, context: int, long: Long = "windows"
) -> tuple[list[Tokens], Fitted]:
    """The windows of all conversations for rows of `context` inputs, hence of one token more, and what it cost."""
    fitted = Fitted()
    found = [window for messages in conversations for window in windows(messages, tokenizer, context + 1, long, fitted)]
    return found, fitted


def _exchanges(messages: Sequence[Message], tokenizer: Tokenizer) -> Iterator[_Exchange]:
    """Turns up to and with each of the assistant's; what follows the last one has nothing to learn."""
    pending: list[Message] = []
    ids: list[int] = []
    is_answer: list[bool] = []
    for message in messages:
        turn = render_turn(message, tokenizer)
        pending, ids, is_answer = [*pending, message], ids + turn.ids, is_answer + turn.is_answer
        if message["role"] == "assistant":
            yield _Exchange(pending, Rendered(ids, is_answer))
            pending, ids, is_answer = [], [], []


class _Span(NamedTuple):
    """Exchanges of a window: `first` to `new` are there to be read, `new` to `end` to be learnt."""

    first: int
    new: int
    end: int


def _spans(lengths: Sequence[int], is_learnt: Sequence[bool], room: int) -> Iterator[_Span]:
    """Which exchanges share a window: each that is learnt is new in exactly one.

    Up to half of the room goes to the exchanges just before, for a follow-up says nothing without them; then come as
    many new ones as fit, and what is left takes more of the earlier.
    """
    new = 0
    while new < len(lengths):
        if not is_learnt[new]:
            new += 1
            continue
        first, end, used = new, new + 1, lengths[new]
        while first and used + lengths[first - 1] <= min(room, lengths[new] + room // 2):
            first -= 1
            used += lengths[first]
        while end < len(lengths) and used + lengths[end] <= room:
            used += lengths[end]
            end += 1
        while first and used + lengths[first - 1] <= room:
            first -= 1
            used += lengths[first]
        yield _Span(first, new, end)
        new = end


def _window(tokenizer: Tokenizer, system: list[int], exchanges: Sequence[_Exchange], earlier: int) -> Tokens:
    """`bos`, the system message and whole exchanges, of which the first `earlier` are not learnt."""
    ids = [tokenizer.bos, *system]
    is_target = [False] * len(ids)
    for number, (_, tokens) in enumerate(exchanges):
        ids += tokens.ids
        is_target += tokens.is_answer if number >= earlier else [False] * len(tokens.ids)
    return Tokens(np.array(ids, dtype=np.int32), np.array(is_target, dtype=np.bool_))


def _cut_exchange(
    messages: Sequence[Message], tokens: Rendered, tokenizer: Tokenizer, limit: int, fitted: Fitted
) -> Tokens:
    """One exchange that is too long even alone; `messages` are the system's, if any, and its own."""
    answer = len(render_turn(messages[-1], tokenizer).ids) - 1  # the assistant's control token belongs to the prompt
    prompt = fit_prompt(messages[:-1], tokenizer, max(limit - answer, limit // 2))
    room = limit - len(prompt.ids)
    fitted.cut_prompts += prompt.is_cut
    fitted.cut_answers += room < answer
    ids = [*prompt.ids, *tokens.ids[-answer:][:room]]
    is_target = [*[False] * len(prompt.ids), *tokens.is_answer[-answer:][:room]]
    return Tokens(np.array(ids, dtype=np.int32), np.array(is_target, dtype=np.bool_))


# ---- prompts


class FittedPrompt(NamedTuple):
    """A prompt as tokens, up to where the assistant is to speak."""

    ids: list[int]
    lost_turns: int
    """Whole turns left out before the last question."""
    lost_tokens: int
    """Tokens cut off the system message and the last question."""

    @property
    def is_cut(self) -> bool:
        return self.lost_turns + self.lost_tokens > 0


def fit_prompt(messages: Sequence[Message], tokenizer: Tokenizer, room: int) -> FittedPrompt:
    """A prompt of at most `room` tokens, in training as in evaluation.

    What is too long loses whole earlier exchanges first, the oldest before the others; then the last question its
    front, since what is asked tends to stand at the end; a system message, which stays, loses its tail once the
    question is down to half of the room. Control tokens stay, as far as there is room for them.
    """
    has_system = bool(messages) and messages[0]["role"] == "system"
    system = render_turn(messages[0], tokenizer).ids if has_system else []
    turns = [render_turn(message, tokenizer).ids for message in messages[has_system:]]
    starts = [i for i, message in enumerate(messages[has_system:]) if message["role"] == "user"] or [0]
    for start in starts:
        whole = [tokenizer.bos, *system, *(i for turn in turns[start:] for i in turn), tokenizer.assistant]
        if len(whole) <= room:
            return FittedPrompt(whole, start, 0)
    last = turns[starts[-1] :]
    ids = _cut_prompt(system, [i for turn in last for i in turn], tokenizer, room)
    return FittedPrompt(ids, starts[-1], 1 + len(system) + sum(map(len, last)) + 1 - len(ids))


def _cut_prompt(system: list[int], question: list[int], tokenizer: Tokenizer, room: int) -> list[int]:
    """`bos`, system and question, each a turn of its own, and `assistant`, in at most `room` tokens."""
    content = room - 2 - sum(2 for turn in (system, question) if turn)  # what is no control token
    if content < 1:
        if system:
            return _cut_prompt([], question, tokenizer, room)
        return [tokenizer.bos, *question[len(question) - max(room - 2, 0) :], tokenizer.assistant][-max(room, 1) :]
    of_system, of_question = (max(len(turn) - 2, 0) for turn in (system, question))
    kept_question = min(of_question, max(content - of_system, (content + 1) // 2))
    kept_system = min(of_system, content - kept_question)
    if system:
        system = [*system[: 1 + kept_system], system[-1]]
    if question:
        question = [question[0], *question[len(question) - 1 - kept_question :]]
    return [tokenizer.bos, *system, *question, tokenizer.assistant]
