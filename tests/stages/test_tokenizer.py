"""The tokenizer's stage on texts that do not allow the vocabulary that was asked for."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from instructgpt.stages.tokenizer import TokenizerConfig, run
from instructgpt.text.sentence_piece import VocabularySizeError

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


def test_a_size_that_was_asked_for_is_not_changed_unasked(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(TEXTS["few words"][0])
    config = TokenizerConfig(text=(str(tmp_path / "t.txt"),), vocab_size=2560, out=str(tmp_path / "o"))
    with pytest.raises(VocabularySizeError, match="2560 is more than this text allows; the largest") as caught:
        run(config)
    assert caught.value.works < 400
