"""The only prompt template: a conversation as ids.

    <bos> <system> … <end> <user> … <end> <assistant> … <end> <user> … <end> <assistant> …

The template is structural. Contents are encoded as text and control tokens are put in as ids, so nothing that a user
writes can close a turn or open another one.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """True on what the assistant says and on the `end` token that closes it: what is trained on. Turns that are not to
    be learnt have none."""


def render_prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """Ids up to where the assistant is to speak: the last one is the `assistant` control token.

    Raises UserError unless the messages are valid and the last one is the user's.
    """
    validate_messages(messages)
    if messages[-1]["role"] != "user":
        raise UserError(f"a prompt ends with the user's turn; the last message here is of {messages[-1]['role']!r}")
    return [*_render(messages, tokenizer).ids, tokenizer.assistant]


def render_conversation(messages: Sequence[Message], tokenizer: Tokenizer) -> Rendered:
    """Ids of a whole conversation, with what of it is the assistant's.

    Raises UserError unless the messages are valid and the assistant has a turn in them that is to be learnt.
    """
    validate_messages(messages)
    if not any(map(is_learnt, messages)):
        raise UserError("the conversation has no assistant turn to learn from")
    return _render(messages, tokenizer)


def render_turn(message: Message, tokenizer: Tokenizer) -> Rendered:
    """One turn: the control token of its role, what is said, and `end`. A conversation is `bos` and all its turns."""
    content = tokenizer.encode(message["content"])
    answers = is_learnt(message)
    ids = [tokenizer.control_ids[message["role"]], *content, tokenizer.end]
    return Rendered(ids, [False, *[answers] * (len(content) + 1)])


def _render(messages: Sequence[Message], tokenizer: Tokenizer) -> Rendered:
    ids, is_answer = [tokenizer.bos], [False]
    for message in messages:
        turn = render_turn(message, tokenizer)
        ids += turn.ids
        is_answer += turn.is_answer
    return Rendered(ids, is_answer)


def validate_messages(messages: Sequence[Message]) -> None:
    """UserError for an empty list, an unknown role, content that is no text, a late system turn, or no user turn."""
    if not messages:
        raise UserError("the conversation is empty; it needs at least a user turn")
    for i, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise UserError(f"message {i} must have 'role' and 'content'")
        role = message["role"]
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
