from __future__ import annotations

import pytest

from benchmarks.agreement import agreeing
from instructgpt.text.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("text", "same"), [("the cat 猫!", "the cat 猫"), ("the cat", "the cat"), ("a", ""), ("", "")]
)  # fmt: skip
def test_tokens_that_spell_the_other_text_are_counted(text: str, same: str) -> None:
    tokenizer = Tokenizer.train(["x yz"], 268)  # a letter is a token, and other characters are bytes
    ids = tokenizer.encode("the cat 猫?")
    assert tokenizer.decode(ids[: agreeing(tokenizer, ids, text)]) == same
