"""The tokenizer's stage on texts that do not allow the vocabulary that was asked for."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from instructgpt.errors import UserError
from instructgpt.stages.tokenizer import TokenizerConfig, run

# Of each kind a text, and what it allows: 263 tokens are bytes and control tokens, one is demanded by SentencePiece.
CHINESE = [chr(0x4E00 + i) for i in range(3000)]


def book(characters: list[str], lines: int) -> str:
    draw = random.Random(0)
    return "\n".join("".join(draw.choices(characters, k=40)) for _ in range(lines))


TEXTS = {
    "many characters": (book(CHINESE, 2000), 600, 3264, 3264 * 5 // 4),
    "few words": ("the cat sat on the mat\n" * 40, 2560, 263, 400),
    "characters, and no pair of them": ("\n".join(CHINESE[:1000]), 600, 1264, 1264),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_vocabulary_that_fits_is_taken_if_asked_and_said(tmp_path: Path, capsys, name: str) -> None:
    text, wished, least, most = TEXTS[name]
    (tmp_path / "t.txt").write_text(text)
    config = TokenizerConfig(
        text=(str(tmp_path / "t.txt"),), vocab_size=wished, out=str(tmp_path / "o"), fit_vocab_size=True, holdout=0.0
    )
    made = run(config)
    assert least <= made.vocab_size <= most
    said = capsys.readouterr().out
    assert f"vocab_size {wished} is" in said and f"taking {made.vocab_size}\n" in said
    assert made.decode(made.encode(text)) == text


@pytest.mark.parametrize(("name", "kind"), [*((name, "bpe") for name in TEXTS), ("few words", "unigram")])
def test_a_size_that_was_asked_for_is_not_changed_unasked_but_one_that_works_is_told(
    tmp_path: Path, name: str, kind: Literal["bpe", "unigram"]
) -> None:
    text, wished, *_ = TEXTS[name]
    (tmp_path / "t.txt").write_text(text)
    config = TokenizerConfig(
        text=(str(tmp_path / "t.txt"),), vocab_size=wished, out=str(tmp_path / "o"), holdout=0.0, kind=kind
    )
    with pytest.raises(UserError, match=f"vocab_size {wished} is .*--fit-vocab-size") as caught:
        run(config)
    told = re.search(r"give --vocab-size (\d+)", str(caught.value))
    assert told and run(replace(config, vocab_size=int(told[1]))).vocab_size == int(told[1])
