"""Long conversations by hand: which exchanges share a window, what is cut, and what is told of it."""

from __future__ import annotations

import pytest

from instructgpt import world
from instructgpt.data.tokens import Tokens
from instructgpt.data.windows import Fitted, Long, all_windows, fit_prompt, windows
from instructgpt.text.chat import Message, render_conversation, render_prompt
from instructgpt.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["cat dog"] * 50, 280)


def chat(*turns: str, system: str = "") -> list[Message]:
    """Turns of user and assistant in alternation, behind a system message if there is one."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    return [*messages, *({"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns))]


def read(tokens: Tokens, tokenizer: Tokenizer) -> str:
    """A window as text: roles as S, U, A, `end` as |, what is learnt in brackets."""
    shown_as = {"bos": "^", "end": "|", "user": "U", "assistant": "A", "system": "S"}
    names = {tokenizer.control_ids[name]: sign for name, sign in shown_as.items()}
    shown = ""
    for place, (token, is_target) in enumerate(zip(tokens.ids.tolist(), tokens.is_target.tolist())):
        before = place > 0 and bool(tokens.is_target[place - 1])
        shown += "[" if is_target and not before else "]" if before and not is_target else ""
        shown += names.get(token) or tokenizer.decode([token])
    return shown + ("]" if tokens.is_target[-1] else "")


# An exchange of one letter each has 6 tokens; these letters are tokens of their own.
def shown(messages: list[Message], tokenizer: Tokenizer, limit: int, long: Long = "windows") -> list[str]:
    return [read(window, tokenizer) for window in windows(messages, tokenizer, limit, long)]


def test_a_conversation_that_fits_is_one_window_and_nothing_is_told(tokenizer: Tokenizer) -> None:
    messages = chat("q", "a", "r", "b", system="s")
    (window,), fitted = all_windows([messages], tokenizer, 15)
    whole = Tokens.of(render_conversation(messages, tokenizer))
    assert window.ids.tolist() == whole.ids.tolist() and window.is_target.tolist() == whole.is_target.tolist()
    assert (len(whole), fitted) == (16, Fitted(conversations=1, answers=2)) and fitted.report(15) == ""
    assert len(all_windows([messages], tokenizer, 14)[0]) == 2, "a token less and it does not fit"


def test_windows_hold_whole_turns_with_earlier_ones_to_be_read(tokenizer: Tokenizer) -> None:
    messages = chat("q", "a", "r", "b", "t", "c", "u", "d")
    assert shown(messages, tokenizer, 19) == ["^Uq|A[a|]Ur|A[b|]Ut|A[c|]", "^Ur|Ab|Ut|Ac|Uu|A[d|]"]
    assert shown(messages, tokenizer, 13) == ["^Uq|A[a|]Ur|A[b|]", "^Ur|Ab|Ut|A[c|]", "^Ut|Ac|Uu|A[d|]"]
    assert shown(messages, tokenizer, 7) == ["^Uq|A[a|]", "^Ur|A[b|]", "^Ut|A[c|]", "^Uu|A[d|]"]


def test_the_system_message_begins_every_window(tokenizer: Tokenizer) -> None:
    messages = chat("q", "a", "r", "b", "t", "c", system="s")
    assert shown(messages, tokenizer, 10) == ["^Ss|Uq|A[a|]", "^Ss|Ur|A[b|]", "^Ss|Ut|A[c|]"]


def test_cut_keeps_the_first_window_and_drop_none(tokenizer: Tokenizer) -> None:
    messages = chat("q", "a", "r", "b", "t", "c")
    cases: list[tuple[Long, list[str], int]] = [("cut", ["^Uq|A[a|]Ur|A[b|]"], 1), ("drop", [], 3)]
    for long, kept, lost in cases:
        fitted = Fitted()
        found = windows(messages, tokenizer, 13, long, fitted)
        assert [read(window, tokenizer) for window in found] == kept
        assert (fitted.lost_answers, fitted.cut_answers, fitted.too_long) == (lost, 0, 1)
    told = "of 1 conversations, 1 are longer than 12 tokens and were left out; of 3 answers, 3 are lost whole"
    assert fitted.report(12) == told


def test_an_exchange_too_long_alone_loses_the_front_of_its_question_and_then_the_tail_of_its_answer(
    tokenizer: Tokenizer,
) -> None:
    fitted = Fitted()
    messages = chat("q", "a", "123456", "b", "t", "123456789", "u", "d", system="s")
    found = [read(window, tokenizer) for window in windows(messages, tokenizer, 12, fitted=fitted)]
    assert found == ["^Ss|Uq|A[a|]", "^Ss|U456|A[b|]", "^Ut|A[1234567]", "^Ss|Uu|A[d|]"]
    assert (fitted.cut_prompts, fitted.cut_answers, fitted.lost_answers, fitted.windows) == (2, 1, 0, 4)
    told = "became 4 windows of whole turns; of 4 answers, 2 lost the front of their prompt, 1 lost their tail"
    assert fitted.report(11).endswith(told)


def test_no_context_is_kept_beside_an_exchange_that_is_cut(tokenizer: Tokenizer) -> None:
    assert shown(chat("q", "a", "r", "12345678"), tokenizer, 10) == ["^Uq|A[a|]", "^Ur|A[12345]"]


@pytest.mark.parametrize(
    ("room", "expected", "lost"),
    [
        (20, "^Ss|Uq|Aa|U12345|A", (0, 0)),
        (18, "^Ss|Uq|Aa|U12345|A", (0, 0)),
        (17, "^Ss|U12345|A", (2, 0)),
        (12, "^Ss|U12345|A", (2, 0)),
        (11, "^Ss|U2345|A", (2, 1)),
        (7, "^S|U5|A", (2, 5)),
        (6, "^U45|A", (2, 6)),
        (4, "^5|A", None),
        (3, "^|A", None),
        (2, "^A", None),
        (1, "A", None),
    ],
)
def test_a_prompt_loses_whole_turns_then_the_front_of_the_question(
    tokenizer: Tokenizer, room: int, expected: str, lost: tuple[int, int] | None
) -> None:
    messages = chat("q", "a", "12345", system="s")
    prompt = fit_prompt(messages, tokenizer, room)
    assert read(Tokens.of_text(_array(prompt.ids)), tokenizer).replace("[", "").replace("]", "") == expected
    if lost is not None:
        assert (prompt.lost_turns, prompt.lost_tokens) == lost
    assert prompt.is_cut == (room < 18)
    if not prompt.is_cut:
        assert prompt.ids == render_prompt(messages, tokenizer)


def test_a_long_system_message_leaves_half_of_the_room_to_the_question(tokenizer: Tokenizer) -> None:
    prompt = fit_prompt(chat("12345678", system="abcdefgh"), tokenizer, 14)
    assert read(Tokens.of_text(_array(prompt.ids)), tokenizer).replace("[", "").replace("]", "") == "^Sabcd|U5678|A"


def test_what_is_not_to_be_learnt_is_context_only(tokenizer: Tokenizer) -> None:
    messages = chat("q", "x", "r", "b", "t", "y", "u", "z")
    for place in (1, 5, 7):
        messages[place]["learn"] = False
    fitted = Fitted()
    found = windows(messages, tokenizer, 13, fitted=fitted)
    assert [read(window, tokenizer) for window in found] == ["^Uq|Ax|Ur|A[b|]"] and fitted.answers == 1
    assert shown(messages[:2], tokenizer, 13) == [], "nothing to learn, no window"
    assert shown(messages[:4], tokenizer, 30) == ["^Uq|Ax|Ur|A[b|]"]


def test_a_windowed_world_teaches_each_of_its_answers(tokenizer: Tokenizer) -> None:
    from instructgpt.data.sources import WorldInstructions

    index = next(i for i in range(500) if len(world.example("train", i).conversation) > 3)
    whole = WorldInstructions("train", tokenizer)[index]
    source = WorldInstructions("train", tokenizer, context=len(whole) - 2)
    found = source.windows(index)
    assert len(found) == 2 and all(len(window) < len(whole) for window in found)
    assert sum(int(window.is_target.sum()) for window in found) == whole.is_target.sum()
    assert source[index].ids.tolist() in [window.ids.tolist() for window in found]


def _array(ids: list[int]):
    import numpy as np

    return np.array(ids, dtype=np.int32)
