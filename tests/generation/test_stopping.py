from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from instructgpt.generation.stopping import StoppingText
from instructgpt.text.tokenizer import Tokenizer

few = st.text(alphabet="ab\n猫", max_size=12)
stops = st.lists(few.filter(bool).filter(lambda s: len(s) <= 4), max_size=3).map(tuple)


def until_stop(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """The definition: read character by character, and cut off the longest stop string that is complete first."""
    for end in range(1, len(text) + 1):
        if complete := [s for s in stop if text[:end].endswith(s)]:
            return text[: end - max(map(len, complete))], True
    return text, False


def bytewise(text: str, tokenizer: Tokenizer) -> list[int]:
    """The text in the smallest tokens there are: one a byte."""
    byte_ids = {tokenizer.token_bytes(i): i for i in reversed(range(tokenizer.vocab_size))}
    return [byte_ids[bytes([byte])] for byte in text.encode()]


def read(tokenizer: Tokenizer, tokens: list[int], stop: tuple[str, ...]) -> tuple[list[str], bool]:
    text, pieces = StoppingText(tokenizer, stop), []
    for token in tokens:
        pieces.append(text.push(token))
        if text.stopped:
            break
    return [*pieces, text.close()], text.stopped


@given(text=few, stop=stops)
def test_text_ends_before_the_first_stop_string_however_tokens_divide_it(tokenizer: Tokenizer, text: str, stop):
    expected = until_stop(text, stop)
    for tokens in (tokenizer.encode(text), bytewise(text, tokenizer)):
        pieces, stopped = read(tokenizer, tokens, stop)
        assert ("".join(pieces), stopped) == expected


def test_only_what_may_begin_a_stop_string_is_held_back(tokenizer: Tokenizer):
    pieces, stopped = read(tokenizer, bytewise("xa ab", tokenizer), ("abc",))
    assert (pieces, stopped) == (["x", "", "a ", "", "", "ab"], False)


def test_a_character_is_not_shown_in_halves(tokenizer: Tokenizer):
    assert read(tokenizer, bytewise("a鸟", tokenizer), ())[0] == ["a", "", "", "鸟", ""]


def test_a_character_left_unfinished_is_replaced(tokenizer: Tokenizer):
    assert "".join(read(tokenizer, bytewise("a鸟", tokenizer)[:-1], ())[0]) == "a\ufffd"


def test_control_tokens_are_no_text(tokenizer: Tokenizer):
    assert read(tokenizer, [tokenizer.end], ("end", "<"))[0] == ["", ""]
