"""Whatever the conversation and the context, each answer is learnt once or counted as lost; each window is valid."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt import world
from instructgpt.data.tokens import Tokens
from instructgpt.data.windows import Fitted, fit_prompt, windows
from instructgpt.text.chat import Message, render_answer, render_conversation, render_prompt
from instructgpt.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([world.document(i) for i in range(100)], 700)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Every turn begins with its number, so that each can be told from all others."""
    count = draw(st.integers(1, 7))
    contents = draw(st.lists(st.text("the cat 猫 1\n", max_size=60), min_size=2 * count, max_size=2 * count))
    messages: list[Message] = [
        {"role": ("user", "assistant")[i % 2], "content": f"<{i}> {content}"} for i, content in enumerate(contents)
    ]
    system = draw(st.sampled_from(["", "Be brief.", "a long system message " * 4]))
    return [{"role": "system", "content": system}, *messages] if system else messages


limits = st.integers(24, 160)


def turns_of(tokens: Tokens, tokenizer: Tokenizer) -> list[tuple[str, list[int], list[bool]]]:
    """(role, ids behind the control token, which are learnt) of each turn; checks what stands between them."""
    roles = {tokenizer.control_ids[role]: role for role in ("system", "user", "assistant")}
    ids, is_target = tokens.ids.tolist(), tokens.is_target.tolist()
    assert ids[0] == tokenizer.bos and not is_target[0]
    found: list[tuple[str, list[int], list[bool]]] = []
    for token, learnt in zip(ids[1:], is_target[1:]):
        if token in roles:
            assert not learnt and (not found or found[-1][1][-1] == tokenizer.end), "a turn begins where one ended"
            found.append((roles[token], [], []))
        else:
            found[-1][1].append(token)
            found[-1][2].append(learnt)
    return found


@given(conversations(), limits, st.sampled_from(["windows", "cut", "drop"]))
def test_every_answer_is_learnt_exactly_once_or_counted_as_lost(tokenizer, messages, limit, long):
    fitted = Fitted()
    found = windows(messages, tokenizer, limit, long, fitted)
    answers = [render_answer(m["content"], tokenizer) for m in messages if m["role"] == "assistant"]
    learnt = [
        [token for token, is_learnt in zip(ids, learns) if is_learnt]
        for window in found
        for role, ids, learns in turns_of(window, tokenizer)
        if any(learns)
    ]
    whole = Counter(tuple(answer) for answer in answers) & Counter(map(tuple, learnt))
    assert fitted.answers == len(answers) == len(learnt) + fitted.lost_answers
    assert whole.total() == len(learnt) - fitted.cut_answers
    for cut in Counter(map(tuple, learnt)) - whole:
        assert len(cut) >= limit // 2 and any(tuple(answer[: len(cut)]) == cut for answer in answers), "its beginning"
    if long == "windows":
        assert fitted.lost_answers == 0
        assert [answer[:3] for answer in learnt] == [answer[:3] for answer in answers], "in order"
    if len(render_conversation(messages, tokenizer).ids) <= limit:
        assert len(found) == 1 and fitted == Fitted(1, len(answers))


@given(conversations(), limits)
def test_every_window_fits_begins_with_the_system_message_and_alternates(tokenizer, messages, limit):
    system = [render_answer(m["content"], tokenizer) for m in messages if m["role"] == "system"]
    fitted = Fitted()
    found = windows(messages, tokenizer, limit, fitted=fitted)
    for window in found:
        turns = turns_of(window, tokenizer)
        roles = [role for role, _, _ in turns]
        assert len(window) <= limit
        assert roles[-1] == "assistant"
        body = roles[1:] if roles[0] == "system" else roles
        assert body == ["user", "assistant"] * (len(body) // 2)
        assert not any(any(learns) for role, _, learns in turns if role != "assistant")
        first_learnt = next(i for i, (_, _, learns) in enumerate(turns) if any(learns))
        assert all(all(learns) for role, _, learns in turns[first_learnt:] if role == "assistant"), "none half learnt"
        if system and not fitted.cut_prompts:
            assert turns[0][1] == system[0]
    assert fitted.windows in (0, len(found))


@given(conversations(), st.integers(1, 160))
def test_a_prompt_fits_and_ends_where_the_assistant_is_to_speak(tokenizer, messages, room):
    *prompt, _ = messages
    fitted = fit_prompt(prompt, tokenizer, room)
    assert len(fitted.ids) <= room and fitted.ids[-1] == tokenizer.control_ids["assistant"]
    if room > 1:
        assert fitted.ids[0] == tokenizer.bos
    if room >= 24:  # what is asked at the end stays
        question = render_answer(prompt[-1]["content"], tokenizer)  # what follows a user's token is the same
        assert fitted.ids[-1 - min(len(question), 8) : -1] == question[-8:]
    assert (fitted.ids == render_prompt(prompt, tokenizer)) == (not fitted.is_cut)
