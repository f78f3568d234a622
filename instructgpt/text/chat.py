"""Conversations as ids, in whatever format the tokenizer has (`formats.py`). Ours:

    <bos> <system> … <end> <user> … <end> <assistant> … <end> <user> … <end> <assistant> …

Rendering is structural. Contents are encoded as text and control tokens are put in as ids, so nothing that a user
writes can close a turn or open another one. (Formats whose marks are text, such as the [INST] of Llama 2, have no
control tokens to guard; their documents still cannot be ended by a text.)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple, TypedDict

from instructgpt.errors import UserError, suggestion
from instructgpt.text.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")


class _Turn(TypedDict):
    role: str
    """`system`, `user` or `assistant`."""
    content: str


class Message(_Turn, total=False):
    """One turn."""

    learn: bool
    """False on a turn of the assistant that stands in the data to be read, not to be learnt; True if it is not said."""


def is_learnt(message: Message) -> bool:
    """Whether this is what a model is to learn to say: a turn of the assistant, unless it is marked as context only."""
    return message["role"] == "assistant" and message.get("learn", True)


class Rendered(NamedTuple):
    """A conversation as tokens; both lists have one entry a token."""

    ids: list[int]
    is_answer: list[bool]
    """True on what the assistant says and on the control token that closes it: what is trained on. Turns that are not
    to be learnt have none."""


def render_prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """Ids up to where the assistant is to speak, the opening of its turn included.

    Raises UserError unless the messages are valid and the last one is the user's.
    """
    validate_messages(messages)
    if messages[-1]["role"] != "user":
        raise UserError(f"a prompt ends with the user's turn; the last message here is of {messages[-1]['role']!r}")
    return Conversation(messages, tokenizer).prompt()


def render_conversation(messages: Sequence[Message], tokenizer: Tokenizer) -> Rendered:
    """Ids of a whole conversation, with what of it is the assistant's.

    Raises UserError unless the messages are valid and the assistant has a turn in them that is to be learnt.
    """
    validate_messages(messages)
    if not any(map(is_learnt, messages)):
        raise UserError("the conversation has no assistant turn to learn from")
    return Conversation(messages, tokenizer).stretch()


def render_answer(content: str, tokenizer: Tokenizer) -> list[int]:
    """What goes on from a prompt: an answer and the control token that closes it."""
    ids = tokenizer.layout.answer(content)
    return ids[: tokenizer.layout.learnt(ids)]


class Part(NamedTuple):
    """What is said, and the ids around it."""

    opening: list[int]
    content: list[int]
    closing: list[int]

    @property
    def ids(self) -> list[int]:
        return [*self.opening, *self.content, *self.closing]


class Conversation:
    """Messages as their format renders them. Any stretch of turns is a conversation, too, with the same system message;
    each turn is encoded once, so that many stretches cost little."""

    def __init__(self, messages: Sequence[Message], tokenizer: Tokenizer):
        """messages: as `validate_messages` has them, or fewer."""
        self.layout = tokenizer.layout
        has_system = bool(messages) and messages[0]["role"] == "system"
        self.system = messages[0]["content"] if has_system else self.layout.format.default_system
        """The system message; the format's own where the conversation has none."""
        self.messages = list(messages[has_system:])
        """The turns of user and assistant."""
        self._is_borne = self.system is not None and self.layout.format.system_in != "turn"
        own = [] if self.system is None or self._is_borne else self.layout.system_turn(self.system)
        self._opening = [*self.layout.start, *own]
        self._turns = [self._turn(message) for message in self.messages]
        self._bearing: dict[int, Rendered] = {}

    def _turn(self, message: Message, system: str | None = None) -> Rendered:
        """A turn's ids, and which of them are learnt: of the assistant's, the tokens that `layout.learnt` counts of the
        answer, unless the message is to be read only (`is_learnt`); never what opens the turn.

        system: what a user's turn bears of it."""
        if message["role"] != "assistant":
            ids = self.layout.user_turn(message["content"], system)
            return Rendered(ids, [False] * len(ids))
        header, answer = self.layout.header, self.layout.answer(message["content"])
        learnt = self.layout.learnt(answer) if is_learnt(message) else 0
        is_answer = [False] * len(header) + [True] * learnt + [False] * (len(answer) - learnt)
        return Rendered([*header, *answer], is_answer)

    @cached_property
    def _ends(self) -> list[int]:
        """Tokens of the turns before each, and of all."""
        return list(accumulate((len(turn.ids) for turn in self._turns), initial=0))

    def answer(self, i: int) -> Rendered:
        """The i-th turn, the assistant's, without what opens it."""
        ids, is_answer = self._turns[i]
        return Rendered(ids[len(self.layout.header) :], is_answer[len(self.layout.header) :])

    def _bearer(self, first: int, end: int) -> int | None:
        """The turn of a stretch that bears the system message: the user's first or last one."""
        if not self._is_borne:
            return None
        users = [i for i in range(first, end) if self.messages[i]["role"] == "user"] or [None]
        return users[0 if self.layout.format.system_in == "first" else -1]

    def _bears(self, i: int) -> Rendered:
        if i not in self._bearing:
            self._bearing[i] = self._turn(self.messages[i], self.system)
        return self._bearing[i]

    def opening(self, bearer: int | None) -> list[int]:
        """What stands before the turns; where none of them can bear the system message, one that does."""
        is_without = self._is_borne and bearer is None
        return [*self._opening, *(self.layout.user_turn("", self.system) if is_without else [])]

    def _thought(self, first: int, end: int) -> list[int]:
        """What a stretch has before its last answer, if it ends with one."""
        return self.layout.thought if end > first and self.messages[end - 1]["role"] == "assistant" else []

    def stretch(self, first: int = 0, end: int | None = None, learn_from: int = 0) -> Rendered:
        """Turns `first` to `end` as a conversation; those before `learn_from` are not learnt."""
        end = len(self.messages) if end is None else end
        bearer, thought = self._bearer(first, end), self._thought(first, end)
        ids = self.opening(bearer)
        is_answer = [False] * len(ids)
        for i in range(first, end):
            turn = self._bears(i) if i == bearer else self._turns[i]
            ids += turn.ids
            is_answer += turn.is_answer if i >= learn_from else [False] * len(turn.ids)
        if thought:
            place = len(ids) - len(self._turns[end - 1].ids) + len(self.layout.header)
            ids[place:place] = thought
            is_answer[place:place] = [False] * len(thought)
        return Rendered(ids, is_answer)

    def length(self, first: int, end: int) -> int:
        """`len(stretch(first, end).ids)`, without making them."""
        bearer = self._bearer(first, end)
        borne = 0 if bearer is None else len(self._bears(bearer).ids) - len(self._turns[bearer].ids)
        turns = self._ends[end] - self._ends[first]
        return len(self.opening(bearer)) + turns + borne + len(self._thought(first, end))

    @property
    def prompt_end(self) -> list[int]:
        """What a prompt ends with, behind the last turn."""
        return [*self.layout.header, *self.layout.thought]

    def prompt(self, first: int = 0, end: int | None = None) -> list[int]:
        """Turns `first` to `end`, and the opening of the assistant's that follows."""
        return [*self.stretch(first, end).ids, *self.prompt_end]

    def parts(self, turn: int, end: int, with_system: bool) -> tuple[Part, Part]:
        """The system message and turns `turn` to `end`, for a prompt that has to lose some of what is said."""
        nothing = Part([], [], [])
        question = nothing
        if turn < end:
            message, last = self.messages[turn], self.messages[end - 1]
            opening, after = self.layout.around(message["role"])
            content = self.layout.encode(self.layout.said(message["role"], message["content"]))
            ids = [*content, *after, *(i for turn in self._turns[turn + 1 : end] for i in turn.ids)]
            closing = self.layout.around(last["role"])[1]
            question = Part(opening, ids[: len(ids) - len(closing)], closing)
        if not with_system or self.system is None:
            return nothing, question
        opening, closing = self.layout.around("system")
        if self._is_borne:  # it stands in the question's turn
            opening, question = [*question.opening, *opening], question._replace(opening=[])
        return Part(opening, self.layout.encode(self.layout.said("system", self.system)), closing), question


def validate_messages(messages: Sequence[Message]) -> None:
    """UserError for an empty list, an unknown role, content that is no text, a late system turn, or no user turn."""
    if not messages:
        raise UserError("the conversation is empty; it needs at least a user turn")
    for i, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise UserError(f"message {i} must have 'role' and 'content'")
        role = message["role"]
        if role in ("tool", "tool_results", "ipython", "function"):
            raise UserError(f"message {i} has the role {role!r}: no chat format here renders tools and their calls")
        if role not in ROLES:
            raise UserError(f"message {i} has the unknown role {role!r}{suggestion(str(role), ROLES)}")
        if not isinstance(message["content"], str):
            raise UserError(f"message {i} has {type(message['content']).__name__} where text should be")
        if role == "system" and i > 1:
            raise UserError(f"message {i} is a system turn; only the first may be one")
    if not any(message["role"] == "user" for message in messages):
        raise UserError("the conversation has no user turn")


def as_typed(line: str) -> str:
    """What somebody typed or piped as a line: without the white space and line ends around it.

    They are how a line is entered, and no part of what is said: a return that Windows leaves, a final space.
    """
    return line.strip()


def as_messages(prompt: str | Sequence[Message]) -> list[Message]:
    """A prompt as messages: a string is one user turn. Raises UserError when it is not a valid conversation."""
    messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    validate_messages(messages)
    return messages
