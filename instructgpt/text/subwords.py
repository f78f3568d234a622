"""What turns text into ids and ids into bytes, whoever trained it: the part of a tokenizer that knows of no chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from instructgpt.errors import UserError

SPACE = "▁"
"""U+2581, SentencePiece's spelling of a space inside a piece."""


class Subwords(Protocol):
    """A subword model: `SentencePiece` or `ByteBPE`. Immutable; pickles."""

    file_name: str
    """Under which its file is saved."""
    model: bytes
    """That file's contents."""
    token_bytes: list[bytes]
    """The bytes of text that each token stands for, by id; b"" for control tokens."""
    control: dict[str, int]
    """Its control tokens by name. No text maps to one, whatever it spells."""
    begins_with_space: bool
    """Whether a text is encoded as if a space stood before it, which is no part of what the ids stand for."""
    loses: str
    """What of a text `decode(encode(text))` does not give back; "" where nothing is lost."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`[encode(text) for text in texts]`."""
        ...

    def encode_within(self, text: str) -> list[int]:
        """Ids of a text that goes on where others stand before it: no space is put in front."""
        ...


def refuse_surrogates(text: str) -> None:
    """UserError for a lone surrogate, which no UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise UserError(
            f"character {error.start} of the text is the lone surrogate U+{code:04X}, half of a character; "
            "give the text as valid Unicode"
        ) from None
