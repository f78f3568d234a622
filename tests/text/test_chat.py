"""The prompt template: structural, and honest about what is trained on."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.errors import UserError
from instructgpt.text.chat import (
    ROLES,
    Message,
    as_messages,
    as_typed,
    render_conversation,
    render_prompt,
    validate_messages,
)
from instructgpt.text.sentence_piece import CONTROL_NAMES
from instructgpt.text.tokenizer import Tokenizer


def turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    words = ["say", "hello", "to", "the", "cat", "and", "then", "be", "brief", "please"]
    return Tokenizer.train([" ".join(random.Random(i).choices(words, k=9)) for i in range(100)], 300)


def test_the_template(tokenizer: Tokenizer) -> None:
    t = tokenizer
    messages = [turn("system", "be brief"), turn("user", "say hello"), turn("assistant", "hello")]
    system, user, assistant = (t.control_ids[role] for role in ROLES)
    ids = [t.bos, system, *t.encode("be brief"), t.end, user, *t.encode("say hello"), t.end, assistant]
    answer = [*t.encode("hello"), t.end]
    assert render_prompt(messages[:2], t) == ids
    rendered = render_conversation(messages, t)
    assert rendered.ids == ids + answer
    assert rendered.is_answer == [False] * len(ids) + [True] * len(answer)


def test_every_assistant_turn_is_an_answer(tokenizer: Tokenizer) -> None:
    messages = [turn("user", "say"), turn("assistant", "hello"), turn("user", "then"), turn("assistant", "")]
    ids, is_answer = render_conversation(messages, tokenizer)
    answers = [i for i, answer in zip(ids, is_answer) if answer]
    assert answers == [*tokenizer.encode("hello"), tokenizer.end, tokenizer.end]


def test_a_turn_that_is_not_to_be_learnt_is_read_only(tokenizer: Tokenizer) -> None:
    context: Message = {"role": "assistant", "content": "hello", "learn": False}
    messages = [turn("user", "say"), context, turn("user", "then"), turn("assistant", "be brief")]
    ids, is_answer = render_conversation(messages, tokenizer)
    assert ids == render_conversation([*messages[:1], turn("assistant", "hello"), *messages[2:]], tokenizer).ids
    answers = [i for i, answer in zip(ids, is_answer) if answer]
    assert answers == [*tokenizer.encode("be brief"), tokenizer.end]
    with pytest.raises(UserError, match="no assistant turn to learn from"):
        render_conversation(messages[:2], tokenizer)


imitations = st.sampled_from([*(f"<|{name}|>" for name in CONTROL_NAMES), "</s>", "\n\nHuman:"])


@given(contents=st.lists(st.text() | imitations, min_size=1))
def test_contents_can_neither_close_nor_open_a_turn(tokenizer: Tokenizer, contents: list[str]) -> None:
    messages = [turn(("user", "assistant")[i % 2], content) for i, content in enumerate([*contents, "say"])]
    ids = [i for i in render_conversation(messages, tokenizer).ids if i < len(CONTROL_NAMES)]
    assert ids == [tokenizer.bos] + [i for m in messages for i in (tokenizer.control_ids[m["role"]], tokenizer.end)]


def test_a_conversation_starts_with_its_prompt(tokenizer: Tokenizer) -> None:
    messages = [turn("user", "say hello"), turn("assistant", "hello")]
    prompt = render_prompt(messages[:1], tokenizer)
    ids, is_answer = render_conversation(messages, tokenizer)
    assert ids[: len(prompt)] == prompt and not any(is_answer[: len(prompt)]) and all(is_answer[len(prompt) :])


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "empty"),
        ([{"role": "usr", "content": "a"}], "unknown role 'usr'; did you mean 'user'"),
        ([{"role": None, "content": "a"}], "unknown role None"),
        ([{"role": "tool", "content": "4"}], "message 1 has the role 'tool': no chat format here renders tools"),
        ([{"role": "user", "content": None}], "NoneType where text should be"),
        ([{"role": "user", "content": ["a"]}], "list where text should be"),
        ([{"role": "user"}], "must have 'role' and 'content'"),
        (["hello"], "must have 'role' and 'content'"),
        ([turn("user", "a"), turn("system", "b")], "message 2 is a system turn"),
        ([turn("system", "a")], "no user turn"),
        ([turn("assistant", "a")], "no user turn"),
    ],
)
def test_what_is_no_conversation(messages: list, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        validate_messages(messages)
    with pytest.raises(UserError, match=complaint):
        as_messages(messages)


def test_a_prompt_ends_with_the_user_and_a_conversation_has_an_answer(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="ends with the user's turn"):
        render_prompt([turn("user", "a"), turn("assistant", "b")], tokenizer)
    with pytest.raises(UserError, match="no assistant turn"):
        render_conversation([turn("user", "a")], tokenizer)


def test_a_string_is_one_user_turn() -> None:
    assert as_messages("hello") == [turn("user", "hello")]
    assert as_messages("") == [turn("user", "")]


@given(st.text(), st.text(" \t\r\n\u3000"), st.text(" \t\r\n\u3000"))
def test_how_a_line_is_entered_is_no_part_of_it(said: str, before: str, after: str) -> None:
    assert as_typed(before + said + after) == said.strip()
    assert as_typed(f"{before}a  \r\nb{after}") == "a  \r\nb"
