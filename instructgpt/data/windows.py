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

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from instructgpt.data.tokens import Tokens
from instructgpt.text.chat import Conversation, Message, Rendered, is_learnt, validate_messages
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
    """What is asked and what is answered to it: turns `start` to `end` of a conversation, the answer last."""

    start: int
    end: int
    is_learnt: bool


def windows(
    messages: Sequence[Message], tokenizer: Tokenizer, limit: int, long: Long = "windows", fitted: Fitted | None = None
) -> list[Tokens]:
    """A conversation as windows of at most `limit` tokens; every answer is a target in exactly one of them.

    One window where the conversation fits, none where it has nothing to learn. `fitted` counts what did not fit.
    Raises UserError unless the messages are valid.
    """
    validate_messages(messages)
    fitted = fitted if fitted is not None else Fitted()
    conversation = Conversation(messages, tokenizer)
    exchanges = list(_exchanges(conversation))
    learnt = sum(exchange.is_learnt for exchange in exchanges)
    fitted.conversations += 1
    fitted.answers += learnt

    def length(first: int, end: int) -> int:
        return conversation.length(exchanges[first].start, exchanges[end - 1].end)

    def window(first: int, new: int, end: int) -> Tokens:
        turns = exchanges[first].start, exchanges[end - 1].end, exchanges[new].start
        return Tokens.of(conversation.stretch(*turns))

    opening = conversation.length(0, 0)
    if (length(0, len(exchanges)) if exchanges else opening) <= limit:
        return [window(0, 0, len(exchanges))] if learnt else []
    fitted.too_long += 1
    if long == "drop":
        fitted.lost_answers += learnt
        return []
    found = []
    for span in _spans(length, [exchange.is_learnt for exchange in exchanges], limit, (limit - opening) // 2):
        if found and long == "cut":
            fitted.lost_answers += sum(exchange.is_learnt for exchange in exchanges[span.new : span.end])
        elif length(span.new, span.new + 1) > limit:
            found.append(_cut_exchange(conversation, exchanges[span.new], tokenizer, limit, fitted))
        else:
            found.append(window(*span))
    fitted.windows += len(found)
    return found


def all_windows(
    conversations: Iterable[Sequence[Message]], tokenizer: Tokenizer, context: int, long: Long = "windows"
) -> tuple[list[Tokens], Fitted]:
    """The windows of all conversations for rows of `context` inputs, hence of one token more, and what it cost."""
    fitted = Fitted()
    found = [window for messages in conversations for window in windows(messages, tokenizer, context + 1, long, fitted)]
    return found, fitted


def _exchanges(conversation: Conversation) -> Iterator[_Exchange]:
    """Turns up to and with each of the assistant's; what follows the last one has nothing to learn."""
    start = 0
    for i, message in enumerate(conversation.messages):
        if message["role"] == "assistant":
            yield _Exchange(start, i + 1, is_learnt(message))
            start = i + 1


class _Span(NamedTuple):
    """Exchanges of a window: `first` to `new` are there to be read, `new` to `end` to be learnt."""

    first: int
    new: int
    end: int


def _spans(length: Callable[[int, int], int], is_learnt: Sequence[bool], limit: int, half: int) -> Iterator[_Span]:
    """Which exchanges share a window: each that is learnt is new in exactly one.

    length: tokens of a window of the exchanges from one to another. Up to `half`, of the room, goes to the exchanges
    just before, for a follow-up says nothing without them; then come as many new ones as fit, and what is left takes
    more of the earlier.
    """
    new = 0
    while new < len(is_learnt):
        if not is_learnt[new]:
            new += 1
            continue
        first, end, alone = new, new + 1, length(new, new + 1)
        while first and length(first - 1, end) <= min(limit, alone + half):
            first -= 1
        while end < len(is_learnt) and length(first, end + 1) <= limit:
            end += 1
        while first and length(first - 1, end) <= limit:
            first -= 1
        yield _Span(first, new, end)
        new = end


def _cut_exchange(
    conversation: Conversation, exchange: _Exchange, tokenizer: Tokenizer, limit: int, fitted: Fitted
) -> Tokens:
    """One exchange that is too long even alone."""
    answer = conversation.answer(exchange.end - 1)
    prompt = _fit_prompt(conversation, exchange.start, exchange.end - 1, max(limit - len(answer.ids), limit // 2))
    room = limit - len(prompt.ids)
    fitted.cut_prompts += prompt.is_cut
    fitted.cut_answers += room < len(answer.ids)
    ids = [*prompt.ids, *answer.ids[:room]]
    is_answer = [*[False] * len(prompt.ids), *answer.is_answer[:room]]
    return Tokens.of(Rendered(ids, is_answer))


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
    conversation = Conversation(messages, tokenizer)
    return _fit_prompt(conversation, 0, len(conversation.messages), room)


def _fit_prompt(conversation: Conversation, first: int, end: int, room: int) -> FittedPrompt:
    """Turns `first` to `end` as a prompt."""
    starts = [i for i in range(first, end) if conversation.messages[i]["role"] == "user"] or [first]
    lengths = [conversation.length(start, end) + len(conversation.prompt_end) for start in starts]
    for start, length in zip(starts, lengths):
        if length <= room:
            return FittedPrompt(conversation.prompt(start, end), start - first, 0)
    ids = _cut_prompt(conversation, starts[-1], end, room)
    return FittedPrompt(ids, starts[-1] - first, lengths[-1] - len(ids))


def _cut_prompt(conversation: Conversation, turn: int, end: int, room: int, with_system: bool = True) -> list[int]:
    """System message and the last question, each between its control tokens, in at most `room` tokens."""
    system, question = conversation.parts(turn, end, with_system)
    start, header = conversation.layout.start, conversation.prompt_end
    fixed = len(start) + len(header) + sum(len(part.opening) + len(part.closing) for part in (system, question))
    content = room - fixed  # tokens of what is said
    if content < 1 and with_system and conversation.system is not None:
        return _cut_prompt(conversation, turn, end, room, with_system=False)
    if content < 1:
        asked = question.ids
        asked = asked[len(asked) - max(room - len(start) - len(header), 0) :]
        return [*start, *asked, *header][-max(room, 1) :]
    of_system, of_question = len(system.content), len(question.content)
    kept_question = min(of_question, max(content - of_system, (content + 1) // 2))
    kept_system = min(of_system, content - kept_question)
    system = system._replace(content=system.content[:kept_system])
    question = question._replace(content=question.content[of_question - kept_question :])
    return [*start, *system.ids, *question.ids, *header]
