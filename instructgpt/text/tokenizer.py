"""Text to tokens and back, behind one interface: a subword model, its control tokens, and a chat format.

The subword model is ours or another's (`sentence_piece.py`, `byte_bpe.py`); what it does not know is here: which tokens
begin and end what, further control tokens, and how a conversation is written (`formats.py`). A tokenizer is lossless
where its model is (`loses`), and safe: no text maps to a control token, whatever it spells, so these enter a sequence
only as ids.

A directory holds a tokenizer as one file of its subword model and, for all but ours, `chat.json`.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from instructgpt.atomic import replacing
from instructgpt.errors import UserError
from instructgpt.flags import train_command
from instructgpt.strict_json import write_json
from instructgpt.text.formats import OURS, ChatFormat, Layout
from instructgpt.text.sentence_piece import CONTROL_NAMES, SentencePiece
from instructgpt.text.subwords import Subwords

CHAT_FILE = "chat.json"
FILE_NAMES = (SentencePiece.file_name, CHAT_FILE)
"""Every file that a saved tokenizer may consist of."""
_OUR_NAMES = {f"<|{name}|>": name for name in CONTROL_NAMES}


@dataclass(frozen=True)
class Roles:
    """Which tokens of a model do what."""

    eos: int
    """Ends a document."""
    bos: int | None = None
    """Begins one, where the model has such a token."""
    pad: int | None = None
    """Fills rows; `eos` where the model has none."""
    begins: bool = True
    """Whether `bos` is put in front of documents and prompts."""
    added: dict[str, int] = field(default_factory=dict)
    """Control tokens beside those of the subword model, by name."""


class Tokenizer:
    """A subword model and what its tokens mean. Equal when these are equal; immutable."""

    def __init__(self, subwords: Subwords, roles: Roles, format: ChatFormat | None = OURS):
        """format: how conversations are written; None where the model knows none, as a base model.

        Raises UserError for a format that the control tokens cannot spell.
        """
        self.subwords, self.roles, self.format = subwords, roles, format
        control = subwords.control | roles.added
        self.control_ids: dict[str, int] = {_OUR_NAMES.get(name, name): i for name, i in control.items()}
        """Control tokens by name: ours by their bare names (`bos`, `user`, …), others as they are spelt."""
        self._bytes = [*subwords.token_bytes]
        self._bytes += [b""] * (max([len(self._bytes) - 1, *roles.added.values()]) + 1 - len(self._bytes))
        self.vocab_size: int = len(self._bytes)
        self.bos, self.eos = roles.bos, roles.eos
        self.pad: int = roles.eos if roles.pad is None else roles.pad
        self.document_start: list[int] = [roles.bos] if roles.begins and roles.bos is not None else []
        """What stands before a document, or a text that a model is to continue."""
        self._layout = format and Layout(format, control, self.document_start, subwords.encode_within)
        self.closing: frozenset[int] = frozenset((self.eos, *(self._layout.ends if self._layout else ())))
        """Tokens that end what a model writes."""
        self.byte_lengths: np.ndarray = np.array([len(value) for value in self._bytes], dtype=np.int64)
        """(vocab_size,) bytes of text that each token stands for; 0 for control tokens."""
        settings = b"" if self._is_ours else json.dumps(self._settings(), sort_keys=True).encode()
        self.fingerprint: str = hashlib.sha256(subwords.model + settings).hexdigest()
        """sha256 of the model, and of control tokens and format where they are not ours: equal ones, equal tokens."""

    @property
    def _is_ours(self) -> bool:
        return self.format == OURS and isinstance(self.subwords, SentencePiece) and self.subwords.is_ours

    @property
    def layout(self) -> Layout:
        """The chat format in this tokenizer's ids. UserError where there is none."""
        if self._layout is None:
            raise UserError("this model has no chat format: give it raw text, or name a format with --chat-format")
        return self._layout

    @property
    def end(self) -> int:
        """The control token that closes an answer."""
        return self.layout.end

    @property
    def loses(self) -> str:
        """What of a text `decode(encode(text))` does not give back; "" where nothing is lost, as ours."""
        return self.subwords.loses

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]})"

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[Subwords, Roles, ChatFormat | None]]:
        return Tokenizer, (self.subwords, self.roles, self.format)

    # ---- making, saving, loading

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        kind: Literal["bpe", "unigram"] = "bpe",
        split_digits: bool = True,
        character_coverage: float = 0.9995,
        seed: int = 0,
        sample_characters: int = 100_000_000,
    ) -> Tokenizer:
        """One of ours, learnt from `texts`; arguments and errors are those of `SentencePiece.train`."""
        return cls._of_ours(
            SentencePiece.train(texts, vocab_size, kind, split_digits, character_coverage, seed, sample_characters)
        )

    @classmethod
    def _of_ours(cls, model: SentencePiece) -> Tokenizer:
        bos, eos, pad = (model.control[f"<|{name}|>"] for name in ("bos", "eos", "pad"))
        return cls(model, Roles(eos, bos, pad))

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """From a file, or a directory that holds one. UserError when it is missing, damaged or of no known kind."""
        file = Path(path) / SentencePiece.file_name if Path(path).is_dir() else Path(path)
        try:
            model = SentencePiece(file.read_bytes(), where=file)
        except FileNotFoundError:
            raise UserError(f"no such tokenizer; `{train_command('tokenizer')}` makes one", file) from None
        except OSError as error:
            raise UserError(f"cannot be read: {error.strerror}", file) from None
        if not model.is_ours:
            raise UserError("is a SentencePiece model that was not trained here", file)
        return cls._of_ours(model)

    def save(self, directory: str | Path) -> Path:
        """Write its files into `directory` (made if missing), each whole or not at all; returns the model's."""
        target = Path(directory) / self.subwords.file_name
        with replacing(target) as temporary:
            temporary.write_bytes(self.subwords.model)
        if not self._is_ours:
            write_json(target.with_name(CHAT_FILE), self._settings())
        return target

    def _settings(self) -> dict[str, Any]:
        """What chat.json says."""
        return {"roles": asdict(self.roles), "format": self.format and asdict(self.format)}

    # ---- text to ids

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without control tokens. Raises UserError for a lone surrogate, which no UTF-8 can hold."""
        return self.subwords.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`[encode(text) for text in texts]`, on all cores when there is enough of it."""
        return self.subwords.encode_batch(texts)

    # ---- ids to text

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`: control tokens are nothing, bytes that are no UTF-8 become U+FFFD.

        Raises ValueError for an id of no token.
        """
        text = b"".join([self.token_bytes(i) for i in ids]).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.subwords.begins_with_space else text

    def token_bytes(self, i: int) -> bytes:
        """The bytes of text that one token stands for. Raises ValueError for an id of no token."""
        if not 0 <= i < self.vocab_size:
            raise ValueError(f"token {i} is outside the vocabulary of {self.vocab_size}")
        return self._bytes[i]

    def stream(self) -> StreamDecoder:
        """A decoder to which ids are pushed one at a time."""
        return StreamDecoder(self)

    def bytes_per_token(self, texts: Iterable[str]) -> float:
        """Mean bytes of UTF-8 a token holds on `texts`; higher is a better fit. 0.0 for no text."""
        size = tokens = 0
        for text in texts:
            size += len(text.encode())
            tokens += len(self.encode(text))
        return size / tokens if tokens else 0.0


class StreamDecoder:
    """Decodes tokens as they are generated: what all pushes and the flush return, joined, is `decode` of all the ids.

    A character that is spelt in several tokens is returned by the push that completes it, never in halves.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._drops_space = tokenizer.subwords.begins_with_space
        """Until the first character is out."""

    def push(self, i: int) -> str:
        """The text that token `i` completes; "" while a character is unfinished."""
        return self._text(self._decoder.decode(self._tokenizer.token_bytes(i)))

    def flush(self) -> str:
        """What was left unfinished, as U+FFFD, or ""; the decoder then starts afresh."""
        rest = self._text(self._decoder.decode(b"", final=True))
        self._decoder.reset()
        self._drops_space = self._tokenizer.subwords.begins_with_space
        return rest

    def _text(self, text: str) -> str:
        if self._drops_space and text:
            self._drops_space = False
            return text.removeprefix(" ")
        return text
